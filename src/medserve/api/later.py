"""What is ordered now and done later: how a caller asks for it, what he is told of the job, and what it waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from medserve.errors import MemoryShort, ModelBusy, ModelFailed, ModelLoading, WorkerCrashed
from medserve.jobs import Job, JobState

T = TypeVar("T")

WAIT_SECONDS = 30.0
"""The longest that one request waits for a job; a service that stops waits for requests."""
PATIENCE = (ModelLoading, ModelBusy, MemoryShort)
"""What passes by itself; a job has time to wait for it."""
CRASHES = 3
"""How often a question may end the model's worker process; then it is what does not pass."""
PAUSE_SECONDS = 2.0
LONGEST_PAUSE = 30.0
FAILING_SECONDS = 600.0
"""How long one that has thousands of questions waits for a model that failed; three more loads fall into that time."""


class Progress(BaseModel):
    """How far a job has come."""

    done: int = Field(description="steps or items that are done")
    total: int | None = Field(description="how many there are; null where that shows on the way only")
    step: str | None = Field(description="what is being done now")


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class JobInfo(BaseModel):
    """A job. Times are Unix seconds."""

    id: str
    object: str = "job"
    kind: str
    state: JobState = Field(description="queued and running jobs go on; done, failed and cancelled are for good")
    progress: Progress
    error: JobError | None
    workflow: str | None = None
    model: str | None = None
    cancelling: bool = Field(description="it was told to end and has not ended yet")
    attempts: int = Field(description="how often it was begun since it last got on")
    created: float
    started: float | None
    ended: float | None
    expires: float | None = Field(description="when it and its result are deleted; null until it has ended")

    @classmethod
    def of(cls, job: Job) -> "JobInfo":
        return cls(
            id=job.id,
            kind=job.kind,
            state=job.state,
            progress=Progress(done=job.done, total=_total(job), step=job.step or None),
            error=None if job.error is None else JobError(code=job.error.code, message=job.error.message),
            workflow=job.order.get("workflow"),
            model=job.order.get("model"),
            cancelling=job.cancelling,
            attempts=job.attempts,
            created=job.created,
            started=job.started,
            ended=job.ended,
            expires=job.expires,
        )


def _total(job: Job) -> int | None:
    """Where nobody knew before how many steps there are, everybody does once they are done."""
    return job.total or (job.done if job.state is JobState.DONE else None)


PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": "respond-async (RFC 7240): take it as a job, answer 202 with the job and its address in Location",
    "schema": {"type": "string"},
}
"""The header, for an OpenAPI operation."""
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobInfo,
        "description": "Taken as a job, which is on disk now",
        "headers": {"Location": {"description": "where to ask for the job", "schema": {"type": "string"}}},
    }
}


def prefers_job(request: Request) -> bool:
    """Whether the caller asks for a job instead of an answer (`Prefer: respond-async`, RFC 7240)."""
    wishes = ",".join(request.headers.getlist("prefer")).split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)


def accepted(job: Job) -> JSONResponse:
    """The answer to an order that was taken as a job."""
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    return JSONResponse(JobInfo.of(job).model_dump(mode="json"), status_code=202, headers=headers)


async def patiently(ask: Callable[[], Awaitable[T]], *, failing: float = 0.0) -> T:
    """What `ask` brings, asked again for as long as what refuses it passes by itself.

    A model that failed, and will be loaded again, is waited for `failing` seconds; then its error is raised.
    """
    crashes = 0
    while True:
        try:
            return await ask()
        except PATIENCE as error:
            pause = error.retry_after
        except WorkerCrashed as error:
            crashes, pause = crashes + 1, error.retry_after
            if crashes == CRASHES:
                raise
        except ModelFailed as error:
            if error.retry_after is None or failing <= 0:
                raise
            pause = error.retry_after
            failing -= min(pause, LONGEST_PAUSE)
        await asyncio.sleep(min(PAUSE_SECONDS if pause is None else pause, LONGEST_PAUSE))
