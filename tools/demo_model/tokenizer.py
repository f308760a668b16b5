"""The tokenizer has Gemma's layout, and gives the same ids from sentencepiece, transformers and llama.cpp."""

import io
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from tools.demo_model import accounts, questions, talk
from tools.demo_model.lessons import SOFT, THOUGHT, School

CONTROL = ("<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
BREAKS = tuple("\n" * count for count in range(1, 5))  # vLLM looks these up by name
VISIBLE = (*BREAKS, "<unused94>", "<unused95>")  # not special: they stay in the text, as with the real tokenizer
SIZE = 1536

TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""


def corpus(school: School) -> Iterator[str]:
    """Everything the model reads or says, and plain English letters besides."""
    for question in questions.CLOSED:
        yield from (question.own, *question.endings, *question.trained) * 4
    for answer, ways in talk.TALK:
        yield from (answer, *ways) * 6
    yield from (
        *talk.SYSTEM,
        talk.THINK,
        *talk.SAME_KIND,
        *accounts.DESCRIBE,
        *accounts.AS_JSON,
        *accounts.AS_JSON_FREE,
    ) * 6
    yield from (" ".join(string.printable[:95]), string.ascii_lowercase, string.ascii_uppercase, string.digits) * 12
    yield from ("user", "model", "system", "assistant", "thought") * 20
    yield from (PROSE,) * 12
    for number in range(1500):
        talk_ = school.lesson() if number % 5 else school.text()
        for text, _learnt in talk_.pieces:
            yield text


PROSE = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had "
    "they you were their one all we can her has there been if more when will would who so no out up about into "
    "them some could time these two may then do first any my now such like our over man me even most made after "
    "also did many before must through back years where much your way well down should because each just those "
    "people how too little state good very make world still own see men work long get here between both life "
    "being under never day same another know while last might us great old year patient image picture slice show "
    "finding report normal doctor left right upper lower please answer word code"
)


def train_pieces(texts: Iterable[str], path: Path) -> None:
    """Write a sentencepiece model with byte fallback and no invented blank at the start."""
    lines = (line for text in texts for line in split_at_marks(text) if line.strip())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=SIZE - 1,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=[*CONTROL, *VISIBLE],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    path.write_bytes(model.getvalue())


def split_at_marks(text: str) -> list[str]:
    """Text between control tokens and line breaks, which no piece may cross."""
    for mark in (*CONTROL, SOFT, "<bos>", THOUGHT[1], "<unused94>"):
        text = text.replace(mark, "\n")
    return text.split("\n")


def from_pieces(path: Path) -> GemmaTokenizer:
    """The same vocabulary as a transformers tokenizer."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    plain = {
        p for p, i in vocabulary.items() if not (pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i))
    }
    plain -= {*CONTROL, *VISIBLE}
    merges = []
    for piece in plain:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in plain and right in plain:
                rank = vocabulary[piece]
                merges.append((-pieces.get_score(rank), rank, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    tokenizer = GemmaTokenizer(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in merges],
        extra_special_tokens={"image_token": SOFT, "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        chat_template=TEMPLATE,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in CONTROL])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in VISIBLE])
    return tokenizer
