"""One path that two older services had: a form with a tissue picture is screened, JSON instances are analysed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from medserve.api import reasoning, studies
from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.analysis import Analysis, Instruction, analysed
from medserve.api.asking import Told, answered, check_words, sent, usual_length
from medserve.api.bodies import JsonObject, Strict, Words, checked, kind_of, read_json, request_body, schema_of
from medserve.api.conversation import ModelName, Names
from medserve.api.detail import Detailed
from medserve.api.errors import WORK_ERRORS, ErrorDetail, body_of, documented
from medserve.api.reasoning import Thinking
from medserve.api.streaming import while_connected
from medserve.errors import InvalidRequest, MedserveError, ModelError
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Study
from medserve.imaging.intake import Reading, Wanted
from medserve.models import ModelHandle, Models
from medserve.reports import Report
from medserve.settings import Settings
from medserve.workflows import histology

router = APIRouter(tags=["tasks"], route_class=Detailed)

IMAGE = "image_file"
ANSWER_TOKENS = 1024
"""An answer's length to a free question, as the older service had it."""


class Question(Strict):
    """The fields of the form that are no picture: a question of one's own, and who is to answer it."""

    question: Annotated[Words, Field(description="without it, a picture is screened for malignant gland changes")] = ""
    model: ModelName | None = None
    thinking: Thinking | None = None

    @property
    def names(self) -> Names:
        """What the form calls the fields that the layers below name in their errors; it has none for a length."""
        wish = reasoning.in_tokens(self.thinking)
        return {"messages": "question", "images": IMAGE} | reasoning.names(wish, "question", named=False)


class Prediction(BaseModel):
    """What a form is answered with: words for a person, and the same for a program.

    `verdict`, `probabilities` and `report` belong to the screening; `answer` to a question of the caller's own.
    """

    prediction: str
    verdict: histology.Verdict | None = None
    probabilities: dict[str, float] | None = Field(None, description="the model's own, of yes and no; not calibrated")
    flags: list[Flag]
    needs_review: bool = True
    report: Report | None = None
    answer: Told | None = None
    notice: str


class Instances(Strict):
    """Vertex AI's envelope: instructions that have nothing to do with one another."""

    instances: list[JsonObject]
    parameters: None = None


class Refused(BaseModel):
    """Stands in the place of an instance that could not be analysed; the others are."""

    result: None = None
    inference_time_ms: None = None
    error: ErrorDetail


class Predictions(BaseModel):
    """One answer for each instance, in their order."""

    predictions: list[Analysis | Refused]


def _form() -> dict[str, Any]:
    schema = schema_of(Question)
    return schema | {"properties": {IMAGE: {"type": "string", "format": "binary"}, **schema["properties"]}}


def _instances() -> dict[str, Any]:
    """The envelope as a caller should fill it; what an instance lacks is told in its place and refuses no other."""
    schema = schema_of(Instances)
    items = {"type": "object", "description": "as the body of POST /analyze"}
    instances = {"type": "array", "minItems": 1, "items": items}
    return schema | {"properties": schema["properties"] | {"instances": instances}}


@router.post(
    "/predict",
    response_model=Prediction | Predictions,
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"multipart/form-data": _form(), "application/json": _instances()}),
)
async def predict(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Screen a tissue picture or answer a question (a form), or analyse instances (JSON)."""
    match kind_of(request):
        case "multipart/form-data":
            return sent(await _of_form(request, models, settings))
        case "application/json":
            return sent(await _of_instances(request, models, settings))
        case _:
            raise HTTPException(415, f"send multipart/form-data with {IMAGE}, or application/json with instances")


@router.post(
    "/v1/endpoints/{endpoint}/deployedModels/{deployed}:predict",
    response_model=Predictions,
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"application/json": _instances()}),
)
async def predict_deployed(
    endpoint: str, deployed: str, request: Request, models: ModelsOf, settings: SettingsOf
) -> Response:
    """The same instances at the path that Vertex AI calls where a deployment names none."""
    return sent(await _of_instances(request, models, settings))


# --- the form ------------------------------------------------------------------------------------------------------


async def _of_form(request: Request, models: Models, settings: Settings) -> Prediction:
    async with studies.form(request, settings.limits) as form:
        texts, files = studies.sorted_out(form, Question.model_fields, IMAGE)
        asked = checked(Question, texts)
        check_words(asked.question, settings, "question")
        handle = models.get(asked.model)
        if len(files) > 1:
            raise InvalidRequest(f"{IMAGE} is given more than once; send one picture", param=IMAGE)
        if not files and not asked.question:
            raise InvalidRequest(f"send a picture as {IMAGE}, a question, or both", param=IMAGE)
        handle.refuse_full()
        study = (await while_connected(request, _seen(files[0], settings))).study if files else None
    if asked.question or study is None:
        return await while_connected(request, _told(asked, handle, settings, study))
    histology.workflow.check(study)
    return await while_connected(request, _screened(study, handle, settings))


async def _seen(file: Path, settings: Settings) -> Reading:
    return await studies.read_one(file, settings, Wanted(histology.workflow.modality, volume=False), IMAGE)


async def _screened(study: Study, handle: ModelHandle, settings: Settings) -> Prediction:
    await held(handle, settings)
    report = await examine(histology.workflow, study, handle)
    return Prediction(
        prediction=histology.in_words(report.conclusion),
        verdict=histology.verdict(report.conclusion),
        probabilities=report.conclusion.probabilities,
        flags=list(report.flags),
        needs_review=report.needs_review,
        report=report,
        notice=report.notice,
    )


async def _told(asked: Question, handle: ModelHandle, settings: Settings, study: Study | None) -> Prediction:
    await held(handle, settings)
    most = usual_length(asked.thinking, ANSWER_TOKENS, handle)
    given = await answered(handle, asked.question, most, study, thinking=asked.thinking, names=asked.names)
    told = given.told
    return Prediction(prediction=given.result.text, flags=told.flags, answer=told, notice=told.notice)


# --- instances -----------------------------------------------------------------------------------------------------


async def _of_instances(request: Request, models: Models, settings: Settings) -> Predictions:
    given = (await read_json(request, Instances)).instances
    if not given:
        raise InvalidRequest("no instances were provided; give at least one", param="instances")
    if len(given) > settings.limits.images:
        raise InvalidRequest(
            f"there are {len(given)} instances; at most {settings.limits.images} are taken, more as a batch",
            param="instances",
        )
    return await while_connected(request, _each(given, models, settings))


async def _each(instances: list[dict[str, Any]], models: Models, settings: Settings) -> Predictions:
    """One after another, so that one caller takes one place of the model; what one lacks is told in its place.

    That the model cannot answer at all is no instance's fault, and is the answer to the whole request.
    """
    told: list[Analysis | Refused] = []
    for place, instance in enumerate(instances):
        try:
            told.append(await _analysed(instance, models, settings))
        except ModelError:
            raise
        except MedserveError as error:
            told.append(Refused(error=_placed(error, f"instances.{place}")))
    return Predictions(predictions=told)


async def _analysed(instance: Mapping[str, Any], models: Models, settings: Settings) -> Analysis:
    order = checked(Instruction, instance, strict=True)
    return await analysed(order, models.get(order.model), settings)


def _placed(error: MedserveError, place: str) -> ErrorDetail:
    told = body_of(error).error
    return told.model_copy(update={"param": f"{place}.{told.param}" if told.param else place})
