"""OpenAI's files, as far as batches need them: requests are uploaded, results are fetched, and both expire."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import FileResponse, Response, StreamingResponse

from medserve.api import batching, lines, studies
from medserve.api.access import CallerOf, JobsOf, SettingsOf
from medserve.api.bodies import Strict, checked, request_body
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, documented
from medserve.api.lists import After, Deleted, Entry, Listed, Page
from medserve.errors import InvalidRequest, UnknownFile, UnknownJob
from medserve.jobs import Job, Jobs, Upload

router = APIRouter(tags=["batches"])

ERRORS = documented(*LOOK_ERRORS, 400, 503)
DAY = 86_400
_RESULTS = {"output": False, "errors": True}
"""What the names of result files begin with, and whether they hold the items that failed."""


class Uploaded(Strict):
    """The fields that come with a file."""

    purpose: Literal["batch"]
    anchor: Annotated[Literal["created_at"], Field(alias="expires_after[anchor]")] = "created_at"
    seconds: Annotated[int | None, Field(alias="expires_after[seconds]", ge=3600, le=30 * DAY)] = None


_FIELDS = tuple(field.alias or name for name, field in Uploaded.model_fields.items())


class FileInfo(Entry):
    """A file. Its own name is not kept: it may be a person's."""

    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, upload: Upload) -> "FileInfo":
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created),
            expires_at=int(upload.expires),
            filename=f"{upload.id}.jsonl",
            purpose="batch",
        )


class FileList(Listed[FileInfo]):
    """The caller's uploaded files, newest first."""


@router.post(
    "/v1/files",
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"multipart/form-data": studies.form_schema(Uploaded, "file")}),
)
async def upload_file(request: Request, settings: SettingsOf, jobs: JobsOf, caller: CallerOf) -> FileInfo:
    """Upload the requests of a batch: a form with `file`, JSON lines, and `purpose`, which is `batch`."""
    longest = settings.limits.job_days * DAY
    async with studies.form(request, settings.limits, 1) as sent:
        texts, files = studies.sorted_out(sent, _FIELDS, "file")
        told = checked(Uploaded, texts)
        if not files:
            raise InvalidRequest("no file was sent; send it under the name file", param="file")
        upload = await jobs.uploads.add(files[0], caller.id, told.purpose, min(told.seconds or longest, longest))
    return FileInfo.of(upload)


@router.get("/v1/files", responses=ERRORS)
async def list_files(jobs: JobsOf, caller: CallerOf, limit: Page = 20, after: After = None) -> FileList:
    """The caller's uploaded files, newest first."""
    found = await jobs.uploads.listed(caller.id, limit + 1, after)
    return FileList.of([FileInfo.of(upload) for upload in found[:limit]], more=len(found) > limit)


@router.get("/v1/files/{id}", responses=ERRORS)
async def show_file(id: str, jobs: JobsOf, caller: CallerOf) -> FileInfo:  # noqa: A002 - its name
    """One file, uploaded or of results; 404 for another caller's too."""
    if (named := _results(id)) is None:
        return FileInfo.of(await jobs.uploads.get(id, caller.id))
    job, failed = await _batch(named, jobs, caller.id), _RESULTS[named[0]]
    return FileInfo(
        id=id,
        bytes=await jobs.items_bytes(job.id, failed=failed),
        created_at=int(job.ended or job.created),
        expires_at=int(job.expires) if job.expires is not None else None,
        filename=f"{id}.jsonl",
        purpose="batch_output",
    )


@router.get(
    "/v1/files/{id}/content",
    response_class=Response,
    responses={200: {"content": {lines.MEDIA_TYPE: {"schema": {"type": "string"}}}}, **ERRORS},
)
async def file_content(id: str, jobs: JobsOf, caller: CallerOf) -> Response:  # noqa: A002
    """What is in a file: the requests as they were uploaded, or one result a line."""
    if (named := _results(id)) is None:
        return FileResponse(await jobs.uploads.path(id, caller.id), media_type=lines.MEDIA_TYPE)
    job = await _batch(named, jobs, caller.id)
    return StreamingResponse(lines.results(jobs, job.id, failed=_RESULTS[named[0]]), media_type=lines.MEDIA_TYPE)


@router.delete("/v1/files/{id}", responses=ERRORS)
async def delete_file(id: str, jobs: JobsOf, caller: CallerOf) -> Deleted:  # noqa: A002
    """Delete an uploaded file before it expires. Results go with their batch: DELETE /v1/jobs/{id}."""
    await jobs.uploads.delete(id, caller.id)
    return Deleted(id=id, object="file")


def _results(identifier: str) -> tuple[str, str] | None:
    """What a name of a result file says: which results, and of which job."""
    which, separator, number = identifier.partition("-")
    return (which, f"job_{number}") if separator and which in _RESULTS else None


async def _batch(named: tuple[str, str], jobs: Jobs, owner: str) -> Job:
    try:
        return await batching.found(jobs, named[1], owner)
    except UnknownJob:
        raise UnknownFile("there is no such file, or it has expired; GET /v1/files lists yours", param="id") from None
