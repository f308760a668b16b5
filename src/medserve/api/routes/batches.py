"""Batches: many studies or many requests as one job, each item with its own result or error, in OpenAI's shape.

Two kinds of order go the same way. OpenAI's own names an uploaded file of requests (`input_file_id`); a batch of
`workflow` brings its studies along. One bad item spoils no other, and what is done is never done again.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, TypeAdapter, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from medserve import references
from medserve.api import batching, kept, lines, studies
from medserve.api.access import CallerOf, JobsOf, ModelsOf, SettingsOf
from medserve.api.batching import KIND
from medserve.api.bodies import (
    OBJECT,
    JsonObject,
    Strict,
    checked,
    json_text,
    kind_of,
    read_json,
    request_body,
    schema_of,
)
from medserve.api.conversation import ModelName, Seed, Temperature
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, documented
from medserve.api.lists import After, Entry, Listed, Page
from medserve.api.openai import Metadata
from medserve.errors import InvalidRequest
from medserve.jobs import Job, Jobs, JobState, Runner
from medserve.keys import Caller
from medserve.models import Models
from medserve.settings import Settings
from medserve.threads import in_thread

router = APIRouter(tags=["batches"])

MOST_PARALLEL = 16
ERRORS = documented(*LOOK_ERRORS, 400, 503)


# --- what is ordered -----------------------------------------------------------------------------------------------


class RequestBatch(Strict):
    """OpenAI's batch: requests in an uploaded file. `completion_window` promises nothing here."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=100)]
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"] = "24h"
    metadata: Metadata | None = None


class Choice(Strict):
    """What holds for every study of a batch. `parallel` studies are examined at once.

    One after another, each report is the very one that a run of its own would give.
    """

    workflow: Annotated[str, Field(min_length=1, max_length=100)]
    model: ModelName | None = None
    temperature: Temperature = 0.0
    seed: Seed | None = None
    parallel: Annotated[int, Field(ge=1, le=MOST_PARALLEL)] = 1


class Item(studies.Sent):
    """One study and the caller's own name for it; without one its place, counted from 0, is its name."""

    custom_id: lines.CustomId | None = None


class WorkflowBatch(Choice):
    """Studies to be examined, as data URIs, base64 or references that are allowed."""

    options: JsonObject = Field({}, description="what the workflow itself lets choose")
    metadata: Metadata | None = None
    items: Annotated[list[Item], Field(min_length=1)]


class BatchForm(Choice):
    """The fields of a batch that comes as a form; every file under the name `images` is a study of its own."""

    options: Annotated[str, Field(description="a JSON object")] = "{}"
    metadata: Annotated[str, Field(description="a JSON object of texts")] = "{}"
    custom_ids: Annotated[str, Field(description="a JSON list with a name for each file")] = "[]"


class _Loose(BaseModel):
    """Only enough of an order to see of which kind it is."""

    input_file_id: Any = None
    endpoint: Any = None

    @model_validator(mode="before")
    @classmethod
    def _whatever(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {}


_METADATA = TypeAdapter(Metadata)
_NAMES = TypeAdapter(list[lines.CustomId])


# --- what is told --------------------------------------------------------------------------------------------------


class Counts(BaseModel):
    """Items that are done, that failed, and all of them."""

    completed: int
    failed: int
    total: int


class BatchError(BaseModel):
    """Why the whole batch failed."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """A list of one."""

    object: str = "list"
    data: list[BatchError]


Status = Literal["validating", "failed", "in_progress", "completed", "cancelling", "cancelled"]


class Batch(Entry):
    """A batch as OpenAI tells of one; times are whole Unix seconds. `id` is a job's: /v1/jobs knows it as well."""

    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str = Field(description="empty where the items came with the order")
    completion_window: str = "24h"
    status: Status = Field(description="validating: it waits for its turn")
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None = Field(description="when it and its results are deleted")
    completed_at: int | None
    failed_at: int | None
    cancelled_at: int | None
    model: str | None
    request_counts: Counts
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, job: Job, failed: int) -> "Batch":
        ended = int(job.ended) if job.ended is not None else None
        completed = job.done - failed
        error = None if job.error is None else BatchError(code=job.error.code, message=job.error.message)
        return cls(
            id=job.id,
            endpoint=job.order["endpoint"],
            errors=None if error is None else BatchErrors(data=[error]),
            input_file_id=job.order.get("input_file_id", ""),
            status=_status(job),
            output_file_id=job.id.replace("job_", "output-") if ended and completed else None,
            error_file_id=job.id.replace("job_", "errors-") if ended and failed else None,
            created_at=int(job.created),
            in_progress_at=int(job.started) if job.started is not None else None,
            expires_at=int(job.expires) if job.expires is not None else None,
            completed_at=ended if job.state is JobState.DONE else None,
            failed_at=ended if job.state is JobState.FAILED else None,
            cancelled_at=ended if job.state is JobState.CANCELLED else None,
            model=job.order.get("model"),
            request_counts=Counts(completed=completed, failed=failed, total=job.total),
            metadata=job.order.get("metadata"),
        )


