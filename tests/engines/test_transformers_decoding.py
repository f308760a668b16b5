"""The decoder answers many at once exactly as transformers' own `generate()` answers one at a time."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import Any

import llguidance
import pytest
import torch

from medserve.errors import (
    ContextOverflow,
    DeviceFull,
    EngineError,
    InvalidRequest,
    ModelFailed,
    NotSupported,
    ServiceStopping,
)
from medserve.generation import Sampling
from medserve.workers.transformers import passes
from medserve.workers.transformers.prompts import Picture, Prompt
from medserve.workers.transformers.rows import Choice, Writer
from medserve.workers.transformers.wishes import End, Wish
from tests.engines.gemma import WINDOW, Answer, Asked, Event, Subject, asking, blind, demo, seeing

SHAPE = "What is the overall shape of the lesion? Answer with one word: round, oval or irregular."
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["round", "oval"]},
        "even": {"type": "boolean"},
        "size": {"type": "integer", "minimum": 1},
    },
    "required": ["shape", "even"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def trained() -> Iterator[Asked]:
    """The demo model in a decoder that several tests share, and which remembers what they asked."""
    with asking(demo()) as asked:
        yield asked


def ids(subject: Subject, text: str) -> tuple[int, ...]:
    return tuple(subject.tokenizer(text, add_special_tokens=False).input_ids)


# --- equal to generate() -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("Who are you?",), (1, SHAPE), (1, "And", 2, "Compare the two.", 3)])
def test_one_question(parts: tuple[str | int, ...]) -> None:
    """Words alone, one picture or several: the answer is the one of transformers, and says what it took."""
    subject = demo()
    prompt = subject.prompt(*parts)
    with asking(subject) as asked:
        answer = asked.ask(prompt, 40).wait()

    assert answer.tokens == subject.generated(prompt, 40)
    assert answer.text == subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    spent = answer.end.spent
    pictures = len(prompt.pictures)
    assert (spent.prompt, spent.image, spent.encodes) == (len(prompt.ids), 16 * pictures, pictures)
    assert spent.completion == len(answer.tokens) + (answer.end.finish == "stop")
    assert spent.prompt_seconds > 0
    assert spent.completion_seconds > 0


def test_batch() -> None:
    """Rows of different lengths that are read and written together change nothing of one another."""
    subject = seeing()
    prompts = [
        subject.prompt(subject.words(7)),
        subject.prompt(1, subject.words(30, seed=1)),
        subject.prompt(subject.words(120, seed=2), 2),
        subject.prompt(subject.words(50, seed=3), 3, 4),
    ]
    with asking(subject, started=False) as asked:
        answers = [asked.ask(prompt, 20) for prompt in prompts]
        asked.start()
        tokens = [answer.wait().tokens for answer in answers]

    assert tokens == [subject.generated(prompt, 20) for prompt in prompts]


def test_joining_and_leaving() -> None:
    """Conversations that join in the midst of others, and outlast them, are answered as if alone."""
    subject = seeing()
    prompts = [subject.prompt(number, subject.words(20 + 30 * number, seed=number)) for number in range(6)]
    lengths = [30, 5, 12, 25, 3, 18]
    answers = [Answer() for _ in prompts]
    with asking(subject, started=False, slots=3) as asked:

        def relay(number: int) -> Callable[[Event], None]:
            def take(event: Event) -> None:
                answers[number].take(event)
                called = len(answers[number].tokens) >= 3 or isinstance(event, End)
                if called and number + 1 < len(answers) and answers[number + 1].ticket is None:
                    start(number + 1)

            return take

        def start(number: int) -> None:
            """The third word of each conversation calls the next one in."""
            answers[number].ticket = asked.decoder.submit(Wish(prompts[number], lengths[number]), relay(number))

        start(0)
        asked.start()
        for answer in answers:
            answer.wait()

    for prompt, length, answer in zip(prompts, lengths, answers, strict=True):
        assert answer.tokens == subject.generated(prompt, length)


def test_beyond_the_window() -> None:
    """Prompts of several windows, pictures among them, are exact, and so are answers that outgrow the window."""
    subject = seeing()
    long = subject.prompt(1, subject.words(4 * WINDOW), 2, subject.words(WINDOW, seed=1))
    short = subject.prompt(3, subject.words(5))
    with asking(subject) as asked:
        answers = [asked.ask(long, 24), asked.ask(short, 2 * WINDOW)]
        tokens = [answer.wait().tokens for answer in answers]

    assert tokens == [subject.generated(long, 24), subject.generated(short, 2 * WINDOW)]


def test_beyond_the_demo_models_window() -> None:
    """The same with trained weights and their own window of 512."""
    subject = demo()
    prompt = subject.prompt(1, subject.words(560), SHAPE)
    with asking(subject) as asked:
        answer = asked.ask(prompt, 12).wait()

    assert subject.model.config.text_config.sliding_window < len(prompt.ids)
    assert answer.tokens == subject.generated(prompt, 12)


@pytest.mark.parametrize("chunk", [1, 10, 40])
def test_reading_in_parts(chunk: int) -> None:
    """A prompt that is read in parts, while others write, is read as exactly; no picture is cut."""
    subject = seeing()
    prompts = [subject.prompt(5, subject.words(9)), subject.prompt(subject.words(70, seed=1), 1, 2, subject.words(9))]
    with asking(subject, chunk=chunk) as asked:
        answers = [asked.ask(prompt, 16) for prompt in prompts]
        tokens = [answer.wait().tokens for answer in answers]

    assert tokens == [subject.generated(prompt, 16) for prompt in prompts]


def test_answers_go_on_while_a_long_prompt_is_read() -> None:
    """Whoever writes gets a token after every part that is read of another's prompt."""
    subject = seeing()
    long = subject.prompt(subject.words(100))
    order: list[str] = []
    with asking(subject, started=False, chunk=10) as asked:
        writer, reader = Answer(), Answer()

        def written(event: Event) -> None:
            if not order:
                asked.decoder.submit(Wish(long, 1), read)
            order.append("written")
            writer.take(event)

        def read(event: Event) -> None:
            order.append("read")
            reader.take(event)

        asked.decoder.submit(Wish(subject.prompt("Go on."), 40), written)
        asked.start()
        for answer in (writer, reader):
            answer.wait()

    assert order[: order.index("read")].count("written") >= len(long.ids) // 10


