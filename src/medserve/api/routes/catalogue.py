"""A catalogue of pictures with what is known of them: looked at, examined at once or as a job, and compared.

The shapes are those of the dermoscopy review page; what could not be read is null there, and never a benign class.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from medserve import references, workflows
from medserve.api import kept
from medserve.api.access import CallerOf, JobsOf, ModelsOf, SettingsOf, held
from medserve.api.asking import sent
from medserve.api.bodies import JsonObject, Strict, read_json, request_body, schema_of
from medserve.api.conversation import ModelName
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, ErrorDetail, body_of, documented
from medserve.api.streaming import while_connected
from medserve.catalogue import Catalogue, Known
from medserve.errors import UnknownJob, UnknownPicture
from medserve.examination import examine
from medserve.imaging import intake
from medserve.jobs import Failure, Job, Jobs, JobState, Runner, Work
from medserve.keys import Caller
from medserve.models import ModelHandle, Models
from medserve.reports import Report, as_text, in_words
from medserve.settings import Settings
from medserve.threads import in_thread

router = APIRouter(tags=["catalogue"])

KIND = "analysis"
WORKFLOW = "dermoscopy"
SHOWN_AS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
"""A file of the catalogue is a picture in a page and never a page itself."""


class Chosen(Strict):
    """Which picture is to be examined, by which model, and what the workflow lets choose."""

    filename: Annotated[str, Field(min_length=1, max_length=255)]
    model: ModelName | None = None
    options: JsonObject = Field({}, description="GET /v1/workflows/dermoscopy says which there are")


class Pictured(BaseModel):
    """A picture of the catalogue and what is known of it."""

    filename: str
    gt_code: str = Field(description="the code of its diagnosis; UNK where none is known")
    gt_attr: str


class CatalogueList(BaseModel):
    """The whole catalogue, and how well its pictures and its CSV file fit together."""

    object: str = "list"
    data: list[Pictured]
    rows: int = Field(description="rows of the CSV file that name a picture")
    duplicates: int = Field(description="rows for a picture that an earlier row was about; the first counts")
    without_file: int = Field(description="pictures that the CSV file knows and the folder has not")
    without_row: int = Field(description="pictures that the folder has and the CSV file does not know")
    problem: str | None = Field(None, description="why nothing is known of any picture")


class Adjudication(BaseModel):
    """The report under the names of the review page, and the report itself."""

    ai_code: str | None = Field(description="the class; null where none could be read, which is no class at all")
    raw_obs: dict[str, str | None] = Field(description="each observation; null where it could not be read")
    adj_desc: str = Field(description="the second look, without the sentences that `report` says were left out")
    final_implication: str = Field(description="the report as text")
    gt_code: str
    gt_attr: str
    report: Report


class Accepted(BaseModel):
    """The job that examines the picture; GET /api/status/{job_id} tells how it stands."""

    job_id: str


class Running(BaseModel):
    """The job waits or works; `done` questions were answered, and `step` is the one that is asked now."""

    status: Literal["running"] = "running"
    done: int = 0
    step: str = ""


class Done(BaseModel):
    """The job is done."""

    status: Literal["done"] = "done"
    result: Adjudication


class Failed(BaseModel):
    """The job ended without a result, and why."""

    status: Literal["error"] = "error"
    error: str
    code: str


class NotFound(BaseModel):
    """There is no such job."""

    status: Literal["not_found"] = "not_found"
    error: ErrorDetail


# --- pictures ------------------------------------------------------------------------------------------------------


@router.get("/api/list-images", responses=documented(*LOOK_ERRORS))
async def list_images(settings: SettingsOf) -> list[str]:
    """The names of the pictures that are in the catalogue's folder now."""
    return await in_thread(_catalogue(settings).names)


@router.get("/api/catalogue", responses=documented(*LOOK_ERRORS))
async def show_catalogue(settings: SettingsOf) -> CatalogueList:
    """Every picture with what is known of it, and what does not fit together."""
    return await in_thread(_listed, _catalogue(settings))


@router.get(
    "/images/{name:path}",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **documented(*LOOK_ERRORS, 413)},
)
async def show_image(name: str, settings: SettingsOf) -> Response:
    """One picture of the catalogue, as it lies there."""
    data, kind = await in_thread(_catalogue(settings).picture, name, settings.limits.image_bytes)
    return Response(data, media_type=kind, headers=SHOWN_AS)


def _catalogue(settings: Settings) -> Catalogue:
    if settings.catalogue is None:
        raise UnknownPicture("there is no catalogue; the setting `catalogue` names a folder of pictures")
    return Catalogue(settings.catalogue)


