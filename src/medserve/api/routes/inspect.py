"""What a model would be shown of a study, over HTTP: facts and warnings as JSON, or the contact sheet as a picture."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from medserve import inspection
from medserve.api import studies
from medserve.api.access import SettingsOf
from medserve.api.bodies import Strict
from medserve.api.conversation import Seed
from medserve.api.errors import WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.imaging.intake import Wanted
from medserve.inspection import Inspection
from medserve.threads import in_thread

router = APIRouter(tags=["studies"])


class View(Strict):
    """How a study is to be looked at; of a slide, which patches."""

    modality: Annotated[str, Field(max_length=20, description="for files that do not say it: CT, MR, DX, SM, ...")] = ""
    patches: Annotated[int, Field(ge=1, le=125)] = 125
    magnification: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, description="0: 10x or less")] = 0.0
    seed: Seed = 0
    mpp: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False, description="0: as the slide says")] = 0.0

    @property
    def wanted(self) -> Wanted:
        modality = inspection.modality(self.modality) if self.modality else None
        return Wanted(modality, self.patches, self.magnification, self.seed, self.mpp)


class ViewOf(View, studies.Sent):
    """A study to be looked at."""


@router.post(
    "/v1/inspect",
    response_model=Inspection,
    responses={200: {"content": {"image/png": {}}}, **documented(*WORK_ERRORS)},
    openapi_extra=studies.bodies(ViewOf, View),
)
async def inspect(request: Request, settings: SettingsOf) -> Response:
    """Facts, warnings and what the model sees of a study; the contact sheet when `Accept: image/png` asks for it."""
    async with studies.received(request, settings.limits, ViewOf, View) as (view, given):
        reading = await while_connected(request, studies.read(given, settings, view.wanted))
    found = await inspection.shown(reading)
    if request.headers.get("accept", "").startswith("image/png"):
        return Response(await in_thread(lambda: found.sheet), media_type="image/png")
    return Response(found.inspection.model_dump_json(), media_type="application/json")