def test_short_question_beside_a_long_prompt() -> None:
    """It is not kept waiting until the other is read, though the slot between them writes."""
    subject = seeing()
    long, short = subject.prompt(subject.words(400)), subject.prompt("And this?")
    order: list[str] = []
    with asking(subject, started=False, chunk=20) as asked:
        reader, writer, late = Answer(), Answer(), Answer()

        def told(answer: Answer, name: str) -> Callable[[Event], None]:
            def take(event: Event) -> None:
                order.append(name)
                answer.take(event)
                if name == "writer" and late.ticket is None:
                    late.ticket = asked.decoder.submit(Wish(short, 2), told(late, "late"))

            return take

        asked.decoder.submit(Wish(long, 2), told(reader, "long"))
        asked.decoder.submit(Wish(subject.prompt("Go on."), 100), told(writer, "writer"))
        asked.start()
        for answer in (reader, writer, late):
            answer.wait()

    assert order.index("late") < order.index("long")
    assert reader.tokens == subject.generated(long, 2)
    assert late.tokens == subject.generated(short, 2)


def test_model_without_eyes() -> None:
    """A model for text alone, with its own head and cap, answers as transformers does and refuses pictures."""
    subject = blind()
    prompts = [subject.prompt(subject.words(count, seed=count)) for count in (5, 2 * WINDOW)]
    with asking(subject) as asked:
        answers = [asked.ask(prompt, 16, top_logprobs=0) for prompt in prompts]
        tokens = [answer.wait().tokens for answer in answers]
        with pytest.raises(NotSupported, match="cannot see"):
            asked.ask(seeing().prompt(1, "What is this?"))

    assert tokens == [subject.generated(prompt, 16) for prompt in prompts]
    expected = subject.logits(prompts[0], tokens[0]).log_softmax(-1)
    said = [token.logprob for token in answers[0].said]
    assert said == pytest.approx(
        [float(line[token]) for line, token in zip(expected, tokens[0], strict=False)], abs=1e-4
    )


def test_fewer_bits() -> None:
    """In bfloat16 a shared and batched answer is the one of float32 within its rounding."""
    subject, exact = demo(torch.bfloat16), demo()
    prompts = [subject.prompt(1, text) for text in (SHAPE, "Describe the image.", "What is the network?")]
    with asking(subject) as asked:
        answers = [asked.ask(prompt, 12, top_logprobs=0) for prompt in prompts]
        said = [[token.logprob for token in answer.wait().said] for answer in answers]

    for prompt, answer, logprobs in zip(prompts, answers, said, strict=True):
        lines = exact.logits(prompt, answer.tokens).log_softmax(-1)
        expected = [float(line[token]) for line, token in zip(lines, answer.tokens, strict=False)]
        assert logprobs == pytest.approx(expected, abs=0.1)


# --- what is shared ------------------------------------------------------------------------------------------------


