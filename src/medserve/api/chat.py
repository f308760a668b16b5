"""OpenAI's chat: what may be asked, and how it is answered, one by one over HTTP or as the items of a batch."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from medserve.api import conversation, reasoning
from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.bodies import Strict, Words, read_json
from medserve.api.conversation import (
    Alternatives,
    Conversation,
    ImageUrlPart,
    ModelName,
    Picture,
    Sampled,
    TextPart,
    Tokens,
    Turn,
    thought_tokens,
    written_as,
)
from medserve.api.openai import (
    ANY_OBJECT,
    JsonObjectFormat,
    JsonSchema,
    TextFormat,
    WithoutEffect,
    input_details,
    logprob_entries,
)
from medserve.api.reasoning import Thoughtful, Wish
from medserve.api.streaming import event_stream, while_connected
from medserve.errors import InvalidRequest
from medserve.generation import Chunk, GenerationRequest, Result, TokenLogprob, Usage
from medserve.models import ModelHandle
from medserve.settings import Settings

PATH = "/v1/chat/completions"
MOST_ANSWERS = 8
NAMES = {"images": "messages", "schema": "response_format", "top_logprobs": "logprobs"}
"""What this dialect calls the fields of a question."""

Answers = AsyncGenerator[tuple[int, Chunk], None]


Parts = list[Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]]
Content = Annotated[
    Annotated[Words, Tag("words")] | Annotated[Parts, Field(min_length=1), Tag("parts")], Discriminator(written_as)
]
Empty = Annotated[list[Any], Field(max_length=0)]


class ChatMessage(Strict):
    """One turn of the conversation. What an assistant turn once thought is taken and not shown to the model again.

    An earlier answer may be sent back as a client holds it, with the empty fields of what it did not do. `name` is
    refused: Gemma's turns have no place for it.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None


class JsonSchemaFormat(Strict):
    """JSON of a given schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Strict):
    """What a stream carries beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(Sampled, Thoughtful, WithoutEffect):
    """The parameters of OpenAI's chat completions that are honoured here, and top_k, min_p, repetition_penalty.

    How long to think is said as `reasoning_effort`, as `thinking` or as `chat_template_kwargs`, in one of them only.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: ModelName | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    store: Literal[False] | None = None


async def completions(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Answer a conversation once or several times, whole or as server-sent events."""
    body = await read_json(request, ChatRequest)
    _check(body)
    wish = body.wish()
    handle = models.get(body.model)
    handle.refuse_full()
    said = await while_connected(request, _said(body, settings))
    asked = _asked(body, said, wish, handle)
    await while_connected(request, held(handle, settings))
    answers = conversation.answers(handle, asked, _names(body, wish), body.n or 1)
    reply = Reply(handle)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        stream = await event_stream(_events(answers, reply, with_usage=usage))
        stream.headers.update(said.headers)
        return stream
    whole = await while_connected(request, _whole(answers, reply))
    return JSONResponse(whole, headers=said.headers)


def _check(body: ChatRequest) -> None:
    """Refuse fields that do not go together, naming one of them."""
    body.refuse_tools()
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if None not in (limits := (body.max_tokens, body.max_completion_tokens)) and len(set(limits)) > 1:
        raise InvalidRequest(
            "max_completion_tokens and max_tokens are two names of one limit; give one", param="max_completion_tokens"
        )


async def _said(body: ChatRequest, settings: Settings) -> Conversation:
    turns = [_turn(message, f"messages.{place}") for place, message in enumerate(body.messages)]
    return await conversation.read(turns, settings)


def _turn(message: ChatMessage, param: str) -> Turn:
    if isinstance(message.content, str):
        return Turn(message.role, (message.content,))
    parts = [
        part.text
        if isinstance(part, TextPart)
        else Picture(part.image_url.url, f"{param}.content.{place}.image_url.url")
        for place, part in enumerate(message.content)
    ]
    return Turn(message.role, tuple(parts))


def _names(body: ChatRequest, wish: Wish | None) -> conversation.Names:
    """What this request calls the fields of a question."""
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return NAMES | reasoning.names(wish, limit, named=getattr(body, limit) is not None)


def _asked(body: ChatRequest, said: Conversation, wish: Wish | None, handle: ModelHandle) -> GenerationRequest:
    """The request in our own words; raises InvalidRequest naming the field that cannot be served."""
    length = reasoning.length(wish, body.max_completion_tokens or body.max_tokens, handle.spec)
    return GenerationRequest(
        messages=said.messages,
        max_tokens=length.max_tokens,
        thinking=length.thinking,
        sampling=body.sampling(),
        stop=body.stops(),
        schema=_schema(body),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    match body.response_format:
        case JsonSchemaFormat(json_schema=wanted):
            return wanted.schema_
        case JsonObjectFormat():
            return ANY_OBJECT
        case _:
            return None


class Reply:
    """The envelope that every piece of the answers to one question travels in."""

    def __init__(self, handle: ModelHandle) -> None:
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time())
        self._handle = handle

    async def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """The answers in one piece."""
        choices = [_choice(index, result) for index, result in enumerate(results)]
        return self._envelope("chat.completion", choices, await self._usage(results))

    def first(self, index: int) -> dict[str, Any]:
        """The event that opens an answer."""
        return self._event(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """An event with a piece of an answer, of its thinking, or of neither at the end."""
        delta: dict[str, Any] = {}
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.thinking:
            delta["reasoning_content"] = chunk.thinking
        return self._event(index, delta, str(chunk.finish) if chunk.finish else None, _logprobs(chunk.logprobs))

    async def usage(self, results: Sequence[Result]) -> dict[str, Any]:
        """The event that ends a stream whose caller asked for the usage."""
        return self._envelope("chat.completion.chunk", [], await self._usage(results))

    def _event(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._envelope("chat.completion.chunk", [choice], None)

    def _envelope(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._handle.name,
            "choices": choices,
            "usage": usage,
        }

    async def _usage(self, results: Sequence[Result]) -> dict[str, Any]:
        """What all answers took together; each of them reads the prompt, the later ones mostly from the cache."""
        usage = sum((result.usage for result in results), Usage())
        thought = [await thought_tokens(self._handle, result) for result in results]
        known = [tokens for tokens in thought if tokens is not None]
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "prompt_tokens_details": input_details(usage),
            "completion_tokens_details": {"reasoning_tokens": sum(known) if len(known) == len(thought) else None},
        }


async def _whole(answers: Answers, reply: Reply) -> dict[str, Any]:
    results: dict[int, Result] = {}
    async with aclosing(answers):
        async for index, chunk in answers:
            results[index] = results.get(index, Result()).plus(chunk)
    return await reply.whole([results[index] for index in sorted(results)])


async def _events(answers: Answers, reply: Reply, *, with_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
    results: dict[int, Result] = {}
    async with aclosing(answers):
        async for index, chunk in answers:
            if index not in results:
                yield reply.first(index)
            results[index] = results.get(index, Result()).plus(chunk)
            yield reply.piece(index, chunk)
    if with_usage:
        yield await reply.usage([results[index] for index in sorted(results)])


def _choice(index: int, result: Result) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
    if result.thinking:
        message["reasoning_content"] = result.thinking
    finish = str(result.finish)
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": _logprobs(result.logprobs)}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    return {"content": logprob_entries(tokens), "refusal": None} if tokens else None