def _status(job: Job) -> Status:
    if job.cancelling:
        return "cancelling"
    told: Mapping[JobState, Status] = {
        JobState.QUEUED: "validating",
        JobState.RUNNING: "in_progress",
        JobState.DONE: "completed",
        JobState.FAILED: "failed",
        JobState.CANCELLED: "cancelled",
    }
    return told[job.state]


class BatchList(Listed[Batch]):
    """The caller's batches, newest first."""


# --- the routes ----------------------------------------------------------------------------------------------------


@router.post(
    "/v1/batches",
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body(
        {
            "application/json": {"anyOf": [schema_of(RequestBatch), schema_of(WorkflowBatch)]},
            "multipart/form-data": studies.form_schema(BatchForm),
        }
    ),
)
async def create_batch(
    request: Request, models: ModelsOf, settings: SettingsOf, jobs: JobsOf, caller: CallerOf
) -> Batch:
    """Take a batch: OpenAI's own of an uploaded file, or studies for a workflow as JSON or as files of a form."""
    await jobs.room()
    match kind_of(request):
        case "application/json" if await _names_file(request):
            job = await _of_requests(await read_json(request, RequestBatch), settings, jobs, caller)
        case "application/json":
            job = await _of_items(await read_json(request, WorkflowBatch), models, settings, jobs, caller)
        case "multipart/form-data":
            job = await _of_form(request, models, settings, jobs, caller)
        case _:
            raise HTTPException(415, "send application/json, or multipart/form-data with files named images")
    return Batch.of(job, 0)


@router.get("/v1/batches", responses=ERRORS)
async def list_batches(jobs: JobsOf, caller: CallerOf, limit: Page = 20, after: After = None) -> BatchList:
    """The caller's own batches, newest first."""
    found = await jobs.listed(caller.id, limit=limit + 1, kind=KIND, after=after)
    failed = await jobs.failed_items([job.id for job in found])
    shown = [Batch.of(job, failed[job.id]) for job in found[:limit]]
    return BatchList.of(shown, more=len(found) > limit)


@router.get("/v1/batches/{id}", responses=ERRORS)
async def show_batch(id: str, jobs: JobsOf, caller: CallerOf) -> Batch:  # noqa: A002 - its name
    """One batch; 404 for another caller's too. GET /v1/jobs/{id}?wait=30 waits for its end."""
    return await _told(await batching.found(jobs, id, caller.id), jobs)


@router.post("/v1/batches/{id}/cancel", responses=ERRORS)
async def cancel_batch(id: str, jobs: JobsOf, caller: CallerOf) -> Batch:  # noqa: A002
    """Stop a batch; the results of the items that are done stay."""
    await batching.found(jobs, id, caller.id)
    return await _told(await jobs.cancel(id, caller.id), jobs)


@router.get(
    "/v1/batches/{id}/results",
    response_class=StreamingResponse,
    responses={200: {"content": {lines.MEDIA_TYPE: {"schema": {"type": "string"}}}}, **ERRORS},
)
async def batch_results(id: str, jobs: JobsOf, caller: CallerOf) -> StreamingResponse:  # noqa: A002
    """One JSON object a line for each item that is done by now, in the order of the items."""
    job = await batching.found(jobs, id, caller.id)
    return StreamingResponse(lines.results(jobs, job.id), media_type=lines.MEDIA_TYPE)


