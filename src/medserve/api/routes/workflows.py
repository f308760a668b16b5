"""Workflows over HTTP: a study in as files or as JSON, a report out."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from medserve import references, workflows
from medserve.api import exported, kept, later, studies
from medserve.api.access import CallerOf, JobsOf, ModelsOf, SettingsOf, held
from medserve.api.bodies import OBJECT, JsonObject, Strict, json_text
from medserve.api.conversation import ModelName, Seed, Temperature
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.examination import calibrations_of, examine
from medserve.exports import Original
from medserve.generation import Sampling
from medserve.jobs import Runner, Work
from medserve.models import Models
from medserve.reports import Report
from medserve.settings import Settings
from medserve.workflow import Workflow

router = APIRouter(tags=["workflows"])


class Taken(BaseModel):
    """What the guard holds a study against; `null` and empty lists mean that nothing is asked of it."""

    modalities: list[str] = Field(description="what files may state, as DICOM's codes; empty where it does not matter")
    looks: list[str] = Field(description="what is computed of the pixels")
    kind: str | None = Field(description="what the model should take the picture for")

    @classmethod
    def of(cls, workflow: Workflow) -> "Taken":
        domain = workflow.domain
        if domain is None:
            return cls(modalities=[], looks=[], kind=None)
        looks = [getattr(look, "__name__", "look") for look in domain.looks]
        return cls(modalities=sorted(domain.modalities), looks=looks, kind=domain.kind or None)


class WorkflowInfo(BaseModel):
    """What a workflow takes and what it may conclude with; `options` is a JSON Schema."""

    name: str
    title: str
    summary: str
    version: str
    takes: str = Field(description="what the workflow is for, in words")
    guard: Taken
    modality: str
    max_images: int
    labels: dict[str, str]
    options: dict[str, Any]

    @classmethod
    def of(cls, workflow: Workflow) -> "WorkflowInfo":
        return cls(
            name=workflow.name,
            title=workflow.title,
            summary=workflow.summary,
            version=workflow.version,
            takes=workflow.takes,
            guard=Taken.of(workflow),
            modality=workflow.modality,
            max_images=workflow.max_images,
            labels=dict(workflow.labels),
            options=workflow.options.model_json_schema(),
        )


class WorkflowList(BaseModel):
    """All workflows."""

    object: str = "list"
    data: list[WorkflowInfo]


class Chosen(Strict):
    """What may be chosen beside the pictures."""

    model: ModelName | None = None
    temperature: Temperature = Field(0.0, description="0 is greedy and repeatable")
    seed: Seed | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, seed=self.seed)


class Order(Chosen, studies.Sent):
    """A study to be examined."""

    options: JsonObject = Field({}, description="what the workflow itself lets choose; GET it to see")

    @property
    def wishes(self) -> dict[str, Any]:
        return self.options


class Form(Chosen):
    """The fields of an order that are no pictures, as a form sends them."""

    options: Annotated[str, Field(description="a JSON object")] = "{}"

    @property
    def wishes(self) -> dict[str, Any]:
        return json_text(OBJECT, self.options, "options", "a JSON object")


@router.get("/v1/workflows", responses=documented(*LOOK_ERRORS))
async def list_workflows(settings: SettingsOf) -> WorkflowList:
    """Every workflow that is installed."""
    known = workflows.workflows(settings.workflow_folder)
    return WorkflowList(data=[WorkflowInfo.of(workflow) for workflow in known.values()])


@router.get("/v1/workflows/{name}", responses=documented(*LOOK_ERRORS))
async def show_workflow(name: str, settings: SettingsOf) -> WorkflowInfo:
    """One workflow; 404 when there is none of that name."""
    return WorkflowInfo.of(workflows.find(name, settings.workflow_folder))


@router.post(
    "/v1/workflows/{name}",
    response_model=Report,
    responses={
        200: exported.documented(),
        **later.ACCEPTED,
        **documented(406, *WORK_ERRORS),
    },
    openapi_extra=studies.bodies(Order, Form) | {"parameters": [later.PREFER]},
)
async def run_workflow(
    name: str, request: Request, models: ModelsOf, settings: SettingsOf, jobs: JobsOf, caller: CallerOf
) -> Response:
    """Examine a study and report on it, in the format that the Accept header likes best; JSON where it does not mind.

    Where the model has no room left, that is said before the pictures are read. With `Prefer: respond-async` the study
    is taken as a job instead, whose result is the report.
    """
    workflow = workflows.find(name, settings.workflow_folder)
    format_ = exported.accepted(request)
    as_job = later.prefers_job(request)
    if as_job:
        await jobs.room()
    async with studies.received(request, settings.limits, Order, Form) as (chosen, given):
        options = chosen.wishes
        workflow.chosen(options)
        handle = models.get(chosen.model)
        if as_job:
            ordered = kept.Chosen(name, handle.name, options, chosen.temperature, chosen.seed)
            async with references.spool() as folder:
                study_kept = await kept.keep(given, settings, folder)
                order = ordered.order | {"kinds": study_kept.kinds}
                job = await jobs.submit("workflow", order, owner=caller.id, files=study_kept.files, total=0)
            return later.accepted(job)
        handle.refuse_full()
        reading = studies.read(given, settings, kept.wanted_of(workflow))
        study = (await while_connected(request, reading)).study
        files = await studies.contents(given, settings) if format_.needs_files else ()
    workflow.check(study)
    await while_connected(request, held(handle, settings))
    fits = await calibrations_of(workflow, options, handle, settings.home)
    examination = examine(workflow, study, handle, options=options, sampling=chosen.sampling, calibrations=fits)
    report = await while_connected(request, examination)
    return await exported.answer(report, format_, Original(study, files, settings.limits, kept.wanted_of(workflow)))


async def _work(work: Work, models: Models, settings: Settings) -> dict[str, Any]:
    """One examination as a job."""
    return kept.as_result(await kept.worked(work, work.order["kinds"], models, settings))


RUNNERS: Mapping[str, Runner] = {"workflow": _work}