def test_second_question_about_a_picture() -> None:
    """It reads its own words only, and its answer is the one it would have had first."""
    subject = seeing()
    first, second = (subject.prompt("Be brief.", 1, subject.words(20, seed=seed)) for seed in (1, 2))
    with asking(subject) as asked:
        asked.ask(first).wait()
        answer = asked.ask(second).wait()

    spent = answer.end.spent
    assert answer.tokens == subject.generated(second, 16)
    assert spent.encodes == 0
    assert spent.cached > first.pictures[0].start + 16


def test_picture_after_a_known_beginning() -> None:
    """A new picture behind tokens that are known sees itself both ways, beyond the window too."""
    subject = seeing()
    words = subject.words(2 * WINDOW)
    with asking(subject) as asked:
        asked.ask(subject.prompt(1, words)).wait()
        prompt = subject.prompt(1, words, 2, "Compare.")
        answer = asked.ask(prompt).wait()

    assert answer.tokens == subject.generated(prompt, 16)
    assert answer.end.spent.cached > 2 * WINDOW
    assert answer.end.spent.encodes == 1


def test_other_picture_is_not_taken_for_known() -> None:
    """Two prompts with the same ids and different pictures share what stands before the picture, and no more."""
    subject = seeing()
    one, other = subject.prompt("Look.", 1, "Well?"), subject.prompt("Look.", 2, "Well?")
    assert one.ids == other.ids
    with asking(subject) as asked:
        asked.ask(one).wait()
        answer = asked.ask(other).wait()

    assert answer.tokens == subject.generated(other, 16)
    assert answer.end.spent.cached == other.pictures[0].start
    assert answer.end.spent.encodes == 1


def test_the_same_question_again() -> None:
    """A prompt that is known whole is answered from all of it but its last token."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(10))
    with asking(subject) as asked:
        first, again = asked.ask(prompt).wait(), asked.ask(prompt).wait()

    assert first.tokens == again.tokens == subject.generated(prompt, 16)
    assert again.end.spent.cached == len(prompt.ids) - 1


def test_next_turn() -> None:
    """A conversation goes on from the answer it was given, which is not read again."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(10))
    with asking(subject) as asked:
        said = asked.ask(prompt, 12).wait().tokens
        more = ids(subject, "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n")
        turn = Prompt((*prompt.ids, *said, *more), prompt.pictures, prompt.image_tokens)
        answer = asked.ask(turn, 12).wait()

    assert answer.tokens == subject.generated(turn, 12)
    assert answer.end.spent.cached == len(prompt.ids) + len(said) - 1  # the last word was never read


def test_questions_that_come_together() -> None:
    """What they share is computed once: the first reads it, the others wait for that and copy."""
    subject = seeing()
    prompts = [subject.prompt("System text.", 1, subject.words(10 + seed, seed=seed)) for seed in range(4)]
    with asking(subject, started=False) as asked:
        answers = [asked.ask(prompt) for prompt in prompts]
        asked.start()
        spent = [answer.end.spent for answer in answers]
        assert asked.vision is not None
        assert asked.vision.encodes == 1

    shared = prompts[0].pictures[0].start + 16
    assert spent[0].cached == 0
    assert all(one.cached > shared for one in spent[1:])
    assert [answer.tokens for answer in answers] == [subject.generated(prompt, 16) for prompt in prompts]


def test_store_is_bounded() -> None:
    """What ended conversations left takes no more than it may; the oldest goes first, what two share is held once."""
    subject = seeing()
    prompts = [subject.prompt(subject.words(40, seed=seed)) for seed in range(6)]
    token = 4 * 2 * 2 * 32 * 4  # layers, keys and values, heads, head size, bytes
    limit = 150 * token
    with asking(subject, kept_bytes=limit) as asked:
        for prompt in prompts:
            asked.ask(prompt, 4).wait()
            assert 0 < asked.settled().kept <= limit
        latest, oldest = asked.ask(prompts[-1], 4).end.spent, asked.ask(prompts[0], 4).end.spent
    with asking(subject) as asked:
        for seed in (1, 2):
            asked.ask(subject.prompt(7, subject.words(30, seed=seed)), 4).wait()
        held = asked.settled().kept

    assert latest.cached == len(prompts[-1].ids) - 1
    assert oldest.cached < 10
    alone = len(subject.prompt(7, subject.words(30)).ids) + 3
    assert alone * token < held < (2 * alone - 16) * token


