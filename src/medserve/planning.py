"""Whether a study fits into a model's context is known before anything is sent; a refusal says what would fit."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from medserve import thinking
from medserve.errors import ContextOverflow
from medserve.generation import GenerationRequest

SLACK = 16
"""Tokens of the turn format around a question: begin and end marks, roles, line breaks."""

CHARACTERS = 16
"""Characters of text that one token stands for at most, over a sentence: Gemma's tokens have 4 on average.

No bound for every text: single tokens are longer, of one repeated character above all, so runs of it count as one.
"""
_RUN = re.compile(r"(.)\1+", re.DOTALL)


def fewest_tokens(text: str) -> int:
    """Tokens that a text of words has at least, guessed low without a tokenizer: a plan refuses the hopeless only."""
    return -(-len(_RUN.sub(r"\1", text)) // CHARACTERS)


MARKS = 4
"""Tokens around a picture in Gemma's prompts: its begin and end marks and the line breaks beside them."""

LABEL_TOKENS = 6
"""Most tokens of a label such as "SLICE 85": a word in one or two, a space, and each digit."""

BYTES_PER_TOKEN = 3
"""Of text, estimated low on purpose: Gemma's tokens hold 4 to 5 bytes of English and about 3 of other languages."""

MORE_CONTEXT = "give the model a larger context (`context` in its settings, --context for a GGUF file)"

THOUGHT = "max_tokens.thinking"
"""The `param` of a refusal where it is the thought that does not fit: the part of `max_tokens` that it takes.

Who asked for the question knows in which field the caller wished for it.
"""

_LABEL = re.compile(r"\s*SLICE [0-9]{1,4}\s*")

Count = Callable[[str], Awaitable[int]]
"""The exact number of a text's tokens, from an engine that can say it."""


@dataclass(frozen=True)
class Room:
    """What a prompt with pictures takes of a context: all in tokens. `each` is one picture with its label."""

    context: int
    each: int
    text: int
    answer: int

    @property
    def taken(self) -> int:
        """Tokens without any picture."""
        return self.text + self.answer + SLACK

    @property
    def pictures(self) -> int:
        """How many pictures fit; 0 where the words alone fill the context."""
        return max(0, (self.context - self.taken) // self.each) if self.each else 0

    def needed(self, pictures: int) -> int:
        return self.taken + pictures * self.each


def plan(
    pictures: int,
    *,
    context: int,
    image_tokens: int,
    label_tokens: int = 0,
    text: int,
    answer: int,
    thought: int = 0,
) -> Room:
    """The room that `pictures` have, each of `image_tokens` and a label of `label_tokens`, beside `text` and `answer`.

    `thought` is the part of `answer` that may be thought. Raises ContextOverflow when it does not all fit, which says
    how much would, and names what has to be less: the thought where the rest would fit without it.
    """
    room = Room(context, image_tokens + label_tokens, text, answer)
    excess = room.needed(pictures) - context
    if excess <= 0:
        return room
    over = f"{room.needed(pictures)} tokens are needed and the model's context has {context}"
    if excess <= thought or not pictures or room.taken >= context:
        seen = f", {pictures * room.each} for pictures" if pictures else ""
        thinks = f", {thought} to think" if thought else ""
        fits = f"think for {thought - excess} tokens at most, " if excess <= thought else ""
        parts = {"messages": text, "max_tokens": answer - thought, THOUGHT: thought}
        raise ContextOverflow(
            f"{over}: {text} for the words{seen}{thinks}, {answer - thought} for the answer and {SLACK} to spare; "
            f"{fits}shorten the words, ask for fewer max_tokens, or {MORE_CONTEXT}",
            param=THOUGHT if fits else max(parts, key=lambda part: parts[part]),
        )
    if not room.pictures:
        raise ContextOverflow(
            f"{over}: a single picture takes {room.each}; ask for fewer max_tokens or {MORE_CONTEXT}",
            param="max_tokens",
        )
    raise ContextOverflow(
        f"{over}: {pictures} pictures take {pictures * room.each}; {room.pictures} would fit: "
        f"send fewer slices or {MORE_CONTEXT}",
        param="images",
    )


async def check(request: GenerationRequest, *, context: int, image_tokens: int, count: Count | None = None) -> Room:
    """The room that a request takes; raises ContextOverflow when prompt and answer cannot both fit into `context`.

    Every byte of text is at most one token, so short texts need no counting. Where that bound does not fit, `count`
    decides. Where the engine cannot count, pictures are planned beside an estimate that is rather too large; words
    alone are refused here only if they are hopelessly long, and else left to the engine, which knows.
    """
    request = thinking.instructed(request) if request.thinking else request
    texts = [part for message in request.messages for part in message.parts if isinstance(part, str)]
    labels = [text for text in texts if _LABEL.fullmatch(text)] if request.images else []
    counted = set(labels)
    words = "\n".join(text for text in texts if text not in counted) + request.prefix
    pictures = len(request.images)
    turns = SLACK * (len(request.messages) - 1)
    label = max(labels, key=len, default="")
    room = Room(context, image_tokens + MARKS + len(label), turns + len(words.encode()), request.max_tokens)
    if room.needed(pictures) <= context:
        return room
    return plan(
        pictures,
        context=context,
        image_tokens=image_tokens + MARKS,
        label_tokens=await _label_tokens(label, count),
        text=turns + await _text_tokens(words, pictures, count),
        answer=request.max_tokens,
        thought=request.thinking or 0,
    )


async def _label_tokens(label: str, count: Count | None) -> int:
    if count is None or not label:
        return LABEL_TOKENS if label else 0
    return await count(label)


async def _text_tokens(words: str, pictures: int, count: Count | None) -> int:
    if count is not None:
        return await count(words)
    return estimated(words) if pictures else fewest_tokens(words)


def estimated(text: str) -> int:
    """Tokens of a text without a tokeniser: rather too many than too few, and at least one for each word."""
    return max(len(text.split()), -(-len(text.encode()) // BYTES_PER_TOKEN))
