"""Two facts under the names that probes know: the service lives, and the default model is ready."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from medserve import __version__
from medserve.api.access import ModelsOf
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.models import State

router = APIRouter(tags=["operations"], responses=documented(*LOOK_ERRORS))


class Live(BaseModel):
    """The service answers."""

    status: str = "ok"
    version: str = __version__


class Ready(BaseModel):
    """Whether the default model is loaded, and the state of every model."""

    ready: bool
    models: dict[str, State]


@router.get("/livez")
@router.get("/health")
@router.get("/v1/health/live")
async def live() -> Live:
    """Liveness: 200 as long as the gateway runs, whatever its models do."""
    return Live()


@router.get("/readyz", responses={503: {"model": Ready}})
@router.get("/v1/health/ready", responses={503: {"model": Ready}})
async def ready(models: ModelsOf, response: Response) -> Ready:
    """Readiness: 200 when the default model is loaded, else 503; both with the state of every model."""
    loaded = models.get().state is State.READY
    response.status_code = 200 if loaded else 503
    return Ready(ready=loaded, models={handle.name: handle.state for handle in models})