def test_nothing_is_kept() -> None:
    """With no room for it, nothing is remembered, and every answer is as right."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(10))
    with asking(subject, kept_bytes=0) as asked:
        asked.ask(prompt).wait()
        answer = asked.ask(prompt).wait()

    assert answer.end.spent.cached == 0
    assert answer.tokens == subject.generated(prompt, 16)


@pytest.mark.parametrize("seed", [0, 1])
def test_busy_hour(seed: int) -> None:
    """Questions that begin alike or not come and are cancelled at random, with little memory: every answer is right."""
    subject, chance = seeing(), random.Random(seed)
    asked_for = []
    with asking(subject, slots=3, chunk=chance.choice([7, 60]), kept_bytes=200 * 2048) as asked:
        for _ in range(12):
            parts: list[str | int] = []
            for _ in range(chance.randint(1, 3)):
                words = subject.words(chance.choice([3, 40, 90]), seed=chance.randint(0, 1))
                parts.append(chance.randint(0, 2) if chance.random() < 0.5 else words)
            prompt, length = subject.prompt(*parts, "Well?"), chance.randint(1, 12)
            answer = asked.ask(prompt, length)
            asked_for.append((prompt, length, answer))
            sleep(chance.choice([0, 0, 0.03]))
            if chance.random() < 0.15 and answer.ticket is not None:
                answer.ticket.cancel()
        ended = [answer.end for _, _, answer in asked_for]

    for (prompt, length, answer), end in zip(asked_for, ended, strict=True):
        expected = subject.generated(prompt, length)
        assert answer.tokens == (expected[: len(answer.tokens)] if end.finish == "cancelled" else expected)


# --- labels --------------------------------------------------------------------------------------------------------


def cold(subject: Subject, prompt: Prompt, label: Sequence[int]) -> float:
    """log P of a label by a pass of its own through transformers' model."""
    lines = subject.logits(prompt, label)[:-1].log_softmax(-1)
    return float(sum(line[token] for line, token in zip(lines, label, strict=True)))


@pytest.mark.parametrize("length", [5, WINDOW - 12, 3 * WINDOW])
def test_label_scores(length: int) -> None:
    """All labels in one pass have the log-probabilities that each has in a pass of its own, at the window's edge."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(length))
    labels = [(*ids(subject, text), 7) for text in ("round", "oval and long", "irregular", "a")]
    labels.append((7,))
    with asking(subject) as asked:
        scores = asked.score(prompt, labels).scores
        again = asked.score(prompt, labels).scores

    expected = [cold(subject, prompt, label) for label in labels]
    assert list(scores.logprobs) == pytest.approx(expected, abs=1e-4)
    assert list(again.logprobs) == pytest.approx(expected, abs=1e-4)
    assert (scores.spent.prompt, scores.spent.encodes, again.spent.encodes) == (len(prompt.ids), 1, 0)
    assert again.spent.cached == len(prompt.ids) - 1


def test_label_scores_without_banned_tokens() -> None:
    """They are those of a model that cannot say these tokens, at any place."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(20))
    label = (*ids(subject, "oval and long"), 7)
    lines = subject.logits(prompt, label)[:-1].clone()
    banned = tuple(token for token in set(lines.argmax(-1).tolist()) if token not in label)
    with asking(subject) as asked:
        scores = asked.score(prompt, [label], banned=banned).scores

    lines[:, list(banned)] = float("-inf")
    expected = sum(line[token] for line, token in zip(lines.log_softmax(-1), label, strict=True))
    assert banned
    assert scores.logprobs[0] == pytest.approx(float(expected), abs=1e-4)
    assert scores.logprobs[0] > cold(subject, prompt, label) + 1e-3


def test_more_labels_than_fit_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are weighed in several, and an answer that is asked for at the same time is not disturbed."""
    monkeypatch.setattr(passes, "WEIGHED", 3)
    subject = seeing()
    prompt = subject.prompt(1, subject.words(20))
    labels = [(*ids(subject, text), 7) for text in ("round", "oval and very long indeed", "irregular", "a b c")]
    with asking(subject, started=False) as asked:
        scored, answer = asked.score(prompt, labels), asked.ask(prompt)
        asked.start()
        logprobs = scored.scores.logprobs
        answer.wait()

    assert list(logprobs) == pytest.approx([cold(subject, prompt, label) for label in labels], abs=1e-4)
    assert answer.tokens == subject.generated(prompt, 16)


def test_labels_that_cannot_be_scored() -> None:
    """No labels, an empty one, or one beyond the context: refused at once, with the field at fault."""
    subject = seeing()
    prompt = subject.prompt("Which?")
    with asking(subject, context=len(prompt.ids) + 3) as asked:
        for labels in ([], [()]):
            with pytest.raises(InvalidRequest, match="labels"):
                asked.score(prompt, labels)
        with pytest.raises(ContextOverflow):
            asked.score(prompt, [(5, 6, 7, 8)])


# --- sampling and log-probabilities -----------------------------------------------------------------------------------


def test_seed_decides_whatever_else_is_asked(trained: Asked) -> None:
    """The same seed draws the same answer alone and in company; another seed another."""
    subject = trained.subject
    prompt = subject.prompt("Tell me about the skin.")
    wish = {"sampling": Sampling(temperature=1.5, seed=3)}
    alone = trained.ask(prompt, 20, **wish).wait().tokens
    company = [
        trained.ask(subject.prompt(number, "Describe it."), 30, sampling=Sampling(temperature=1.0, seed=number))
        for number in range(2)
    ]
    together = trained.ask(prompt, 20, **wish).wait().tokens
    other = trained.ask(prompt, 20, sampling=Sampling(temperature=1.5, seed=4)).wait().tokens
    for answer in company:
        answer.wait()

    assert alone == together
    assert alone != other


def test_no_seed_draws_anew(trained: Asked) -> None:
    """Without a seed two answers differ."""
    prompt = trained.subject.prompt("Tell me about the skin.")
    hot = {"sampling": Sampling(temperature=2.0)}

    assert trained.ask(prompt, 20, **hot).wait().tokens != trained.ask(prompt, 20, **hot).wait().tokens


def test_repetition_penalty() -> None:
    """It is the one of transformers, the prompt's words included."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(20))
    with asking(subject) as asked:
        answer = asked.ask(prompt, 24, sampling=Sampling(repetition_penalty=1.3)).wait()

    assert answer.tokens == subject.generated(prompt, 24, repetition_penalty=1.3)
    assert answer.tokens != subject.generated(prompt, 24)


