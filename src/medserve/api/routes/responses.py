"""OpenAI's Responses API on the same models: answered at once, as typed events, or in the background as a job."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from medserve import references
from medserve.api import conversation, later, reasoning
from medserve.api.access import CallerOf, JobsOf, ModelsOf, SettingsOf, held
from medserve.api.bodies import JsonObject, Strict, Words, parsed, read_json, request_body, schema_of
from medserve.api.conversation import (
    Alternatives,
    Conversation,
    ModelName,
    Picture,
    Sampled,
    Tokens,
    Turn,
    concern_headers,
    thought_tokens,
    written_as,
)
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, documented
from medserve.api.lists import Deleted
from medserve.api.openai import ANY_OBJECT, JsonObjectFormat, JsonSchema, TextFormat, WithoutEffect
from medserve.api.responses import Event, Writer
from medserve.api.streaming import begun, event_stream, foreseen, while_connected
from medserve.errors import InvalidRequest, NotSupported, UnknownJob
from medserve.generation import Chunk, GenerationRequest, Result
from medserve.jobs import Job, Jobs, JobState, Runner, Work
from medserve.models import ModelHandle, Models
from medserve.settings import Settings
from medserve.threads import in_thread

router = APIRouter(tags=["openai"])

KIND = "response"
"""The kind of job that a background response is."""
NAMES = {"images": "input", "messages": "input", "schema": "text.format"}
"""What this dialect calls the fields of a question."""
RESPONSE, JOB = "resp_", "job_"
"""How the identifier of a response begins, and that of the job behind it."""


class InputText(Strict):
    """Words of a caller."""

    type: Literal["input_text"]
    text: Words


class InputImage(Strict):
    """A file as a data URI, or an address that the settings allow; see `ImageUrl` of the chat dialect."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


class OutputText(Strict):
    """Words of an earlier answer, as they came; annotations and log-probabilities are not shown to the model."""

    type: Literal["output_text"]
    text: Words
    annotations: list[JsonObject] | None = None
    logprobs: list[JsonObject] | None = None


Parts = list[Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]]
Content = Annotated[
    Annotated[Words, Tag("words")] | Annotated[Parts, Field(min_length=1), Tag("parts")], Discriminator(written_as)
]


class MessageItem(Strict):
    """One turn of the conversation; an earlier answer may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class ReasoningItem(Strict):
    """What the model once thought: taken as it came, and not shown to it again."""

    type: Literal["reasoning"]
    summary: list[JsonObject] = Field(default_factory=list)
    content: list[JsonObject] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    encrypted_content: None = None


def _kind(item: object) -> object:
    """An item without a type is a message."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Items = list[
    Annotated[Annotated[MessageItem, Tag("message")] | Annotated[ReasoningItem, Tag("reasoning")], Discriminator(_kind)]
]
Input = Annotated[
    Annotated[Words, Tag("words")] | Annotated[Items, Field(min_length=1), Tag("parts")], Discriminator(written_as)
]


class SchemaFormat(JsonSchema):
    """JSON of a given schema."""

    type: Literal["json_schema"]


