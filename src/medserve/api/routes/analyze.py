"""A prompt in, JSON or text out, in one request: the shapes of the Cloud Run service, for the callers that it had."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from medserve.api.access import ModelsOf, SettingsOf, held
from medserve.api.analysis import Analysis, Instruction, analysed
from medserve.api.asking import Answered, Asked, Told, answered, sent
from medserve.api.bodies import read_json, request_body, schema_of
from medserve.api.conversation import Tokens
from medserve.api.detail import Detailed
from medserve.api.errors import WORK_ERRORS, documented
from medserve.api.streaming import while_connected
from medserve.models import ModelHandle
from medserve.settings import Settings

router = APIRouter(tags=["tasks"], route_class=Detailed)


class Wording(Asked):
    """A prompt without pictures."""

    max_tokens: Tokens = 1000


class Generated(Told):
    """The model's words."""

    text: str = Field(description="the answer, without the thinking")


@router.post(
    "/analyze",
    response_model=Analysis,
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"application/json": schema_of(Instruction)}),
)
async def analyze(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Follow an instruction about pictures, or about none, and give the answer as JSON that the model wrote."""
    order = await read_json(request, Instruction)
    handle = models.get(order.model)
    return sent(await while_connected(request, analysed(order, handle, settings)))


@router.post(
    "/generate",
    response_model=Generated,
    responses=documented(*WORK_ERRORS),
    openapi_extra=request_body({"application/json": schema_of(Wording)}),
)
async def generate(request: Request, models: ModelsOf, settings: SettingsOf) -> Response:
    """Answer a prompt in words."""
    order = await read_json(request, Wording)
    order.check(settings)
    given = await while_connected(request, _worded(order, models.get(order.model), settings))
    return sent(Generated(**given.told.model_dump(), text=given.result.text))


async def _worded(order: Wording, handle: ModelHandle, settings: Settings) -> Answered:
    await held(handle, settings)
    return await answered(handle, order.prompt, order.tokens(handle), thinking=order.thinking, names=order.names)