def test_presence_and_frequency_penalties() -> None:
    """They count the answer's own words, as OpenAI defines them: once, and for each time."""
    subject = seeing()
    prompt = subject.prompt(subject.words(20))
    with asking(subject) as asked:
        answer = asked.ask(prompt, 24, sampling=Sampling(presence_penalty=0.4, frequency_penalty=0.3)).wait()

    said: list[int] = []
    for _ in answer.tokens:
        logits = subject.logits(prompt, said)[-1].clone()
        for token in set(said):
            logits[token] -= 0.4 + 0.3 * said.count(token)
        said.append(int(logits.argmax()))
    assert answer.tokens == said
    assert said != subject.generated(prompt, 24)


def test_banned_tokens(trained: Asked) -> None:
    """They are never said; all else is as if their logits were minus infinity."""
    subject = trained.subject
    prompt = subject.prompt(1, SHAPE)
    free = trained.ask(prompt, 4).wait().tokens

    answer = trained.ask(prompt, 8, banned=(free[0],)).wait()

    assert free[0] not in answer.tokens
    assert answer.tokens == subject.generated(prompt, 8, suppress_tokens=[free[0]])


def test_logprobs(trained: Asked) -> None:
    """Each token's log-probability and its alternatives are those of transformers' raw logits, whatever is drawn."""
    subject = trained.subject
    prompt = subject.prompt(1, "Describe the image.")
    answer = trained.ask(prompt, 8, top_logprobs=3, sampling=Sampling(temperature=1.2, seed=1), banned=(20,)).wait()

    expected = subject.logits(prompt, answer.tokens).log_softmax(-1)
    for token, line in zip(answer.said, expected, strict=False):
        best = line.topk(3)
        assert token.logprob == pytest.approx(float(line[token.id]), abs=1e-4)
        assert [one.logprob for one in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [one.piece for one in token.top] == [subject.tokenizer.decode([one]) for one in best.indices.tolist()]
    assert len(answer.said) > 1


# --- form and end ---------------------------------------------------------------------------------------------------


def test_schema(trained: Asked) -> None:
    """The answer is JSON that fits, laid out with ", " and ": "; chance cannot break it."""
    grammar = trained.decoder.grammars.schema(SCHEMA)
    prompt = trained.subject.prompt(1, "Answer as JSON.")
    answers = [
        trained.ask(prompt, 60, grammar=grammar, sampling=Sampling(temperature=2.0, seed=seed)) for seed in range(6)
    ]
    for answer in answers:
        said = json.loads(answer.wait().text)

        assert answer.end.finish == "stop"
        assert answer.text == json.dumps(said)
        assert said["shape"] in {"round", "oval"}
        assert isinstance(said["even"], bool)


def test_choices(trained: Asked) -> None:
    """The answer is one of the choices word for word, one that another begins with included."""
    choices = ("mel", "melanoma", 'a "naevus"\n', "à la carte")
    grammar = trained.decoder.grammars.choices(choices)
    prompt = trained.subject.prompt(1, "Which one?")
    answers = [
        trained.ask(prompt, 40, grammar=grammar, sampling=Sampling(temperature=2.0, seed=seed)) for seed in range(16)
    ]
    texts = {answer.wait().text for answer in answers}

    assert texts <= set(choices)
    assert len(texts) > 1


def test_form_is_ready_before_its_answer_begins(monkeypatch: pytest.MonkeyPatch, trained: Asked) -> None:
    """Whoever asks for it waits until it is made, and not those who are being answered; two answers share nothing."""
    grammar = trained.decoder.grammars.schema(SCHEMA)
    monkeypatch.setattr(llguidance, "LLMatcher", None)
    prompt = trained.subject.prompt(1, "Answer as JSON.")
    answers = [
        trained.ask(prompt, 60, grammar=grammar, sampling=Sampling(temperature=2.0, seed=seed)) for seed in range(3)
    ]

    assert all(json.loads(answer.wait().text).keys() >= {"shape", "even"} for answer in answers)


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda decoder: decoder.grammars.schema({"type": "object", "properties": 3}), "schema"),
        (lambda decoder: decoder.grammars.schema({"$ref": "#/nowhere"}), "schema"),
        (lambda decoder: decoder.grammars.choices(()), "choices"),
    ],
)
def test_form_that_cannot_be_enforced(trained: Asked, make: Any, param: str) -> None:
    """It is refused before anything is computed."""
    with pytest.raises(InvalidRequest) as refused:
        make(trained.decoder)

    assert refused.value.param == param


