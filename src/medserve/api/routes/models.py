"""The models there are, in OpenAI's shape, with the state that each is in."""

from fastapi import APIRouter
from pydantic import BaseModel

from medserve.api.access import ModelsOf
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.models import ModelHandle, State

router = APIRouter(tags=["models"], responses=documented(*LOOK_ERRORS))


class Model(BaseModel):
    """A model as OpenAI's clients know it, and beside that what is known of its state."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "medserve"
    state: State
    engine: str
    error: str | None = None
    blind: str | None = None
    load_seconds: float | None = None
    attempts: int = 0
    facts: dict[str, str] = {}

    @classmethod
    def of(cls, handle: ModelHandle) -> "Model":
        status = handle.status
        return cls(
            id=status.name,
            created=int(status.since),
            state=status.state,
            engine=status.engine,
            error=status.error,
            blind=status.blind,
            load_seconds=status.load_seconds,
            attempts=status.attempts,
            facts=dict(status.facts),
        )


class ModelList(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Model]


@router.get("/v1/models")
async def list_models(models: ModelsOf) -> ModelList:
    """Every declared model, loaded or not."""
    return ModelList(data=[Model.of(handle) for handle in models])


@router.get("/v1/models/{name:path}")
async def show_model(name: str, models: ModelsOf) -> Model:
    """One model; 404 when there is none of that name."""
    return Model.of(models.get(name))
