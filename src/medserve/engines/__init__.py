"""One protocol for every way of running a model; each module of this folder is one such way.

A module is an engine when it defines `async def start(model: ModelSpec, settings: Settings) -> Engine`, raising a
`ModelFailed` that says why when it cannot. Its name is the module's name with `-` for `_`; other distributions add
engines by the entry point group `medserve.engines`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Protocol, runtime_checkable

from medserve.errors import ModelFailed
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.imaging.preprocess import VisionInput
from medserve.settings import ModelSpec, Settings


@dataclass(frozen=True)
class Capabilities:
    """What an engine can honour with the model it has loaded; what is not here is refused, never ignored.

    `context` counts tokens. `sight_test` says that the engine really looks, so that a test of its sight means
    something. `facts` are for the record: `engine`, `weights`, versions and settings as texts.
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


Start = Callable[[ModelSpec, Settings], Awaitable[Engine]]


def find(name: str) -> Start:
    """What starts an engine of that name; raises ModelFailed, which says which engines exist."""
    if name in built_in():
        start: Start = import_module(f"{__name__}.{name.replace('-', '_')}").start
        return start
    for entry in entry_points(group="medserve.engines", name=name):
        plugged: Start = entry.load()
        return plugged
    raise ModelFailed(f"no engine is called {name!r}; there are: {', '.join(built_in())}", param="engine")


def built_in() -> tuple[str, ...]:
    """The names of this folder's engines."""
    return tuple(sorted(info.name.replace("_", "-") for info in iter_modules(__path__)))