def test_stop_text(trained: Asked) -> None:
    """The answer ends before a stop text that several tokens spell together, and nothing of it was shown."""
    subject = trained.subject
    prompt = subject.prompt("Who are you?")
    free = trained.ask(prompt, 40).wait().text
    stop = free[6:16]
    assert len(ids(subject, stop)) > 2

    answer = trained.ask(prompt, 40, stop=("never said", stop)).wait()

    assert answer.text == free[: free.index(stop)]
    assert answer.end.finish == "stop"
    assert len(answer.tokens) < len(trained.ask(prompt, 40).wait().tokens)


def test_beginning_of_a_stop_text_is_shown_after_all(trained: Asked) -> None:
    """What was held back because a stop text might have begun belongs to the answer when it has not."""
    prompt = trained.subject.prompt("Who are you?")
    free = trained.ask(prompt, 40).wait().text

    answer = trained.ask(prompt, 40, stop=(free[-3:] + "never",)).wait()

    assert answer.text == free
    assert answer.end.text == free[-3:]


@pytest.mark.parametrize("named", [1, [1], None])
def test_end_of_turn_ends_an_answer(monkeypatch: pytest.MonkeyPatch, named: int | list[int] | None) -> None:
    """Also where the weights' own settings do not name it: the model would go on to speak as the user."""
    subject = demo()
    prompt = subject.prompt("Who are you?")
    expected = subject.generated(prompt, 40)
    monkeypatch.setattr(subject.model.generation_config, "eos_token_id", named)
    with asking(subject) as asked:
        answer = asked.ask(prompt, 40).wait()

    assert answer.tokens == expected
    assert answer.end.finish == "stop"


def test_limits() -> None:
    """An answer ends at its own limit, or where the context is full, and says so; a longer prompt is refused."""
    subject = seeing()
    prompt = subject.prompt(subject.words(10))
    context = len(prompt.ids) + 5
    with asking(subject, context=context) as asked:
        short, full = asked.ask(prompt, 2), asked.ask(prompt, 50)
        assert (short.end.finish, len(short.tokens)) == ("length", 2)
        assert (full.end.finish, len(full.tokens)) == ("length", 5)
        with pytest.raises(ContextOverflow, match=str(context)) as refused:
            asked.ask(subject.prompt(subject.words(40)))

    assert refused.value.param == "messages"
    assert full.tokens == subject.generated(prompt, 5)


# --- ending early and failing -----------------------------------------------------------------------------------------


def test_cancel() -> None:
    """A cancelled answer writes at most one more token; the others and the next one are as they should be."""
    subject = seeing()
    prompts = [subject.prompt(number, subject.words(20, seed=number)) for number in range(3)]
    with asking(subject, started=False) as asked:
        gone = Answer()

        def hang_up(event: Event) -> None:
            gone.take(event)
            if len(gone.tokens) == 3 and gone.ticket is not None:
                gone.ticket.cancel()

        gone.ticket = asked.decoder.submit(Wish(prompts[0], 500), hang_up)
        stays = asked.ask(prompts[1], 30)
        asked.start()
        assert gone.end.finish == "cancelled"
        assert len(gone.tokens) <= 4
        after = asked.ask(prompts[2], 30).wait()
        assert stays.wait().tokens == subject.generated(prompts[1], 30)
        assert after.tokens == subject.generated(prompts[2], 30)
        assert asked.settled().live == 0


def test_cancel_one_of_equals() -> None:
    """Of two who wait with the same question about the same picture, the one that leaves is the one that left."""
    subject = seeing()
    with asking(subject, started=False, slots=1) as asked:
        first, second, third = (asked.ask(subject.prompt(1, "What is it?"), 4) for _ in range(3))
        assert third.ticket is not None
        third.ticket.cancel()
        asked.start()

        assert third.end.finish == "cancelled"
        assert first.wait().tokens == second.wait().tokens == subject.generated(subject.prompt(1, "What is it?"), 4)


