"""Chat in OpenAI's dialect, pictures included, so that every client which speaks it works unchanged."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Discriminator, Field, Tag
from starlette.responses import Response

from medserve.api import studies
from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.bodies import JsonObject, Strict, Words, printable, read_json, request_body, schema_of
from medserve.api.errors import WORK_ERRORS, documented
from medserve.api.streaming import event_stream, while_connected
from medserve.engines import Engine
from medserve.errors import InvalidRequest
from medserve.generation import (
    MAX_OUTPUT_TOKENS,
    Chunk,
    GenerationRequest,
    Message,
    Part,
    Result,
    Sampling,
    TokenLogprob,
    Usage,
    collect,
)
from medserve.images import Concern, Study
from medserve.imaging.intake import Wanted
from medserve.settings import Limits, Settings

router = APIRouter(tags=["openai"])

DEFAULT_MAX_TOKENS = 1024
"""An answer's length when the caller names none; MedGemma's own limit is 8192."""
CONCERNS = "X-Medserve-Concerns"
"""The header that names what the files give cause for: the body of an OpenAI answer has no place for it."""
LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is all but impossible: JSON has no minus infinity."""

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)]
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


def _written_as(value: object) -> str:
    return "words" if isinstance(value, str) else "parts"


Parts = list[Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]]
Content = Annotated[
    Annotated[Words, Tag("words")] | Annotated[Parts, Field(min_length=1), Tag("parts")], Discriminator(_written_as)
]


class ChatMessage(Strict):
    """One turn of the conversation. What an assistant turn once thought is taken and not shown to the model again."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    reasoning_content: str | None = None
    refusal: None = None


class JsonSchema(Strict):
    """A named JSON Schema that the answer must satisfy."""

    name: str
    description: str | None = None
    schema_: Annotated[JsonObject, Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON of a given schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Strict):
    """What a stream carries beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Strict):
    """The parameters of OpenAI's chat completions that are honoured here, and top_k, min_p, repetition_penalty."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("words")] | Annotated[list[Stop], Field(max_length=16), Tag("parts")],
            Discriminator(_written_as),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None


@router.post(
    "/v1/chat/completions",
    responses={
        200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
        **documented(*WORK_ERRORS),
    },
    openapi_extra=request_body({"application/json": schema_of(ChatRequest)}),
)
async def chat_completions(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    body = await read_json(request, ChatRequest)
    handle = models.get(body.model)
    shown = Shown(settings)
    asked = await while_connected(request, _asked(body, shown))
    await while_connected(request, held(handle, settings))
    reply = Reply(handle.name)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        stream = await event_stream(_events(handle, asked, reply, with_usage=usage))
        stream.headers.update(shown.headers)
        return stream
    result = await while_connected(request, collect(handle.stream(asked)))
    return JSONResponse(reply.whole(result), headers=shown.headers)


class Shown:
    """Reads what a conversation shows, counts its pictures, and keeps what their files give cause for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.concerns: list[Concern] = []
        self._pictures = 0

    @property
    def headers(self) -> dict[str, str]:
        return {CONCERNS: ",".join(dict.fromkeys(self.concerns))} if self.concerns else {}

    async def parts(self, url: str, param: str) -> list[Part]:
        """A part of the conversation as the model reads it; of several pictures each is followed by its label."""
        study = (await studies.read_one(url, self.settings, Wanted(volume=False), param)).study
        self._pictures += len(study.images)
        if self._pictures > self.settings.limits.images:
            raise InvalidRequest(
                f"messages hold more than {self.settings.limits.images} pictures; send fewer slices", param="messages"
            )
        self.concerns += study.concerns
        return _labelled(study)


def _labelled(study: Study) -> list[Part]:
    """The pictures in order. One alone gets no label: a caller who sends slices one by one numbers them himself."""
    if not study.labels or len(study.images) == 1:
        return list(study.images)
    return [part for pair in zip(study.images, study.labels, strict=True) for part in pair]


async def _asked(body: ChatRequest, shown: Shown) -> GenerationRequest:
    """The request in our own words; raises InvalidRequest naming the field that cannot be served."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return GenerationRequest(
        messages=await _messages(body.messages, shown),
        max_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=_sampling(body),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        schema=_schema(body),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


async def _messages(messages: Sequence[ChatMessage], shown: Shown) -> tuple[Message, ...]:
    _check_size(messages, shown.settings.limits)
    return tuple([await _message(message, shown, f"messages.{place}") for place, message in enumerate(messages)])


def _check_size(messages: Sequence[ChatMessage], limits: Limits) -> None:
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    pictures = sum(isinstance(part, ImageUrlPart) for part in parts)
    words = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    words += sum(len(message.content) for message in messages if isinstance(message.content, str))
    if pictures > limits.images:
        raise InvalidRequest(f"messages hold {pictures} pictures; at most {limits.images} are taken", param="messages")
    if words > limits.text_characters:
        raise InvalidRequest(
            f"messages hold {words} characters; at most {limits.text_characters} are taken", param="messages"
        )


async def _message(message: ChatMessage, shown: Shown, param: str) -> Message:
    role: Literal["system", "user", "assistant"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Message(role, (message.content,))
    parts: list[Part] = []
    for place, part in enumerate(message.content):
        if isinstance(part, TextPart):
            parts.append(part.text)
        else:
            parts += await shown.parts(part.image_url.url, f"{param}.content.{place}.image_url.url")
    return Message(role, tuple(parts))


def _sampling(body: ChatRequest) -> Sampling:
    named = {
        name: getattr(body, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
    }
    return Sampling(**{name: value for name, value in named.items() if value is not None})


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    match body.response_format:
        case JsonSchemaFormat(json_schema=wanted):
            return wanted.schema_
        case JsonObjectFormat():
            return {"type": "object"}
        case _:
            return None


class Reply:
    """The envelope that every piece of one answer travels in."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time())
        self._model = model

    def whole(self, result: Result) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
        if result.thinking:
            message["reasoning_content"] = result.thinking
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": str(result.finish),
            "logprobs": _logprobs(result.logprobs),
        }
        return self._envelope("chat.completion", [choice], _usage(result.usage))

    def first(self) -> dict[str, Any]:
        """The event that opens a stream."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """An event with a piece of the answer, of its thinking, or of neither at the end."""
        delta: dict[str, Any] = {}
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.thinking:
            delta["reasoning_content"] = chunk.thinking
        return self._event(delta, str(chunk.finish) if chunk.finish else None, _logprobs(chunk.logprobs))

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The event that ends a stream whose caller asked for the usage."""
        return self._envelope("chat.completion.chunk", [], _usage(usage))

    def _event(
        self, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._envelope("chat.completion.chunk", [choice], None)

    def _envelope(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": usage,
        }


async def _events(
    engine: Engine, request: GenerationRequest, reply: Reply, *, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    usage = Usage()
    opened = False
    async with aclosing(engine.stream(request)) as chunks:
        async for chunk in chunks:
            if not opened:
                yield reply.first()
                opened = True
            usage = chunk.usage or usage
            yield reply.piece(chunk)
    if with_usage:
        yield reply.usage(usage)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "image_tokens": usage.image,
            "image_encodes": usage.encodes,
        },
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    return {
        "content": [
            _logprob(token.token, token.logprob) | {"top_logprobs": [_logprob(*other) for other in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(token.encode())}
