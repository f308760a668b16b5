"""What a request says to a model, in whichever dialect, is read, bounded and asked here, and in no other way."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from medserve.api import studies
from medserve.api.bodies import Strict, Words, printable
from medserve.api.streaming import together
from medserve.engines import Capabilities, Counts
from medserve.errors import InvalidRequest, MedserveError, NotSupported
from medserve.generation import MAX_OUTPUT_TOKENS, Chunk, GenerationRequest, Message, Part, Result, Sampling
from medserve.images import Concern, Study
from medserve.imaging.intake import Wanted
from medserve.models import ModelHandle
from medserve.settings import Limits, Settings

DEFAULT_MAX_TOKENS = 1024
"""An answer's length when the caller names none; MedGemma's own limit is 8192."""
CONCERNS = "X-Medserve-Concerns"
"""The header that names what the files give cause for: the body of an OpenAI answer has no place for it."""
SEEDS = 2**32 - 1
"""How many seeds tell engines apart: llama.cpp takes the highest number for none."""

Names = Mapping[str, str]
"""What a dialect calls the fields that the layers below name in their errors, where it calls them otherwise."""

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)]
Alternatives = Annotated[int, Field(ge=0, le=20)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(printable)]


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: Words


class ImageUrl(Strict):
    """A file as a data URI, or an address that the settings allow: a picture, DICOM, NIfTI, a zip of a series.

    A volume becomes its slices, each followed by its label as text ("SLICE 1"). `detail` is taken and has no effect:
    MedGemma's encoder has one resolution.
    """

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageUrlPart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


def written_as(value: object) -> str:
    """Which branch of a union of a text and a list is meant."""
    return "words" if isinstance(value, str) else "parts"


class Sampled(Strict):
    """How the next token is drawn and where the answer ends; what is left out is greedy and without a stop."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("words")] | Annotated[list[Stop], Field(max_length=16), Tag("parts")],
            Discriminator(written_as),
        ]
        | None
    ) = None

    def sampling(self) -> Sampling:
        """The caller's choices, and the defaults for what he left open."""
        chosen = {name: getattr(self, name) for name in Sampling.__dataclass_fields__}
        return Sampling(**{name: value for name, value in chosen.items() if value is not None})

    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


# --- what is said --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A file that a turn shows, as a data URI or an allowed reference, and where in the request it stands."""

    url: str
    param: str


