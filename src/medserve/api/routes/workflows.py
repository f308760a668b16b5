"""Workflows over HTTP: a study in as files or as JSON, a report out."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from medserve import workflows
from medserve.api import studies
from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.bodies import JsonObject, Strict
from medserve.api.errors import LOOK_ERRORS, WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.errors import InvalidRequest
from medserve.generation import Sampling
from medserve.imaging.intake import Wanted
from medserve.reports import Report, as_text
from medserve.workflow import Workflow, examine

router = APIRouter(tags=["workflows"])


class WorkflowInfo(BaseModel):
    """What a workflow takes and what it may conclude with; `options` is a JSON Schema."""

    name: str
    title: str
    summary: str
    version: str
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

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False, description="0 is greedy and repeatable")] = (
        0.0
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None

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
        return _parsed(self.options)


_OPTIONS = TypeAdapter(JsonObject)


@router.get("/v1/workflows", responses=documented(*LOOK_ERRORS))
async def list_workflows() -> WorkflowList:
    """Every workflow that is installed."""
    return WorkflowList(data=[WorkflowInfo.of(workflow) for workflow in workflows.workflows().values()])


@router.get("/v1/workflows/{name}", responses=documented(*LOOK_ERRORS))
async def show_workflow(name: str) -> WorkflowInfo:
    """One workflow; 404 when there is none of that name."""
    return WorkflowInfo.of(workflows.find(name))


@router.post(
    "/v1/workflows/{name}",
    response_model=Report,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(*WORK_ERRORS)},
    openapi_extra=studies.bodies(Order, Form),
)
async def run_workflow(name: str, request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Examine a study and report on it: as JSON, or as text when `Accept: text/plain` asks for that."""
    workflow = workflows.find(name)
    async with studies.received(request, settings.limits, Order, Form) as (chosen, given):
        options = chosen.wishes
        workflow.chosen(options)
        handle = models.get(chosen.model)
        reading = studies.read(given, settings, Wanted(workflow.modality, volume=workflow.measures))
        study = (await while_connected(request, reading)).study
    workflow.check(study)
    await while_connected(request, held(handle, settings))
    report = await while_connected(request, examine(workflow, study, handle, options=options, sampling=chosen.sampling))
    if request.headers.get("accept", "").startswith("text/plain"):
        return Response(as_text(report) + "\n", media_type="text/plain; charset=utf-8")
    return Response(report.model_dump_json(), media_type="application/json")


def _parsed(options: str) -> dict[str, Any]:
    try:
        return _OPTIONS.validate_json(options)
    except ValidationError:
        raise InvalidRequest("options must be a JSON object", param="options") from None
