"""A report that was made before comes in as JSON, and leaves in another format or as a text for the patient."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from medserve import leaflets
from medserve.api import exported, studies
from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.bodies import Strict, read_json, request_body, schema_of
from medserve.api.conversation import ModelName
from medserve.api.errors import WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.exports import Original
from medserve.imaging.intake import Wanted
from medserve.leaflets import LEVEL, Leaflet
from medserve.reports import Report

router = APIRouter(tags=["reports"])


class Export(Strict):
    """A report, and the study that it is about where the format shows it or needs it."""

    report: Report
    images: list[str] = Field(
        [], description="the study's files as data URIs, base64 texts or allowed references; DICOM for dicom-sr"
    )


@router.post(
    "/v1/reports/export",
    response_model=Report,
    responses={200: exported.documented(), **documented(406, *WORK_ERRORS)},
    openapi_extra=request_body({"application/json": schema_of(Export)}),
)
async def export(request: Request, settings: SettingsOf) -> Response:
    """A report in the format that the Accept header asks for, such as `application/pdf`; no model is needed.

    With `images` the study's pictures are shown; they have to be the very ones that the report is about.
    """
    format_ = exported.accepted(request)
    order = await read_json(request, Export)
    if not order.images:
        return await exported.answer(order.report, format_, Original())
    wanted = Wanted(order.report.study.modality, volume=False)
    reading = await studies.read(order.images, settings, wanted)
    files = await studies.contents(order.images, settings) if format_.needs_files else ()
    return await exported.answer(order.report, format_, Original(reading.study, files, settings.limits, wanted))


class Explain(Strict):
    """A report that is to be told in plain words."""

    report: Report
    level: int = Field(LEVEL, ge=1, le=16, description="the school grade of the readers")
    model: ModelName | None = None


@router.post(
    "/v1/reports/leaflet",
    response_model=Leaflet,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(*WORK_ERRORS)},
    openapi_extra=request_body({"application/json": schema_of(Explain)}),
)
async def explain(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """A text for the patient, from nothing but the report's findings; 400 where none of them may be told."""
    order = await read_json(request, Explain)
    handle = models.get(order.model)
    if not leaflets.tellable(order.report)[0]:
        raise leaflets.nothing_to_tell()
    await while_connected(request, held(handle, settings))
    leaflet = await while_connected(request, leaflets.explain(order.report, handle, order.level))
    if request.headers.get("accept", "").startswith("text/plain"):
        return Response(leaflets.as_text(leaflet) + "\n", media_type="text/plain; charset=utf-8")
    return Response(leaflet.model_dump_json(), media_type="application/json")
