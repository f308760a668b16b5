"""The models there are, in OpenAI's shape, with the state that each is in; and the few orders that change it."""

from typing import Any

from fastapi import APIRouter, Request, Response

from medserve.api.access import ModelsOf, needs
from medserve.api.bodies import read_json, request_body, schema_of
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.api.inventory import Model, ModelList
from medserve.api.lists import Deleted
from medserve.keys import Scope
from medserve.models import ModelHandle
from medserve.settings import ModelSpec

router = APIRouter(tags=["models"], responses=documented(*LOOK_ERRORS))

ADMIN = [needs(Scope.ADMIN)]


READY_ALREADY: dict[int | str, dict[str, Any]] = {200: {"model": Model, "description": "It is loaded already."}}


@router.get("/v1/models")
async def list_models(models: ModelsOf) -> ModelList:
    """Every model, loaded or not."""
    await models.weigh()
    return ModelList(data=[Model.of(handle) for handle in models])


@router.get("/v1/models/{name:path}")
async def show_model(name: str, models: ModelsOf) -> Model:
    """One model; 404 when there is none of that name."""
    handle = models.get(name)
    await handle.weigh()
    return Model.of(handle)


@router.post(
    "/v1/models",
    status_code=201,
    dependencies=ADMIN,
    openapi_extra=request_body({"application/json": schema_of(ModelSpec)}),
    responses=documented(400, 413, 415),
)
async def add_model(request: Request, models: ModelsOf) -> Model:
    """Add a model until the service ends; the fields are those of the settings, and files are named absolutely.

    It is loaded when it is first asked, or at once with `preload`.
    """
    return Model.of(await models.add(await read_json(request, ModelSpec)))


@router.post(
    "/v1/models/{name:path}/load", status_code=202, dependencies=ADMIN, responses=READY_ALREADY | documented(503)
)
async def load_model(name: str, models: ModelsOf, response: Response) -> Model:
    """Begin to load a model: 202 while it loads, 200 when it is ready, 503 while a failure may not be tried again."""
    handle = models.get(name)
    handle.begin()
    handle.refuse_too_early()
    return _told(handle, response)


@router.post("/v1/models/{name:path}/retry", status_code=202, dependencies=ADMIN, responses=READY_ALREADY)
async def retry_model(name: str, models: ModelsOf, response: Response) -> Model:
    """Forget that loads failed, and begin to load: 202 while it loads, 200 when it is ready already."""
    handle = models.get(name)
    handle.retry()
    return _told(handle, response)


@router.post("/v1/models/{name:path}/unload", dependencies=ADMIN)
async def unload_model(name: str, models: ModelsOf) -> Model:
    """Give a model's memory back, pinned or not; 429 while requests are at work. The next request loads it again."""
    handle = models.get(name)
    await handle.unload()
    return Model.of(handle)


@router.delete("/v1/models/{name:path}", dependencies=ADMIN, responses=documented(400))
async def remove_model(name: str, models: ModelsOf) -> Deleted:
    """Unload and forget a model that was added; 400 for one of the settings, 429 while requests are at work."""
    handle = models.get(name)
    await models.remove(handle.name)
    return Deleted(id=handle.name, object="model")


def _told(handle: ModelHandle, response: Response) -> Model:
    response.status_code = 200 if handle.alive else 202
    return Model.of(handle)
