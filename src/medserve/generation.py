"""What is asked of a model and what comes back, in one vocabulary that every engine speaks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import exp, fsum
from typing import Any, Literal

from medserve.errors import InvalidRequest
from medserve.images import Image

MAX_OUTPUT_TOKENS = 8192
"""The longest answer MedGemma is documented to give (model card, "Inputs and outputs")."""

JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How a schema's JSON is laid out, as llguidance names it: left free, models fall into endless white space, and these
separators are what they learnt."""

Role = Literal["system", "user", "assistant"]
Part = str | Image


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse what lies outside [low, high]; NaN lies outside everything."""
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must lie between {low:g} and {high:g}, not {value!r}", param=name)


@dataclass(frozen=True)
class Message:
    """One turn: a role and its parts, texts and images in the order in which the model reads them."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the default is greedy, as MedGemma 1.5's own generation config is."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        within("temperature", self.temperature, 0.0, 2.0)
        within("top_p", self.top_p, 0.0, 1.0)
        within("top_k", self.top_k, 0, 1_000_000)
        within("min_p", self.min_p, 0.0, 1.0)
        within("repetition_penalty", self.repetition_penalty, 0.1, 10.0)
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            within("seed", self.seed, 0, 2**32 - 1)


GREEDY = Sampling()


@dataclass(frozen=True)
class GenerationRequest:
    """One question to a model: a conversation that ends with the user's turn, and how to answer it.

    `prefix` is a beginning the answer is forced to have (it is part of the answer's text). `schema` (JSON Schema),
    or `choices` (the answer is exactly one of these) constrain the answer; at most one of them may be given, and with a
    prefix they bind what follows it.
    `top_logprobs` asks for log-probabilities of each answer token and of that many alternatives.
    `thinking` is how many tokens of `max_tokens` the model may think for before it answers: 0 forbids it, None leaves
    it to the model's own habit. The constraints above bind the answer and never the thinking.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    sampling: Sampling = GREEDY
    prefix: str = ""
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    top_logprobs: int | None = None
    thinking: int | None = None

    def __post_init__(self) -> None:
        within("max_tokens", self.max_tokens, 1, MAX_OUTPUT_TOKENS)
        if self.thinking is not None:
            within("thinking", self.thinking, 0, self.max_tokens - 1)
        if self.top_logprobs is not None:
            within("top_logprobs", self.top_logprobs, 0, 20)
        if self.schema is not None and self.choices:
            raise InvalidRequest("give a schema or choices, not both", param="schema")
        if any(not choice for choice in self.choices):
            raise InvalidRequest("a choice must not be empty", param="choices")
        if any(not stop for stop in self.stop) or len(self.stop) > 16:
            raise InvalidRequest("stop takes at most 16 strings, none of them empty", param="stop")
        _check_turns(self.messages)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)


def _check_turns(messages: Sequence[Message]) -> None:
    """Gemma's template knows an optional system turn, then user and assistant in turn, the user last."""
    turns = [message.role for message in messages]
    if turns and turns[0] == "system":
        turns = turns[1:]
    expected: list[Role] = ["assistant" if number % 2 else "user" for number in range(len(turns) | 1)]
    if turns != expected:
        raise InvalidRequest(
            "messages must be an optional system message, then user and assistant in turn, ending with user",
            param="messages",
        )
    if any(message.images for message in messages if message.role != "user"):
        raise InvalidRequest("images belong in user messages", param="messages")
    if not any(isinstance(part, Image) or part.strip() for part in messages[-1].parts):
        raise InvalidRequest("the last user message is empty", param="messages")


class Finish(StrEnum):
    """Why an answer ended: the model stopped, the token limit cut it, or the caller went away."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Usage:
    """Token counts as the engine measured them; `cached` and `image` are parts of `prompt`.

    `encodes` is how many pictures went through the vision encoder for this answer: 0 when their work was reused.
    `thinking` is the part of `completion` that was thought; None where that was not counted.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    image: int = 0
    encodes: int = 0
    thinking: int | None = None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.image + other.image,
            self.encodes + other.encodes,
            None if self.thinking is None and other.thinking is None else (self.thinking or 0) + (other.thinking or 0),
        )


@dataclass(frozen=True)
class Timings:
    """Seconds spent by the engine: reading the prompt (vision included) and writing the answer."""

    prompt: float = 0.0
    completion: float = 0.0

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(self.prompt + other.prompt, self.completion + other.completion)


@dataclass(frozen=True)
class TokenLogprob:
    """One answer token, its natural-log probability, and the likeliest alternatives at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it is written; the last chunk carries finish, usage and timings.

    `rethought` says that all text of the chunks before this one was thinking, as only its end has shown.
    """

    text: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    rethought: bool = False


@dataclass(frozen=True)
class Result:
    """A whole answer. `text` never holds the model's thinking; an answer cut off inside its thinking is empty."""

    text: str = ""
    thinking: str = ""
    finish: Finish = Finish.CANCELLED
    usage: Usage = Usage()
    timings: Timings = Timings()
    logprobs: tuple[TokenLogprob, ...] = ()

    def plus(self, chunk: Chunk) -> "Result":
        """This answer with one more chunk."""
        text, thinking = ("", self.text + self.thinking) if chunk.rethought else (self.text, self.thinking)
        logprobs = () if chunk.rethought else self.logprobs
        return replace(
            self,
            text=text + chunk.text,
            thinking=thinking + chunk.thinking,
            finish=chunk.finish or self.finish,
            usage=chunk.usage or self.usage,
            timings=chunk.timings or self.timings,
            logprobs=logprobs + chunk.logprobs,
        )


async def collect(stream: AsyncGenerator[Chunk, None]) -> Result:
    """The whole answer that a stream of chunks adds up to; the stream is closed however this ends."""
    result = Result()
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            result = result.plus(chunk)
    return result


LEAST_LOGPROB = -1e4
"""Stands for a probability of zero: exp of it is 0.0."""


@dataclass(frozen=True)
class LabelScores:
    """The model's own log-probability of each label as the whole answer (its end of turn included).

    None is below LEAST_LOGPROB, where JSON could not hold minus infinity: so a record of them can be replayed.
    """

    logprobs: dict[str, float]
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        held = {label: value if value > LEAST_LOGPROB else LEAST_LOGPROB for label, value in self.logprobs.items()}
        object.__setattr__(self, "logprobs", held)

    @property
    def mass(self) -> float:
        """The probability that the model's answer is one of the labels at all, between 0 and 1."""
        return fsum(exp(value) for value in self.logprobs.values())

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label given that the answer is one of them; they add up to 1."""
        highest = max(self.logprobs.values())
        weights = {label: exp(value - highest) for label, value in self.logprobs.items()}
        total = fsum(weights.values())
        return {label: weight / total for label, weight in weights.items()}

    @property
    def best(self) -> str:
        return max(self.logprobs, key=lambda label: self.logprobs[label])
