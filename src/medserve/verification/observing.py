"""What one engine does with the pictures and conversations of a verification, seen from outside and in its own numbers.

Questions are asked one at a time: two that are computed together may differ in the last bits of their probabilities.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import Literal
from uuid import uuid4

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medserve import sight
from medserve.certificates import Speed
from medserve.engines import Engine, ShowsPicture, ShowsPrompt
from medserve.errors import ContextOverflow, ModelBlind, NotSupported
from medserve.generation import GenerationRequest, Message, Result, Usage, collect
from medserve.images import Image, Source
from medserve.imaging import raster
from medserve.settings import Limits
from medserve.threads import in_thread
from medserve.verification.questions import Conversation, Question

Matter = Image | str
"""What a question is about: a picture, or for a model without vision a text."""
Say = Callable[[str], None]

WORDS = 64
"""Tokens of the answers by whose speed an engine is judged."""
SENTENCES = 40
"""Of the text by whose reading an engine's speed is judged: about six hundred tokens."""
REPEATS = 3
PATIENCE = 5.0
"""Seconds from which on a measurement is not repeated: a large model on a processor takes a minute for a picture."""
ANSWER_TOKENS = 12
"""The longest answer to a closed question, where an engine cannot score labels."""
ALTERNATIVES = 5


@dataclass(frozen=True)
class Answer:
    """Which label an engine preferred, and the log-probabilities of the labels as far as it tells them."""

    best: str
    logprobs: Mapping[str, float]


@dataclass(frozen=True)
class Prompted:
    """What an engine read of a conversation: ids where it shows them (a picture is one None), and tokens it counted."""

    ids: tuple[int | None, ...] | None
    tokens: int


@dataclass(frozen=True)
class Eyes:
    """Whether an engine sees: tokens of a picture and distance of two answers, or why not (`fault`)."""

    image_tokens: int = 0
    distance: float = 0.0
    fault: str = ""


async def eyes(engine: Engine) -> Eyes:
    """The sight test of every load, whose reason is kept in place of raised."""
    if engine.capabilities.vision is None:
        return Eyes(fault=f"{engine.name} takes no images: it was loaded without its vision part")
    drawings = [await raster.read(await in_thread(path.read_bytes), Limits()) for path in sight.DRAWINGS]
    try:
        found = await sight.check(engine, (drawings[0], drawings[1]))
    except (ModelBlind, NotSupported) as error:
        return Eyes(fault=error.message)
    return Eyes(found.image_tokens, found.distance)


async def handed(engine: Engine, image: Image) -> NDArray[np.uint8] | None:
    """The picture as the engine hands it to the model, uint8 [height, width, 3]; None where it does not show it."""
    if not isinstance(engine, ShowsPicture):
        return None
    return np.asarray(PIL.Image.open(BytesIO(await engine.shown(image))).convert("RGB"))


async def prompted(engine: Engine, conversation: Conversation) -> Prompted:
    """What it reads of a conversation."""
    ids = await engine.prompt_ids(conversation.request) if isinstance(engine, ShowsPrompt) else None
    return Prompted(ids, (await collect(engine.stream(conversation.request))).usage.prompt)


async def answers(
    engine: Engine, matters: Sequence[Matter], questions: Sequence[Question], *, scored: bool, say: Say
) -> list[Answer]:
    """An answer for every matter and question, in their order; `scored` is how both sides are asked."""
    found: list[Answer] = []
    for number, matter in enumerate(matters, 1):
        say(f"{number} of {len(matters)}")
        found += [await _answer(engine, matter, question, scored=scored) for question in questions]
    return found


async def _answer(engine: Engine, matter: Matter, question: Question, *, scored: bool) -> Answer:
    parts = (f"{matter}\n\n{question.text}",) if isinstance(matter, str) else (matter, question.text)
    messages = (Message("user", parts),)
    if scored:
        scores = await engine.score(GenerationRequest(messages), question.labels)
        return Answer(scores.best, scores.logprobs)
    detail = ALTERNATIVES if engine.capabilities.logprobs else None
    silent = 0 if engine.capabilities.thinking else None  # a model that thinks unasked would get no further
    request = GenerationRequest(messages, ANSWER_TOKENS, top_logprobs=detail, thinking=silent)
    return _spoken(await collect(engine.stream(request)), question)


def _spoken(said: Result, question: Question) -> Answer:
    """The answer in words; the label that it is, or its words where it is none, with the sum of its tokens' logs."""
    words = said.text.strip().rstrip(".").lower()
    best = next((label for label in question.labels if label.lower() == words), words)
    return Answer(best, {best: sum(token.logprob for token in said.logprobs)} if said.logprobs else {})


# --- speed ----------------------------------------------------------------------------------------------------------


async def speed(engine: Engine, side: Literal["subject", "reference"]) -> Speed:
    """How fast it is by its own clock, with nothing else to do and nothing to reuse."""
    try:
        read = await _fastest(lambda: _timed(engine, 1, _long_text()))
        written = await _fastest(lambda: _timed(engine, WORDS, "Describe a normal chest X-ray in full sentences."))
        looks = engine.capabilities.vision is not None
        seen = await _fastest(lambda: _timed(engine, 1, _noise(), "Describe the image.")) if looks else None
    except ContextOverflow:
        return Speed(side=side, reason="the context is too small for the text that is read for this")
    if not read.timings.prompt:
        return Speed(side=side, reason="the engine does not tell how long it worked")
    prompt = _rate(_read(read.usage), read.timings.prompt)
    encoding = _encoding(seen, prompt) if seen else None
    why = "it could not be told from the reading of words" if seen else "the model has no vision part"
    return Speed(
        side=side,
        encode_seconds=encoding,
        prompt_tokens=prompt,
        answer_tokens=_rate(written.usage.completion, written.timings.completion),
        reason="" if encoding else f"no seconds a picture: {why}",
    )


async def _fastest(ask: Callable[[], Awaitable[Result]]) -> Result:
    """The quickest of a few, asked again for as long as that takes little: others may share the machine."""
    began, found = perf_counter(), [await ask()]
    while len(found) < REPEATS and perf_counter() - began < PATIENCE:
        found.append(await ask())
    return min(found, key=lambda result: result.timings.prompt + result.timings.completion)


async def _timed(engine: Engine, tokens: int, *parts: Matter) -> Result:
    return await collect(engine.stream(GenerationRequest((Message("user", parts),), tokens)))


def _encoding(seen: Result, prompt: float | None) -> float | None:
    """Seconds of one picture: what the prompt took beyond the reading of its tokens."""
    if seen.usage.encodes != 1 or not prompt:
        return None
    seconds = seen.timings.prompt - _read(seen.usage) / prompt
    return seconds if seconds > 0 else None


def _read(usage: Usage) -> int:
    return usage.prompt - usage.cached


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _long_text() -> str:
    """A text that nobody has read: its first word is another each time."""
    findings = [f"Finding {number}: no focal abnormality is seen in region {number}." for number in range(SENTENCES)]
    return " ".join([uuid4().hex, *findings])


def _noise() -> Image:
    """A picture that nobody has seen."""
    pixels = np.random.default_rng().integers(0, 256, (96, 128, 3), np.uint8)
    return Image(pixels, Source("PNG", "RGB", 128, 96))
