"""What probes ask, under the names that they know: does the service live, is the default model ready, on which GPU?"""

from collections.abc import Mapping
from time import monotonic
from typing import Literal

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, Field

from medserve import __version__, machine
from medserve.api.access import ModelsOf
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.machine import Gpus
from medserve.models import State
from medserve.threads import in_thread

router = APIRouter(tags=["operations"], responses=documented(*LOOK_ERRORS))


class Live(BaseModel):
    """The service answers."""

    status: str = "ok"
    version: str = __version__


class Ready(BaseModel):
    """Whether the default model takes requests, and the state of every model."""

    ready: bool
    models: dict[str, State]


class Health(Live):
    """The default model's state in the words of older services, and the GPU that this machine has.

    `gpu_name` is null where there is no GPU, and `gpu_reason` says then why.
    """

    status: Literal["healthy", "loading", "failed", "cold"]
    model: str
    model_loaded: bool
    error: str | None = Field(None, description="why the last load failed, or why the model cannot see")
    gpu_available: bool
    gpu_name: str | None
    gpu_reason: str | None
    models: dict[str, State]


STATES: Mapping[State, Literal["healthy", "loading", "failed", "cold"]] = {
    State.COLD: "cold",
    State.LOADING: "loading",
    State.READY: "healthy",
    State.FAILED: "failed",
}

GPU_SECONDS = 10.0
"""How long the driver's word stands: GPUs do not come and go, and asking takes longer than the rest of the answer."""


@router.head("/livez", include_in_schema=False)
@router.head("/v1/health/live", include_in_schema=False)
@router.get("/livez")
@router.get("/v1/health/live")
async def live() -> Live:
    """Liveness: 200 as long as the gateway runs, whatever its models do."""
    return Live()


@router.head("/readyz", include_in_schema=False)
@router.head("/v1/health/ready", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Ready}})
@router.get("/v1/health/ready", responses={503: {"model": Ready}})
async def ready(models: ModelsOf, response: Response) -> Ready:
    """Readiness: 200 when the default model takes requests, 503 while it loads and when it has failed.

    A model that was unloaded because nobody used it takes requests: the first one loads it.
    """
    accepting = models.get().accepting
    response.status_code = 200 if accepting else 503
    return Ready(ready=accepting, models={handle.name: handle.state for handle in models})


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request, models: ModelsOf) -> Health:
    """How things stand. It is 200 whatever the model does: those who restart what is not 200 want `/livez`."""
    status = models.get().status
    found = await _gpus(request.app)
    return Health(
        status=STATES[status.state],
        model=status.name,
        model_loaded=status.state is State.READY,
        error=status.error or status.blind,
        gpu_available=bool(found.devices),
        gpu_name=", ".join(gpu.name for gpu in found.devices) or None,
        gpu_reason=found.reason or None,
        models={handle.name: handle.state for handle in models},
    )


async def _gpus(app: FastAPI) -> Gpus:
    told: tuple[float, Gpus] | None = getattr(app.state, "gpus", None)
    if told is None or monotonic() - told[0] > GPU_SECONDS:
        app.state.gpus = told = monotonic(), await in_thread(machine.gpus)
    return told[1]