class TextOptions(Strict):
    """What the answer's text has to be."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Strict):
    """How long to think. Nothing is summarised: the thoughts themselves are given."""

    effort: reasoning.Effort | None = None
    summary: None = None


class ResponseStreamOptions(Strict):
    """Events are not padded."""

    include_obfuscation: Literal[False] = False


class ResponseRequest(Sampled, WithoutEffect):
    """The parameters of the Responses API that are honoured here, and seed, stop, top_k, min_p, repetition_penalty."""

    input: Input
    model: ModelName | None = None
    instructions: Words | None = None
    max_output_tokens: Tokens | None = None
    text: TextOptions | None = None
    top_logprobs: Alternatives | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["disabled"] | None = None
    max_tool_calls: None = None


@router.post(
    "/v1/responses",
    responses={
        200: {"content": {"application/json": {}, "text/event-stream": {}}},
        **documented(*WORK_ERRORS),
    },
    openapi_extra=request_body({"application/json": schema_of(ResponseRequest)}),
)
async def create_response(
    request: Request, models: ModelsOf, settings: SettingsOf, jobs: JobsOf, caller: CallerOf
) -> Response:
    """Answer an input: whole, as server-sent events, or (`background`) later, to be asked for by its identifier."""
    body = await read_json(request, ResponseRequest)
    _check(body)
    handle = models.get(body.model)
    if body.background:
        await jobs.room()
    else:
        handle.refuse_full()
    said = await while_connected(request, _said(body, settings))
    asked = _asked(body, said, handle)
    if body.background:
        order = {"model": handle.name, "concerns": said.concerns, "response": _envelope(body, asked, handle.name)}
        async with references.spool() as folder:
            await in_thread((folder / "request").write_bytes, await request.body())
            job = await jobs.submit(KIND, order, owner=caller.id, files=[folder / "request"])
        return JSONResponse(_shown(job, None), headers=said.headers)
    await while_connected(request, held(handle, settings))
    answer = conversation.chunks(handle, asked, _names(body))
    writer = Writer({"id": f"{RESPONSE}{uuid4().hex}", **_envelope(body, asked, handle.name)})
    if body.stream:
        stream = await event_stream(_events(answer, handle, writer))
        stream.headers.update(said.headers)
        return stream
    return JSONResponse(await while_connected(request, _whole(answer, handle, writer)), headers=said.headers)


@router.get(
    "/v1/responses/{response_id}",
    responses={200: {"content": {"application/json": {}}}, **documented(400, *LOOK_ERRORS)},
)
async def retrieve_response(
    response_id: str, jobs: JobsOf, caller: CallerOf, stream: Annotated[bool, Query()] = False
) -> Response:
    """A background response as it stands, until it is deleted or expires."""
    if stream:
        raise NotSupported("a background response is not streamed; ask for it again until it is done", param="stream")
    job = await _job(jobs, response_id, caller.id)
    return _answer(job, await jobs.result(job.id, caller.id))


@router.post(
    "/v1/responses/{response_id}/cancel",
    responses={200: {"content": {"application/json": {}}}, **documented(*LOOK_ERRORS)},
)
async def cancel_response(response_id: str, jobs: JobsOf, caller: CallerOf) -> Response:
    """Stop a background response; one that has ended stays as it is."""
    job = await _job(jobs, response_id, caller.id)
    job = await jobs.cancel(job.id, caller.id)
    return _answer(job, await jobs.result(job.id, caller.id))


@router.delete(
    "/v1/responses/{response_id}",
    responses=documented(409, *LOOK_ERRORS),
)
async def delete_response(response_id: str, jobs: JobsOf, caller: CallerOf) -> Deleted:
    """Stop a background response if it still runs, and keep nothing of it."""
    job = await _job(jobs, response_id, caller.id)
    await jobs.delete(job.id, caller.id)
    return Deleted(id=response_id, object="response")


# --- what is asked -------------------------------------------------------------------------------------------------


def _check(body: ResponseRequest) -> None:
    """Refuse what would be ignored, and fields that do not go together, naming one of them."""
    body.refuse_tools()
    if body.previous_response_id is not None:
        raise NotSupported(
            "what was said before a response is not kept; send the earlier turns in input", param="previous_response_id"
        )
    if body.store and not body.background:
        raise NotSupported("only responses with background: true are kept; leave store out", param="store")
    if body.background and body.store is False:
        raise InvalidRequest(
            "a background response has to be kept until it is asked for; leave store out", param="store"
        )
    if body.background and body.stream:
        raise NotSupported("a background response is not streamed; leave stream or background out", param="stream")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")


async def _said(body: ResponseRequest, settings: Settings) -> Conversation:
    turns = [Turn("system", (body.instructions,))] if body.instructions else []
    if isinstance(body.input, str):
        turns.append(Turn("user", (body.input,)))
    else:
        turns += [_turn(item, f"input.{n}") for n, item in enumerate(body.input) if isinstance(item, MessageItem)]
    return await conversation.read(turns, settings, "input")


def _turn(item: MessageItem, param: str) -> Turn:
    if isinstance(item.content, str):
        return Turn(item.role, (item.content,))
    parts = [
        Picture(part.image_url, f"{param}.content.{place}.image_url") if isinstance(part, InputImage) else part.text
        for place, part in enumerate(item.content)
    ]
    return Turn(item.role, tuple(parts))


def _asked(body: ResponseRequest, said: Conversation, handle: ModelHandle) -> GenerationRequest:
    """The request in our own words; raises InvalidRequest naming the field that cannot be served."""
    length = reasoning.length(_wish(body), body.max_output_tokens, handle.spec)
    wanted = bool(body.include) or body.top_logprobs is not None
    try:
        return GenerationRequest(
            messages=said.messages,
            max_tokens=length.max_tokens,
            thinking=length.thinking,
            sampling=body.sampling(),
            stop=body.stops(),
            schema=_schema(body),
            top_logprobs=(body.top_logprobs or 0) if wanted else None,
        )
    except InvalidRequest as error:
        raise conversation.renamed(error, _names(body)) from None


def _wish(body: ResponseRequest) -> reasoning.Wish | None:
    return reasoning.of_effort(body.reasoning.effort if body.reasoning else None, "reasoning.effort")


def _names(body: ResponseRequest) -> conversation.Names:
    """What this request calls the fields of a question."""
    return NAMES | reasoning.names(_wish(body), "max_output_tokens", named=body.max_output_tokens is not None)


def _schema(body: ResponseRequest) -> dict[str, Any] | None:
    match body.text.format if body.text else None:
        case SchemaFormat(schema_=schema):
            return schema
        case JsonObjectFormat():
            return ANY_OBJECT
        case _:
            return None


def _envelope(body: ResponseRequest, asked: GenerationRequest, model: str) -> dict[str, Any]:
    """The response before anything is answered: the parameters as they take effect, and what was asked to be echoed."""
    sampling = asked.sampling
    return {
        "object": "response",
        "created_at": int(time()),
        "completed_at": None,
        "status": "queued",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": asked.max_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": bool(body.background),
        "temperature": sampling.temperature,
        "text": {"format": _format(body)},
        "tool_choice": body.tool_choice or "auto",
        "tools": [],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponseRequest) -> dict[str, Any]:
    """The format that is kept to; a schema always is, strict or not."""
    wanted = body.text.format if body.text else None
    if isinstance(wanted, SchemaFormat):
        return {
            "type": wanted.type,
            "name": wanted.name,
            "description": wanted.description,
            "schema": wanted.schema_,
            "strict": True,
        }
    return {"type": wanted.type if wanted else "text"}


# --- what is answered ----------------------------------------------------------------------------------------------


async def _events(
    answer: AsyncGenerator[Chunk, None], handle: ModelHandle, writer: Writer
) -> AsyncGenerator[Event, None]:
    """The typed events of an answer; once the first was sent, a failure is an event too."""
    result, opened = Result(), False
    try:
        async with aclosing(begun(answer)) as pieces:
            async for chunk in pieces:
                if chunk is None:
                    opened = True
                    for event in writer.opened():
                        yield event
                    continue
                result = result.plus(chunk)
                for event in writer.fed(chunk):
                    yield event
        for event in writer.ended(result.finish, result.usage, await thought_tokens(handle, result)):
            yield event
    except Exception as error:
        if not opened:
            raise
        for event in writer.failed(foreseen(error)):
            yield event


async def _whole(answer: AsyncGenerator[Chunk, None], handle: ModelHandle, writer: Writer) -> dict[str, Any]:
    """The response that the events of an answer add up to."""
    result = Result()
    async with aclosing(answer):
        async for chunk in answer:
            result = result.plus(chunk)
            writer.fed(chunk)
    writer.ended(result.finish, result.usage, await thought_tokens(handle, result))
    return writer.response


# --- in the background ---------------------------------------------------------------------------------------------


async def _work(work: Work, models: Models, settings: Settings) -> Mapping[str, Any]:
    """Answer a response that was ordered; what passes by itself is waited for, since nobody is there to ask again."""
    body = await in_thread(lambda: parsed(work.files[0].read_bytes(), ResponseRequest))
    handle = models.get(work.order["model"])
    asked = _asked(body, await _said(body, settings), handle)

    async def ask() -> dict[str, Any]:
        writer = Writer({"id": _id(work.job), **work.order["response"]})
        return await _whole(conversation.chunks(handle, asked, _names(body)), handle, writer)

    response = await later.patiently(ask)
    work.note(1, 1)
    return response


RUNNERS: Mapping[str, Runner] = {KIND: _work}


def _id(job: Job) -> str:
    return RESPONSE + job.id.removeprefix(JOB)


async def _job(jobs: Jobs, response_id: str, owner: str) -> Job:
    """The job behind a response; raises UnknownJob, also for jobs of other kinds."""
    try:
        job = await jobs.get(JOB + response_id.removeprefix(RESPONSE), owner)
    except UnknownJob:
        job = None
    if job is None or job.kind != KIND or not response_id.startswith(RESPONSE):
        raise UnknownJob(
            "no such response is kept; those of background: true are, until they are deleted or expire",
            param="response_id",
        )
    return job


def _answer(job: Job, result: Mapping[str, Any] | None) -> JSONResponse:
    return JSONResponse(_shown(job, result), headers=concern_headers(job.order["concerns"]))


STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
"""How a response stands whose job has no result."""


def _shown(job: Job, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """A background response as its job stands."""
    if result is not None:
        return dict(result)
    error = {"code": job.error.code, "message": job.error.message} if job.error else None
    return {"id": _id(job), **job.order["response"], "status": STATUS[job.state], "error": error}