def test_cancel_while_pictures_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is encoded any more for who has left: pictures are encoded as they are read."""
    subject = seeing()
    with asking(subject, started=False, chunk=20) as asked:
        assert asked.vision is not None
        encode = asked.vision._encoded
        answer = asked.ask(subject.prompt(1, 2, 3, 4, 5, 6))

        def leaving(picture: Picture) -> torch.Tensor:
            assert answer.ticket is not None
            answer.ticket.cancel()
            return encode(picture)

        monkeypatch.setattr(asked.vision, "_encoded", leaving)
        asked.start()

        assert answer.end.finish == "cancelled"
        assert answer.end.spent.encodes == asked.vision.encodes == 1


def test_cancel_before_its_turn() -> None:
    """A request that waits for a slot can be cancelled, and never gets one."""
    subject = seeing()
    with asking(subject, started=False, slots=1) as asked:
        first, second = asked.ask(subject.prompt("One.")), asked.ask(subject.prompt("Two."))
        assert second.ticket is not None
        second.ticket.cancel()
        asked.start()

        assert second.end.finish == "cancelled"
        assert second.tokens == []
        assert first.end.finish in {"stop", "length"}


def test_grammar_that_fails(trained: Asked) -> None:
    """One row whose grammar breaks down fails by itself."""
    subject = trained.subject
    broken = trained.ask(subject.prompt("One."), 20, grammar="%llguidance {}\nstart: missing")
    fine = trained.ask(subject.prompt("Who are you?"), 20)

    assert isinstance(broken.failure.error, EngineError)
    assert fine.wait().tokens == subject.generated(subject.prompt("Who are you?"), 20)


def test_form_that_leaves_no_word(trained: Asked) -> None:
    """When all that the form allows is banned, the request fails: nothing else is said in its place."""
    subject = trained.subject
    grammar = trained.decoder.grammars.choices(("7",))
    every = tuple(token for token, piece in enumerate(map(subject.tokenizer.decode, range(1536))) if "7" in piece)
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=1)):
        answer = trained.ask(subject.prompt("Which?"), 8, grammar=grammar, banned=every, sampling=sampling)

        assert isinstance(answer.failure.error, EngineError)
        assert answer.text == ""


def test_numbers_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose network gives no numbers fails, and whoever gets its slot next is not touched by what it left."""
    subject = seeing()
    bad, good = subject.prompt(subject.words(80)), subject.prompt(subject.words(30, seed=1))
    with asking(subject, slots=1, kept_bytes=0) as asked:
        network = asked.decoder._network
        embed = network.embed
        with monkeypatch.context() as patched:
            patched.setattr(network, "embed", lambda tokens: embed(tokens) * float("nan"))
            assert "finite" in asked.ask(bad).failure.error.message
        answer = asked.ask(good).wait()

    assert answer.tokens == subject.generated(good, 16)


