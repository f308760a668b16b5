"""Jobs over HTTP: what became of an order, while it is worked on and for some days afterwards."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from medserve.api.access import CallerOf, JobsOf
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.api.later import WAIT_SECONDS, JobInfo
from medserve.api.lists import After, Deleted, Page
from medserve.errors import JobUnfinished
from medserve.jobs import JobState

router = APIRouter(tags=["jobs"])

ERRORS = documented(*LOOK_ERRORS, 400, 503)

Wait = Annotated[
    float, Query(ge=0, le=WAIT_SECONDS, allow_inf_nan=False, description="wait so many seconds for the end")
]


class JobList(BaseModel):
    """The caller's jobs, newest first."""

    object: str = "list"
    data: list[JobInfo]
    has_more: bool


@router.get("/v1/jobs", responses=ERRORS)
async def list_jobs(
    jobs: JobsOf,
    caller: CallerOf,
    limit: Page = 20,
    after: After = None,
    kind: Annotated[str | None, Query(pattern="^[a-z_]{1,40}$")] = None,
) -> JobList:
    """The caller's own jobs, newest first."""
    found = await jobs.listed(caller.id, limit=limit + 1, kind=kind, after=after)
    return JobList(data=[JobInfo.of(job) for job in found[:limit]], has_more=len(found) > limit)


@router.get("/v1/jobs/{id}", responses=ERRORS)
async def show_job(id: str, jobs: JobsOf, caller: CallerOf, wait: Wait = 0) -> JobInfo:  # noqa: A002 - its name
    """One job, at once or when it has ended; 404 for another caller's too."""
    return JobInfo.of(await jobs.wait(id, caller.id, wait))


@router.get(
    "/v1/jobs/{id}/result",
    response_model=dict[str, Any],
    responses={**ERRORS, **documented(409)},
)
async def job_result(id: str, jobs: JobsOf, caller: CallerOf) -> Response:  # noqa: A002
    """What the job brought: what the same request would have been answered with at once."""
    result = await jobs.result(id, caller.id)
    if result is not None:
        return JSONResponse(result)
    job = await jobs.get(id, caller.id)
    match job.state:
        case JobState.FAILED if job.error is not None:
            raise JobUnfinished(f"the job failed ({job.error.code}): {job.error.message}", param="id")
        case JobState.CANCELLED:
            raise JobUnfinished("the job was cancelled and has no result", param="id")
        case _:
            raise JobUnfinished("the job has not ended; ask GET /v1/jobs/{id}?wait=30", param="id", retry_after=5)


@router.post("/v1/jobs/{id}/cancel", responses=ERRORS)
async def cancel_job(id: str, jobs: JobsOf, caller: CallerOf) -> JobInfo:  # noqa: A002
    """Stop a job; one that has ended stays as it is. `cancelling` says that it needs another moment."""
    return JobInfo.of(await jobs.cancel(id, caller.id))


@router.delete("/v1/jobs/{id}", responses={**ERRORS, **documented(409)})
async def delete_job(id: str, jobs: JobsOf, caller: CallerOf) -> Deleted:  # noqa: A002
    """Stop a job if it runs, and delete it with its result before it expires by itself."""
    await jobs.delete(id, caller.id)
    return Deleted(id=id, object="job")
