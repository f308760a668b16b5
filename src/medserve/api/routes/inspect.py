"""What a model would be shown of a study, over HTTP: facts and warnings as JSON, or the contact sheet as a picture."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from medserve import inspection
from medserve.api import studies
from medserve.api.access import SettingsOf
from medserve.api.bodies import Strict, checked, kind_of, read_json, request_body, schema_of
from medserve.api.errors import WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.imaging.intake import Wanted
from medserve.inspection import Inspection
from medserve.settings import Limits

router = APIRouter(tags=["studies"])


class View(Strict):
    """How a study is to be looked at; of a slide, which patches."""

    modality: Annotated[str, Field(max_length=20, description="for files that do not say it: CT, MR, DX, SM, ...")] = ""
    patches: Annotated[int, Field(ge=1, le=125)] = 125
    magnification: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, description="0: 10x or less")] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    mpp: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False, description="0: as the slide says")] = 0.0

    @property
    def wanted(self) -> Wanted:
        modality = inspection.modality(self.modality) if self.modality else None
        return Wanted(modality, self.patches, self.magnification, self.seed, self.mpp)


class ViewOf(View):
    """A study to be looked at. `images` are its files: data URIs, base64 texts, or references that are allowed."""

    images: Annotated[list[str], Field(min_length=1)]


def _form_schema() -> dict[str, Any]:
    schema = schema_of(View)
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    return schema | {"properties": {"images": files, **schema["properties"]}, "required": ["images"]}


@router.post(
    "/v1/inspect",
    response_model=Inspection,
    responses={200: {"content": {"image/png": {}}}, **documented(*WORK_ERRORS)},
    openapi_extra=request_body({"application/json": schema_of(ViewOf), "multipart/form-data": _form_schema()}),
)
async def inspect(request: Request, settings: SettingsOf) -> Response:
    """Facts, warnings and what the model sees of a study; the contact sheet when `Accept: image/png` asks for it."""
    async with _received(request, settings.limits) as (view, given):
        reading = await while_connected(request, studies.read(given, settings, view.wanted))
    found = await inspection.shown(reading)
    if request.headers.get("accept", "").startswith("image/png"):
        return Response(found.sheet, media_type="image/png")
    return Response(found.inspection.model_dump_json(), media_type="application/json")


@asynccontextmanager
async def _received(request: Request, limits: Limits) -> AsyncIterator[tuple[View, Sequence[str | Path]]]:
    match kind_of(request):
        case "application/json":
            view = await read_json(request, ViewOf)
            yield view, view.images
        case "multipart/form-data":
            async with studies.form(request, limits) as form:
                fields, files = studies.sorted_out(form, View.model_fields)
                yield checked(View, fields), files
        case _:
            raise HTTPException(415, "send multipart/form-data with files named images, or application/json")
