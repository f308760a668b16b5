"""A load makes room before it takes memory, tells how it goes, ends in time, and tests the engine before it answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from medserve import process, sight
from medserve.engines import Capabilities, Engine, Start
from medserve.errors import ModelBlind, ModelFailed
from medserve.imaging import raster
from medserve.models.demand import Demand, file_bytes
from medserve.process import Progress
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

log = structlog.get_logger()


@dataclass(frozen=True)
class Loaded:
    """What a load found out, and how long it took. `blind` says why the model cannot be asked about images."""

    capabilities: Capabilities
    blind: ModelBlind | None
    seconds: float


class Load:
    """One load of a model, and the `Onlooker` of the worker that it starts.

    `at` is where it is. `take` returns once so many bytes may be taken in all, as `Room.take` does.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        start: Start,
        *,
        take: Callable[[int], Awaitable[None]],
        demand: Demand,
        clock: Callable[[], float],
    ) -> None:
        self.at = Progress("beginning")
        self._spec = spec
        self._settings = settings
        self._start = start
        self._take = take
        self._demand = demand
        self._clock = clock
        self._began = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def progress(self, progress: Progress) -> None:
        """See `Onlooker`."""
        self.at = progress

    async def make_room(self, memory_bytes: int) -> None:
        """See `Onlooker`."""
        self.at = Progress("making room in memory")
        self._demand.estimated(memory_bytes)
        await self._take(self._demand.expected)

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What is done in it ends within `limits.load_seconds`, whatever it may hang on, or raises ModelFailed."""
        seconds = self._settings.limits.load_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise ModelFailed(
                f"{self._spec.name} was not loaded within {seconds:g} seconds, at the stage: {self.at.stage}; raise "
                "limits.load_seconds if it needs longer",
                param="model",
            ) from None

    async def start(self) -> Engine:
        """The engine as it has started, in the room that was made for it; raises ModelError when it cannot."""
        process.ONLOOKER.set(self)
        self._demand.files_found(await in_thread(file_bytes, self._spec))
        if self._demand.expected:
            await self.make_room(0)  # before a worker is started for nothing
        self.at = Progress("starting")
        return await self._start(self._spec, self._settings)

    async def test(self, engine: Engine) -> Loaded:
        """What the engine turns out to be; raises ModelFailed where it cannot honour the model's settings."""
        self._check_habit(engine)
        blind = await self._blindness(engine)
        return Loaded(engine.capabilities, blind, self.elapsed)

    def _check_habit(self, engine: Engine) -> None:
        """Raise ModelFailed when the settings say how long to think and the engine cannot be told."""
        if self._spec.thinking is not None and not engine.capabilities.thinking:
            raise ModelFailed(
                f"{self._spec.name} cannot be told whether and how long to think; take `thinking` out of its settings",
                param="model",
            )

    async def _blindness(self, engine: Engine) -> ModelBlind | None:
        """The sight test of an engine that takes images: None when it sees, else why it does not."""
        if engine.capabilities.vision is None or not engine.capabilities.sight_test:
            return None
        self.at = Progress("testing its sight")
        try:
            drawings = [await in_thread(path.read_bytes) for path in sight.DRAWINGS]
            first, second = [await raster.read(drawing, self._settings.limits) for drawing in drawings]
            await sight.check(engine, (first, second))
        except ModelBlind as blind:
            log.error("model.blind", model=self._spec.name, reason=blind.message)
            return blind.copied()
        return None