async def _told(job: Job, jobs: Jobs) -> Batch:
    return Batch.of(job, (await jobs.failed_items([job.id]))[job.id])


# --- orders become jobs --------------------------------------------------------------------------------------------


async def _names_file(request: Request) -> bool:
    loose = await read_json(request, _Loose)
    return loose.input_file_id is not None or loose.endpoint is not None


async def _of_requests(order: RequestBatch, settings: Settings, jobs: Jobs, caller: Caller) -> Job:
    file = await jobs.uploads.path(order.input_file_id, caller.id)
    total = await in_thread(lines.check, file, order.endpoint, settings.limits)
    asked = {"endpoint": order.endpoint, "input_file_id": order.input_file_id, "metadata": order.metadata}
    return await jobs.submit(KIND, asked, owner=caller.id, files=[file], total=total)


async def _of_items(order: WorkflowBatch, models: Models, settings: Settings, jobs: Jobs, caller: Caller) -> Job:
    chosen = _chosen(order, order.options).check(models, settings)
    names = _names([item.custom_id for item in order.items], settings)
    async with references.spool() as folder:
        kept_items = []
        for place, item in enumerate(order.items):
            kept_items.append(await kept.keep(item.images, settings, folder, f"items.{place}.images"))
        return await _submitted(order, chosen, order.metadata, names, kept_items, jobs, caller)


async def _of_form(request: Request, models: Models, settings: Settings, jobs: Jobs, caller: Caller) -> Job:
    async with studies.form(request, settings.limits, settings.limits.batch_items) as sent:
        texts, files = studies.sorted_out(sent, BatchForm.model_fields)
        order = checked(BatchForm, texts)
        if not files:
            raise InvalidRequest("no file was sent; send each study as a file named images", param="images")
        options = json_text(OBJECT, order.options, "options", "a JSON object")
        chosen = _chosen(order, options).check(models, settings)
        given = json_text(_NAMES, order.custom_ids, "custom_ids", "a JSON list of texts")
        if given and len(given) != len(files):
            raise InvalidRequest("custom_ids must name each file, in their order", param="custom_ids")
        names = _names(given or [None] * len(files), settings)
        metadata = json_text(_METADATA, order.metadata, "metadata", "a JSON object of texts") or None
        items = [kept.Kept((file,), ("file",)) for file in files]
        return await _submitted(order, chosen, metadata, names, items, jobs, caller)


def _chosen(order: Choice, options: Mapping[str, Any]) -> kept.Chosen:
    return kept.Chosen(order.workflow, order.model or "", options, order.temperature, order.seed)


def _names(given: Sequence[str | None], settings: Settings) -> list[str]:
    """Each item's name; raises InvalidRequest for too many items and for a name that two of them have."""
    if len(given) > settings.limits.batch_items:
        most = settings.limits.batch_items
        raise InvalidRequest(
            f"there are {len(given)} items; at most {most} are taken (limits.batch_items)", param="items"
        )
    names = [str(place) if name is None else name for place, name in enumerate(given)]
    if len(set(names)) < len(names):
        raise InvalidRequest("two items have the same custom_id; give each its own", param="custom_ids")
    return names


async def _submitted(
    order: Choice,
    chosen: kept.Chosen,
    metadata: Mapping[str, str] | None,
    names: Sequence[str],
    items: Sequence[kept.Kept],
    jobs: Jobs,
    caller: Caller,
) -> Job:
    asked = chosen.order | {
        "endpoint": f"/v1/workflows/{chosen.workflow}",
        "metadata": metadata,
        "parallel": order.parallel,
        "items": [{"custom_id": name, "kinds": item.kinds} for name, item in zip(names, items, strict=True)],
    }
    files = [file for item in items for file in item.files]
    return await jobs.submit(KIND, asked, owner=caller.id, files=files, total=len(items))


RUNNERS: Mapping[str, Runner] = {KIND: batching.run}