def _listed(catalogue: Catalogue) -> CatalogueList:
    labels, names = catalogue.labels(), catalogue.names()
    known = set().union(*(labels.names(name) for name in names))
    return CatalogueList(
        data=[
            Pictured(filename=name, gt_code=labels.of(name).code, gt_attr=labels.of(name).attributes) for name in names
        ],
        rows=labels.read,
        duplicates=labels.duplicates,
        without_file=len(labels.rows.keys() - known),
        without_row=sum(not labels.names(name) for name in names),
        problem=labels.problem or None,
    )


# --- examinations --------------------------------------------------------------------------------------------------


@router.post(
    "/api/analyze",
    response_model=Accepted | Adjudication,
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"application/json": schema_of(Chosen)}),
)
async def analyze_image(
    request: Request, models: ModelsOf, settings: SettingsOf, jobs: JobsOf, caller: CallerOf, wait: bool = False
) -> Response:
    """Examine a picture of the catalogue: as a job, whose number is the answer, or at once with `?wait=true`."""
    chosen = await read_json(request, Chosen)
    handle = models.get(chosen.model)
    workflows.find(WORKFLOW).chosen(chosen.options)
    catalogue = _catalogue(settings)
    data, _ = await in_thread(catalogue.picture, chosen.filename, settings.limits.image_bytes)
    if wait:
        report = await while_connected(request, _examined(data, chosen.options, handle, settings))
        known = (await in_thread(catalogue.labels)).of(chosen.filename)
        return sent(adjudication(report, known))
    return sent(Accepted(job_id=(await _submitted(chosen, handle.name, data, jobs, caller)).id))


async def _submitted(chosen: Chosen, model: str, data: bytes, jobs: Jobs, caller: Caller) -> Job:
    """The job, with the picture as it is now."""
    order = kept.Chosen(WORKFLOW, model, chosen.options).order
    async with references.spool() as folder:
        file = folder / "picture"
        await in_thread(file.write_bytes, data)
        return await jobs.submit(KIND, order | {"filename": chosen.filename}, owner=caller.id, files=[file], total=0)


@router.get(
    "/api/status/{job_id}",
    response_model=Running | Done | Failed,
    responses={**documented(*LOOK_ERRORS), 404: {"model": NotFound}},
)
async def job_status(job_id: str, jobs: JobsOf, caller: CallerOf) -> Response:
    """How an examination stands: running, done with its result, or ended with an error."""
    try:
        job = await jobs.get(job_id, caller.id)
        if job.kind != KIND:
            raise UnknownJob("this job is no examination of a picture; GET /v1/jobs/{id} tells of it", param="job_id")
    except UnknownJob as error:
        return JSONResponse(NotFound(error=body_of(error).error).model_dump(), status_code=404)
    if job.state is JobState.DONE:
        return JSONResponse({"status": "done", "result": await jobs.result(job_id, caller.id)})
    return sent(_unfinished(job))


def _unfinished(job: Job) -> Running | Failed:
    if job.state in (JobState.QUEUED, JobState.RUNNING):
        return Running(done=job.done, step=job.step)
    failure = job.error or Failure("cancelled", "the job was cancelled; ask for a new one")
    return Failed(error=failure.message, code=failure.code)


async def _examined(data: bytes, options: Mapping[str, Any], handle: ModelHandle, settings: Settings) -> Report:
    workflow = workflows.find(WORKFLOW)
    study = await intake.read([data], settings.limits, kept.wanted_of(workflow))
    await held(handle, settings)
    return await examine(workflow, study, handle, options=options)


def adjudication(report: Report, known: Known) -> Adjudication:
    """A dermoscopy report under the review page's names, beside what is known of the picture."""
    found = report.conclusion
    return Adjudication(
        ai_code=found.label,
        raw_obs={one.name: None if one.value is None else in_words(one.value) for one in found.findings},
        adj_desc=found.description,
        final_implication=as_text(report),
        gt_code=known.code,
        gt_attr=known.attributes,
        report=report,
    )


# --- jobs ----------------------------------------------------------------------------------------------------------


async def _work(work: Work, models: Models, settings: Settings) -> Mapping[str, Any]:
    """The runner: it waits for the model as long as it takes, and tells which question is being asked."""
    report = await kept.worked(work, ["file"], models, settings)
    known = (await in_thread(_catalogue(settings).labels)).of(work.order["filename"])
    return kept.as_result(adjudication(report, known))


RUNNERS: Mapping[str, Runner] = {KIND: _work}
