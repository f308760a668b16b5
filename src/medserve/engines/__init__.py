"""One protocol for every way of running a model; each module of this folder is one such way.

A module is an engine when it defines `async def start(model: ModelSpec, settings: Settings) -> Engine`, raising a
`ModelFailed` that says why when it cannot. Its name is the module's name with `-` for `_`; other distributions add
engines by the entry point group `medserve.engines`. Beside `start` the module may define `examine` (see `Examine`) and
`WEIGHTS`, what the `path` of its models has to be.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Protocol, runtime_checkable

from medserve.errors import ModelFailed
from medserve.footprint import Need
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.images import Image
from medserve.imaging.preprocess import VisionInput
from medserve.places import Places
from medserve.settings import ModelSpec, Settings


@dataclass(frozen=True)
class Capabilities:
    """What an engine can honour with the model it has loaded; what is not here is refused, never ignored.

    `context` counts tokens. `batches` says that questions asked together are answered together, in hardly more time
    than one. `thinking` says that it can be forbidden, and asked for with a budget. `sight_test` says that the engine
    really looks, so that a test of its sight means something. `facts` are for the record: `engine`, `weights`, versions
    and settings as texts; where the engine knows them also `architecture`, `processor`, `trained_context` (tokens) and
    `devices` (the GPUs it computes on, or CPU).
    """

    context: int
    vision: VisionInput | None = None
    image_tokens: int = 0
    schema: bool = False
    choices: bool = False
    logprobs: bool = False
    score: bool = False
    prefix: bool = False
    thinking: bool = False
    batches: bool = False
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
class ShowsPicture(Protocol):
    """An engine that can show what it hands to the model for a picture, so that it can be held against the original."""

    async def shown(self, image: Image) -> bytes:
        """The very file that goes to the model; raises NotSupported where the model takes no images."""
        ...


@runtime_checkable
class ShowsPrompt(Protocol):
    """An engine that can show the tokens which the model reads for a request."""

    async def prompt_ids(self, request: GenerationRequest) -> tuple[int | None, ...]:
        """The ids of the whole prompt, its beginning included; a picture with the marks around it is one None."""
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

    async def ready(self) -> Engine:
        """The loaded engine, loading it first where needed; raises ModelError with the reason when it cannot be."""
        ...


@asynccontextmanager
async def leased(engine: Engine) -> AsyncIterator[None]:
    """Loads the engine, and keeps it loaded: for work of several requests that belong together."""
    if not isinstance(engine, Leases):
        yield
        return
    with engine.lease():
        await engine.ready()  # what it can do is known only then
        yield


Start = Callable[[ModelSpec, Settings], Awaitable[Engine]]
"""Starts an engine; while it does, it may `tell` its progress and must `make_room` before it takes much memory.

Both are found in `medserve.process`; an engine that starts its worker with `process.Child` has them from there.
"""


class Weights(StrEnum):
    """What the `path` of an engine's models names."""

    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True)
class Outlook:
    """How a model would run, as far as that can be known before it is started.

    `words` say by what and where; `need` is what it takes of this machine's memory, None where that is not known or
    nothing. `warning` says what stands in the way of its use although it would be started, and what to do.
    """

    words: str = ""
    need: Need | None = None
    warning: str = ""


Examine = Callable[[ModelSpec, Settings], Awaitable[Outlook]]
"""Makes the checks of `start` and starts nothing: raises, within seconds, the very ModelError that `start` would.

A server that somebody else runs is asked what it is and what it has, once and without patience, and no question. Who
calls sees to it that a server which hangs is not waited for.
"""


SPECIAL = (
    "python", "precision", "quantise", "device", "parallel", "arguments", "served", "key_variable", "key_file", "ca",
)  # fmt: skip
"""Settings of a model that only some engines have a use for."""
SERVER = ("served", "key_variable", "key_file", "ca")
"""Those for a server that somebody else runs."""


def refuse_unused(model: ModelSpec, *used: str) -> None:
    """Raise ModelFailed for a special setting that was made and is none of `used`: never ignored in silence."""
    for name in SPECIAL:
        if name not in used and getattr(model, name) != ModelSpec.model_fields[name].default:
            raise ModelFailed(
                f"the engine {model.engine} has no use for the setting {name} of {model.name}; leave it out, or name "
                "the engine that it is for",
                param=name,
            )


def find(name: str) -> Start:
    """What starts an engine of that name; raises ModelFailed, which says which engines exist."""
    if name in built_in():
        start: Start = import_module(f"{__name__}.{name.replace('-', '_')}").start
        return start
    for entry in entry_points(group="medserve.engines", name=name):
        plugged: Start = entry.load()
        return plugged
    raise ModelFailed(f"no engine has that name; there are: {', '.join(built_in())}", param="engine")


def examiner(name: str) -> Examine | None:
    """What looks at models of that engine before they are started; None where it has none. Raises as `find` does."""
    found: Examine | None = _beside(find(name), "examine")
    return found


def weights(name: str) -> Weights | None:
    """What the path of a model of that engine names; None where it does not say. Raises as `find` does."""
    found: Weights | None = _beside(find(name), "WEIGHTS")
    return found


def _beside(start: Start, what: str) -> Any:
    """What the module of an engine's `start` defines beside it."""
    return getattr(sys.modules.get(getattr(start, "__module__", "")), what, None)


def built_in() -> tuple[str, ...]:
    """The names of this folder's engines; what begins with `_` is what they share."""
    found = (info.name for info in iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))
