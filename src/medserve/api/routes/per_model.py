"""Each model under its own address: what it takes and can do, how it is, and its answers with what they cost."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medserve.api import compute, conversation, description, queries
from medserve.api.access import ModelsOf, SettingsOf
from medserve.api.bodies import read_json, request_body, schema_of
from medserve.api.compute import ComputeMetrics
from medserve.api.errors import LOOK_ERRORS, RETRY_AFTER, WORK_ERRORS, ErrorBody, body_of, documented
from medserve.api.inventory import Model, ModelList
from medserve.api.limits import is_loopback
from medserve.api.queries import Query
from medserve.api.streaming import while_connected
from medserve.errors import MedserveError, ModelFailed, ModelLoading, by_code
from medserve.generation import Finish, GenerationRequest, Usage, collect
from medserve.models import ModelHandle, State, Status
from medserve.reports import notice_for
from medserve.settings import Settings

router = APIRouter(tags=["per model"])

LONGEST_PAUSE = 60
"""Seconds after which a caller may ask again at the latest, however long a load is expected to take."""


async def _served(model: str, models: ModelsOf) -> ModelHandle:
    """The model of that name; else the only one whose name ends with it, so that `a/b` is served as `b` too."""
    if not model:
        raise HTTPException(404)
    names = {handle.name: handle for handle in models}
    kin = [handle for name, handle in names.items() if name.endswith(f"/{model}")]
    return kin[0] if model not in names and len(kin) == 1 else models.get(model)


Served = Annotated[ModelHandle, Depends(_served)]


# --- what it is ----------------------------------------------------------------------------------------------------


class Unready(ErrorBody):
    """Why the model cannot answer: `status` is its state, `loading_error` why the last load failed or found no room."""

    status: str | None = None
    model: str | None = None
    loading_error: str | None = None
    retry_after: int | None = None


@router.get(
    "/{model:path}/v1/schema",
    response_model=description.ModelDescription,
    responses={503: {"model": Unready}, **documented(*LOOK_ERRORS)},
)
async def schema(handle: Served, settings: SettingsOf) -> Response:
    """What the model takes and can do; 503 while it is not loaded, which this request begins."""
    handle.begin()
    if handle.state is not State.READY:
        return _unready(handle.status)
    return _json(description.of(handle, settings.limits))


# --- how it is -----------------------------------------------------------------------------------------------------


class ModelHealth(BaseModel):
    """Whether the model can answer. `status` is healthy, cold, loading or failed, and `message` says what to do.

    `blind` says why a model that is ready is refused pictures.
    """

    status: str
    model: str
    ready: bool
    message: str | None = None
    blind: str | None = None
    loading_error: str | None = None
    progress: float | None = None
    elapsed_seconds: float | None = None
    retry_after: int | None = None


@router.get(
    "/{model:path}/v1/health",
    response_model=ModelHealth,
    responses={503: {"model": ModelHealth}, **documented(*LOOK_ERRORS)},
)
async def health(handle: Served) -> Response:
    """200 when the model is loaded, else 503 with its state; asking changes nothing."""
    status = handle.status
    if status.state is State.READY:
        return _json(ModelHealth(status="healthy", model=handle.name, ready=True, blind=status.blind))
    told = ModelHealth(
        status=status.state,
        model=handle.name,
        ready=False,
        message=_message(status),
        loading_error=status.error,
        progress=status.progress,
        elapsed_seconds=status.elapsed,
        retry_after=_again(status),
    )
    return _json(told, 503, _retry_after(status))


@router.get("/{model:path}/v1/models", responses=documented(*LOOK_ERRORS))
async def models(handle: Served) -> ModelList:
    """This model alone, in OpenAI's shape, for clients that look for it below their base URL."""
    return ModelList(data=[Model.of(handle)])


# --- what it answers -----------------------------------------------------------------------------------------------


class ScalingUp(BaseModel):
    """The model is being loaded; ask the same again at `poll_url` after `retry_after` seconds.

    `estimated_ready_time_seconds` is what is left when this load takes as long as the last; null where none is known.
    `loading_error` says why the attempt before this one failed.
    """

    status: Literal["scaling_up"] = "scaling_up"
    message: str
    model: str
    estimated_ready_time_seconds: int | None
    retry_after: int
    poll_url: str
    action: Literal["retry_later"] = "retry_later"
    state: State
    stage: str | None
    progress: float | None
    elapsed_seconds: float | None
    loading_error: str | None


