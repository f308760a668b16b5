"""One protocol for every way of running a model; each module of this folder is one such way.

A module is an engine when it defines `async def start(model: ModelSpec, settings: Settings) -> Engine`, raising a
`ModelFailed` that says why when it cannot. Its name is the module's name with `-` for `_`; other distributions add
engines by the entry point group `medserve.engines`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Protocol, runtime_checkable

from medserve.errors import ModelFailed
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.imaging.preprocess import VisionInput
from medserve.places import Places
from medserve.settings import ModelSpec, Settings


@dataclass(frozen=True)
class Capabilities:
    """What an engine can honour with the model it has loaded; what is not here is refused, never ignored.

    `context` counts tokens. `sight_test` says that the engine really looks, so that a test of its sight means
    something. `facts` are for the record: `engine`, `weights`, versions and settings as texts; where the engine knows
    them also `architecture`, `processor`, `trained_context` (tokens) and `devices` (the GPUs it computes on, or CPU).
    """

    context: int
    vision: VisionInput | None = None
    image_tokens: int = 0
    schema: bool = False
    choices: bool = False
    logprobs: bool = False
    score: bool = False
    prefix: bool = False
    sight_test: bool = True
    facts: tuple[tuple[str, str], ...] = ()


class Engine(Protocol):
    """A loaded model that answers; closing it returns everything it held."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def alive(self) -> bool:
        """Whether the worker or server behind the engine can still answer."""
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Answer piece by piece; closing the iterator stops the work and frees its place.

        Raises InvalidRequest for what this model cannot honour and EngineError when the work itself fails.
        """
        ...

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """The model's probability of each label as its whole answer to `request`, without sampling."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Counts(Protocol):
    """An engine that can say how many tokens a text has."""

    async def count(self, text: str) -> int:
        """The number of the text's tokens, without marks of turns; control tokens in it count as mere text."""
        ...


@runtime_checkable
class HasWorker(Protocol):
    """An engine that runs in a process of its own, whose memory goes back to the system when it ends."""

    @property
    def pid(self) -> int: ...

    async def exited(self) -> int:
        """Wait until the process has ended, for whatever reason; its exit status."""
        ...


@runtime_checkable
class HasPlaces(Protocol):
    """An engine that keeps its own waiting room, because it knows which answers had better take turns."""

    @property
    def places(self) -> Places: ...


@runtime_checkable
class Leases(Protocol):
    """An engine that may be unloaded between two requests, and stays for as long as somebody has a lease on it."""

    def lease(self) -> AbstractContextManager[None]: ...


def leased(engine: Engine) -> AbstractContextManager[None]:
    """Keeps the engine loaded for as long as it lasts: for work of several requests that belong together."""
    return engine.lease() if isinstance(engine, Leases) else nullcontext()


Start = Callable[[ModelSpec, Settings], Awaitable[Engine]]
"""Starts an engine; while it does, it may `tell` its progress and must `make_room` before it takes much memory.

Both are found in `medserve.process`; an engine that starts its worker with `process.Child` has them from there.
"""


def find(name: str) -> Start:
    """What starts an engine of that name; raises ModelFailed, which says which engines exist."""
    if name in built_in():
        start: Start = import_module(f"{__name__}.{name.replace('-', '_')}").start
        return start
    for entry in entry_points(group="medserve.engines", name=name):
        plugged: Start = entry.load()
        return plugged
    raise ModelFailed(f"no engine has that name; there are: {', '.join(built_in())}", param="engine")


def built_in() -> tuple[str, ...]:
    """The names of this folder's engines."""
    return tuple(sorted(info.name.replace("_", "-") for info in iter_modules(__path__)))
