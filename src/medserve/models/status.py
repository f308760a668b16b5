"""What everyone may see of a model: which of four states it is in, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a model is in its life."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """A model's state as everyone may see it. `blind` says why it is refused for image work although it is ready.

    `since` is when this state began and `idle_since` since when nobody has used a loaded model, in Unix seconds. `code`
    says of which kind a failure is, as errors do.
    `error` says why the last load failed or the worker ended; `attempts` how many loads there were since the model was
    last ready, `crashes` how often its worker ended since it last answered, and `retry_seconds` when a request may try
    again. While it loads, `stage` says in words what is being done, `progress` how much of that is done, 0 to 1 where
    it can be measured, and `elapsed` the seconds so far. `memory_bytes` is what its process held when it was last
    looked at.
    """

    name: str
    state: State
    since: float
    engine: str
    error: str | None = None
    code: str | None = None
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
    facts: Mapping[str, str] = field(default_factory=dict)
