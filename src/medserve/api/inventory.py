"""The models there are, as OpenAI's clients know them and with what more is known of each."""

from pydantic import BaseModel

from medserve.models import ModelHandle, State


class Model(BaseModel):
    """A model as OpenAI's clients know it, and beside that what is known of its state.

    `progress` (0 to 1) and `stage` say how a load goes and `elapsed` how many seconds it has taken; `retry_seconds` is
    when a request may try a failed load again. `memory_bytes` is what its process holds. `idle_since` is when it was
    last used, in Unix seconds. What is not known, or does not apply in this state, is null.
    """

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
    crashes: int = 0
    retry_seconds: float | None = None
    stage: str | None = None
    progress: float | None = None
    elapsed: float | None = None
    memory_bytes: int | None = None
    answering: int = 0
    waiting: int = 0
    slots: int = 1
    pinned: bool = False
    idle_since: float | None = None
    facts: dict[str, str] = {}

    @classmethod
    def of(cls, handle: ModelHandle) -> "Model":
        status = handle.status
        known = {name: value for name, value in vars(status).items() if name in cls.model_fields}
        return cls(id=status.name, created=int(status.since), **known)


class ModelList(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Model]