class QueryUsage(BaseModel):
    """Tokens as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    image_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "QueryUsage":
        return cls(
            prompt_tokens=usage.prompt,
            completion_tokens=usage.completion,
            total_tokens=usage.prompt + usage.completion,
            cached_tokens=usage.cached,
            image_tokens=usage.image,
        )


class ModelAnswer(BaseModel):
    """The answer, without the model's thinking, which stands beside it. `parameters` are those really used.

    `finish` is `stop` when the model had ended and `length` when the limit cut it; `concerns` what the files give cause
    for.
    """

    status: Literal["success"] = "success"
    model: str
    response: str
    thinking: str | None
    finish: Finish
    parameters: dict[str, Any]
    usage: QueryUsage
    compute_metrics: ComputeMetrics
    concerns: list[str]
    notice: str


ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"model": ScalingUp},
    **documented(*WORK_ERRORS),
    503: {"model": Unready},
}


@router.post(
    "/{model:path}/v1/generate",
    response_model=ModelAnswer,
    responses=ANSWERS,
    openapi_extra=request_body({"application/json": schema_of(Query)}),
)
@router.post(
    "/{model:path}/v1/chat",
    response_model=ModelAnswer,
    responses=ANSWERS,
    openapi_extra=request_body({"application/json": schema_of(Query)}),
)
async def generate(handle: Served, request: Request, settings: SettingsOf) -> Response:
    """Answer a question, or a conversation; 202 while the model loads, which this request begins."""
    query = await read_json(request, Query)
    query.check()
    before = handle.status
    handle.begin()
    if handle.state is State.READY:
        return await _answered(handle, query, request, settings)
    # A load that found no room leaves the model cold, and a caller who is only told to come again would come for ever.
    if handle.state is State.LOADING and not (before.state is State.COLD and before.error):
        return _scaling_up(handle.status, poll_url(request, settings))
    return _unready(handle.status)


async def _answered(handle: ModelHandle, query: Query, request: Request, settings: Settings) -> Response:
    handle.refuse_full()
    read = await while_connected(request, conversation.read(query.turns, settings, query.asking))
    length = query.length(handle.spec)
    asked = GenerationRequest(
        read.messages, max_tokens=length.max_tokens, sampling=query.sampling(), thinking=length.thinking
    )
    answering = compute.metered(handle, lambda: collect(conversation.chunks(handle, asked, query.names)))
    result, metrics = await while_connected(request, answering)
    answer = ModelAnswer(
        model=handle.name,
        response=result.text,
        thinking=result.thinking or None,
        finish=result.finish,
        parameters=queries.effective(asked.max_tokens, asked.sampling, asked.thinking),
        usage=QueryUsage.of(result.usage),
        compute_metrics=metrics,
        concerns=list(dict.fromkeys(read.concerns)),
        notice=notice_for(handle.status.facts),
    )
    return _json(answer)


def _scaling_up(status: Status, poll_url: str) -> Response:
    told = ScalingUp(
        message=_message(status),
        model=status.name,
        estimated_ready_time_seconds=_left(status),
        retry_after=_again(status) or RETRY_AFTER[ModelLoading],
        poll_url=poll_url,
        state=status.state,
        stage=status.stage,
        progress=status.progress,
        elapsed_seconds=status.elapsed,
        loading_error=status.error,
    )
    return _json(told, 202, _retry_after(status) | {"X-Status": "scaling-up", "X-Action": "retry-later"})


def _unready(status: Status) -> Response:
    """503 with the state that the model is really in, and the reason of a failed load."""
    failed = by_code(status.code or ModelFailed.code, MedserveError) or ModelFailed
    kind = failed if status.state is State.FAILED else ModelLoading
    told = Unready(
        error=body_of(kind(_message(status), param="model")).error,
        status=status.state,
        model=status.name,
        loading_error=status.error,
        retry_after=_again(status),
    )
    return _json(told, 503, _retry_after(status) | {"X-Status": status.state})


def _message(status: Status) -> str:
    match status.state:
        case State.FAILED:
            return f"{status.name} could not be loaded: {status.error}"
        case State.LOADING if status.error:
            return f"{status.name} is loading again; before that: {status.error}"
        case State.LOADING:
            return f"{status.name} is loading; ask again after the time that Retry-After names"
        case _:
            return f"{status.name} is not loaded; the first question to it loads it"


def _left(status: Status) -> int | None:
    """Seconds until the model is ready if it loads as fast as the last time; None when nothing measured says so."""
    if status.load_seconds is None:
        return None
    left = status.load_seconds - (status.elapsed or 0.0)
    return ceil(left) if left > 0 else None


def _again(status: Status) -> int | None:
    """Seconds after which asking again can help; None for a cold model, which waiting does not load."""
    match status.state:
        case State.FAILED:
            return max(1, ceil(status.retry_seconds or 0))
        case State.LOADING:
            left = _left(status)
            return RETRY_AFTER[ModelLoading] if left is None else max(1, min(left, LONGEST_PAUSE))
        case _:
            return None


def _retry_after(status: Status) -> dict[str, str]:
    again = _again(status)
    return {} if again is None else {"Retry-After": str(again)}


def poll_url(request: Request, settings: Settings) -> str:
    """Where to ask again: this very address, whole if it is ours for certain, else from the root of the host.

    The Host header is the caller's word, or that of whoever sent him; only names of this machine are repeated.
    """
    scope, url = request.scope, request.url
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if not path.startswith(f"{root}/"):  # a proxy took its prefix away
        path = root + path
    place = quote(path, safe="/:")
    ours = {settings.host, (scope.get("server") or ("",))[0]}
    if not url.hostname or not (is_loopback(url.hostname) or url.hostname in ours):
        return place
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}{f':{url.port}' if url.port else ''}{place}"


def _json(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body.model_dump(mode="json", by_alias=True), status_code=status, headers=headers)