@dataclass(frozen=True)
class Turn:
    """One turn as it came: a role and its parts, in the order in which the model reads them."""

    role: Literal["system", "developer", "user", "assistant"]
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns that were read, and what the files in them give cause for."""

    messages: tuple[Message, ...]
    concerns: tuple[Concern, ...]

    @property
    def headers(self) -> dict[str, str]:
        return concern_headers(self.concerns)


def concern_headers(concerns: Sequence[str]) -> dict[str, str]:
    """The header that names the concerns, each once; none when there are none."""
    return {CONCERNS: ",".join(dict.fromkeys(concerns))} if concerns else {}


async def read(turns: Sequence[Turn], settings: Settings, param: str = "messages") -> Conversation:
    """The turns with their files read; raises InvalidRequest that names `param` or the place of a file in it.

    Gemma knows one place for a system's words: what several turns at the beginning say is put there, in their order.
    """
    _check_size(turns, settings.limits, param)
    shown = Shown(settings, param)
    messages = [await _message(turn, shown) for turn in turns]
    return Conversation(_one_system(messages), tuple(shown.concerns))


def _check_size(turns: Sequence[Turn], limits: Limits, param: str) -> None:
    parts = [part for turn in turns for part in turn.parts]
    pictures = sum(isinstance(part, Picture) for part in parts)
    words = sum(len(part) for part in parts if isinstance(part, str))
    if pictures > limits.images:
        raise InvalidRequest(f"{param} holds {pictures} pictures; at most {limits.images} are taken", param=param)
    if words > limits.text_characters:
        raise InvalidRequest(
            f"{param} holds {words} characters; at most {limits.text_characters} are taken", param=param
        )


class Shown:
    """Reads what a conversation shows, counts its pictures, and keeps what their files give cause for."""

    def __init__(self, settings: Settings, param: str) -> None:
        self._settings = settings
        self.concerns: list[Concern] = []
        self._param = param
        self._pictures = 0

    async def parts(self, url: str, param: str) -> list[Part]:
        """A file as the model sees it; of several pictures each is followed by its label."""
        study = (await studies.read_one(url, self._settings, Wanted(volume=False), param)).study
        self._pictures += len(study.images)
        if self._pictures > self._settings.limits.images:
            raise InvalidRequest(
                f"{self._param} holds more than {self._settings.limits.images} pictures; send fewer slices",
                param=self._param,
            )
        self.concerns += study.concerns
        return labelled(study)


def labelled(study: Study) -> list[Part]:
    """The pictures in order. One alone gets no label: a caller who sends slices one by one numbers them himself."""
    if not study.labels or len(study.images) == 1:
        return list(study.images)
    return [part for pair in zip(study.images, study.labels, strict=True) for part in pair]


async def _message(turn: Turn, shown: Shown) -> Message:
    parts: list[Part] = []
    for part in turn.parts:
        parts += [part] if isinstance(part, str) else await shown.parts(part.url, part.param)
    return Message("system" if turn.role == "developer" else turn.role, tuple(parts))


def _one_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    leading = list(takewhile(lambda message: message.role == "system", messages))
    if len(leading) < 2:
        return tuple(messages)
    parts = [part for message in leading for part in ("\n\n", *message.parts)]
    return (Message("system", tuple(parts[1:])), *messages[len(leading) :])


# --- what is answered ----------------------------------------------------------------------------------------------


async def answers(
    handle: ModelHandle, request: GenerationRequest, names: Names, n: int = 1
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """The pieces of `n` answers to one question, each with its answer's index; errors name the dialect's fields.

    As many answers are written at once as the model has slots. With a seed they come one after another, since what is
    computed together differs in its last bits: then each is what its own seed gives alone. The first has the request's
    own seed, the others seeds that follow from it.
    """
    try:
        refuse_unable(handle.name, (await handle.ready()).capabilities, request)
        streams = [handle.stream(_numbered(request, index)) for index in range(n)]
        at_once = handle.spec.slots if request.sampling.seed is None else 1
        async with aclosing(together(streams, at_once)) as pieces:
            async for piece in pieces:
                yield piece
    except MedserveError as error:
        told = renamed(error, names)
        if told is error:
            raise
        raise told from None


async def chunks(handle: ModelHandle, request: GenerationRequest, names: Names) -> AsyncGenerator[Chunk, None]:
    """The pieces of the one answer to a question; errors name the dialect's fields."""
    async with aclosing(answers(handle, request, names)) as pieces:
        async for _, chunk in pieces:
            yield chunk


def refuse_unable(name: str, able: Capabilities, request: GenerationRequest) -> None:
    """Raise NotSupported for what no engine of these capabilities can honour, whatever the engine itself checks."""
    wanted = {
        "images": bool(request.images) and able.vision is None,
        "schema": request.schema is not None and not able.schema,
        "choices": bool(request.choices) and not able.choices,
        "top_logprobs": request.top_logprobs is not None and not able.logprobs,
        "prefix": bool(request.prefix) and not able.prefix,
        "thinking": request.thinking is not None and not able.thinking,
    }
    for field, refused in wanted.items():
        if refused and field == "images":
            raise NotSupported(
                f"{name} takes no images: {_blindness(able)}; send words alone or ask another model", param=field
            )
        if refused:
            raise NotSupported(f"{name} cannot honour {field}; leave it out or ask another model", param=field)


def _blindness(able: Capabilities) -> str:
    """Why a model takes no images, as far as its facts tell."""
    facts = dict(able.facts)
    if facts.get("parity", "").startswith("failed"):
        return "`medserve verify` found that its build does not answer as the reference does"
    if probed := facts.get("probed_vision"):
        return f"sight was probed at its server and is {probed}"
    return "it has no vision part, which for a GGUF file is its mmproj file"


def _numbered(request: GenerationRequest, index: int) -> GenerationRequest:
    seed = request.sampling.seed
    if not index or seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=(seed + index) % SEEDS))


def renamed(error: MedserveError, names: Names) -> MedserveError:
    """The error with the dialect's own name of the field at fault."""
    name = names.get(error.param or "")
    if name is None or name == error.param:
        return error
    return type(error)(f"{name}: {error.message}", param=name, retry_after=error.retry_after)


async def thought_tokens(handle: ModelHandle, result: Result) -> int | None:
    """How many of an answer's tokens were thinking: as the engine tells, all when nothing else was said, else counted.

    None where the engine can do neither.
    """
    if result.usage.thinking is not None:
        return result.usage.thinking
    if not result.thinking:
        return 0
    if not result.text:
        return result.usage.completion
    with suppress(MedserveError):  # the answer is there; how it divides is not worth losing it
        engine = await handle.ready()
        if isinstance(engine, Counts):
            return min(await engine.count(result.thinking), result.usage.completion)
    return None