@pytest.mark.parametrize("step", ["read", "write", "weigh"])
def test_memory_runs_out(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The newest request gives way with the remedy, the others are answered, and the decoder serves on."""
    subject = seeing()
    prompts = [subject.prompt(subject.words(20, seed=seed)) for seed in range(2)]
    labels = [(*ids(subject, "round"), 7), (7,)]
    work = getattr(passes, step)
    with asking(subject, started=False) as asked:

        def full(*args: Any, **kwargs: Any) -> Any:
            if step == "weigh" or asked.decoder.live == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return work(*args, **kwargs)

        monkeypatch.setattr(passes, step, full)
        older = asked.ask(prompts[0])
        newer = asked.score(prompts[1], labels) if step == "weigh" else asked.ask(prompts[1])
        asked.start()
        error = newer.failure.error
        assert isinstance(error, DeviceFull)
        assert "slots" in error.message
        assert older.wait().tokens == subject.generated(prompts[0], 16)
        monkeypatch.undo()
        assert asked.ask(prompts[1]).wait().tokens == subject.generated(prompts[1], 16)


def test_memory_of_ended_conversations_is_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out, what is only kept goes, and nobody has to fail."""
    subject = seeing()
    first, second = (subject.prompt(subject.words(20, seed=seed)) for seed in range(2))
    write = passes.write
    with asking(subject) as asked:
        asked.ask(first).wait()
        assert asked.settled().kept

        def tight(*args: Any, **kwargs: Any) -> Any:
            if asked.decoder.kept:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return write(*args, **kwargs)

        monkeypatch.setattr(passes, "write", tight)
        assert asked.ask(second).wait().tokens == subject.generated(second, 16)


def test_memory_runs_out_while_an_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer was complete, and those beside it miss no word."""
    subject = seeing()
    prompts = [subject.prompt(subject.words(20, seed=seed)) for seed in range(3)]
    with asking(subject, started=False) as asked:

        def full(*_: Any) -> Any:
            asked.decoder._prefixes.bytes += 1  # so that there is something to give up
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(asked.decoder._slots, "segment", full)
        answers = [asked.ask(prompt, tokens) for prompt, tokens in zip(prompts, (4, 12, 12), strict=True)]
        asked.start()
        tokens = [answer.wait().tokens for answer in answers]
        asked.settled()

    assert tokens == [subject.generated(prompts[0], 4), *(subject.generated(prompt, 12) for prompt in prompts[1:])]
    assert all(isinstance(answer.events[-1], End) for answer in answers)


def test_word_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It fails its own answer and no other."""
    subject = seeing()
    prompts = [subject.prompt("One."), subject.prompt("Two and more.")]
    say = Writer.say
    with asking(subject, started=False) as asked:

        def broken(row: Writer, choice: Choice) -> None:
            if row.prompt is prompts[0] and row.said == 3:
                raise RuntimeError("no such word")
            say(row, choice)

        monkeypatch.setattr(Writer, "say", broken)
        failing, fine = (asked.ask(prompt) for prompt in prompts)
        asked.start()

        assert isinstance(failing.failure.error, EngineError)
        assert fine.wait().tokens == subject.generated(prompts[1], 16)
    assert "no such word" in caplog.text


def test_slots_that_do_not_fit() -> None:
    """It is said before anything is answered, with what to set."""
    with pytest.raises(ModelFailed, match="slots` or `context"), asking(seeing(), slots=64, context=10**11):
        pass


def test_unforeseen_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It fails the requests of its pass, is written to the log, and the decoder serves on."""
    subject = seeing()
    prompt = subject.prompt("One.")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes differ")

    with asking(subject) as asked:
        with monkeypatch.context() as patched:
            patched.setattr(passes, "write", broken)
            failure = asked.ask(prompt).failure
        answer = asked.ask(prompt).wait()

    assert isinstance(failure.error, EngineError)
    assert "shapes differ" not in failure.error.message
    assert "shapes differ" in caplog.text
    assert answer.tokens == subject.generated(prompt, 16)


def test_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the device is gone for good everybody is told, and `run` raises, so that the process can end."""
    subject = seeing()

    def lost(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with asking(subject, started=False) as asked:
        monkeypatch.setattr(passes, "read", lost)
        answer = asked.ask(subject.prompt("One."))
        with pytest.raises(torch.AcceleratorError):
            asked.decoder.run()
        assert answer.failure.error.code == "worker_crashed"
        with pytest.raises(ServiceStopping):
            asked.ask(subject.prompt("Two."))


def test_close() -> None:
    """Whoever is not answered when the decoder is closed is told so, and nobody can join any more."""
    subject = seeing()
    with asking(subject, started=False, slots=1) as asked:
        answers = [asked.ask(subject.prompt(text), 500) for text in ("One.", "Two.")]
        asked.decoder.close()
        asked.start()

        for answer in answers:
            assert isinstance(answer.failure.error, ServiceStopping)
        with pytest.raises(ServiceStopping):
            asked.ask(subject.prompt("Three."))


# --- the wrong mask -------------------------------------------------------------------------------------------------


def test_causal_images() -> None:
    """Pictures masked causally give what transformers gives without token types, and not the right answer."""
    subject = seeing()
    prompt = subject.prompt(1, subject.words(20))
    with asking(subject, causal_images=True) as asked:
        answer = asked.ask(prompt, 8, top_logprobs=0).wait()
        scores = asked.score(prompt, [(answer.tokens[0],)]).scores

    wrong, right = (subject.logits(prompt, answer.tokens, types=types).log_softmax(-1) for types in (False, True))
    said = [token.logprob for token in answer.said]
    assert answer.tokens == subject.generated(prompt, 8, types=False) != subject.generated(prompt, 8)
    assert said == pytest.approx(
        [float(line[token]) for line, token in zip(wrong, answer.tokens, strict=False)], abs=1e-4
    )
    assert scores.logprobs[0] == pytest.approx(said[0], abs=1e-4)
    assert scores.logprobs[0] != pytest.approx(float(right[0, answer.tokens[0]]), abs=1e-3)


def test_attention_that_takes_other_masks() -> None:
    """A model loaded for another kind of attention is refused: its masks would be misread silently."""
    subject = seeing()
    config = subject.model.config.get_text_config()
    config._attn_implementation = "eager"
    try:
        with pytest.raises(ModelFailed, match="sdpa"), asking(subject):
            pass
    finally:
        config._attn_implementation = "sdpa"
