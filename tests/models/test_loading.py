"""A load asks for room before it takes any, tells its stages, and ends in time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from medserve import process
from medserve.engines import Capabilities, Engine
from medserve.engines.scripted import Scripted
from medserve.errors import MemoryShort, ModelFailed
from medserve.models.demand import Demand
from medserve.models.loading import Load
from medserve.process import Progress
from medserve.settings import Limits, ModelSpec, Settings
from tests.models.conftest import Passes

SPEC = ModelSpec(name="m", engine="scripted")
SECONDS = 90.0


class Scene:
    """A load, and what happened in it, in order."""

    def __init__(self, spec: ModelSpec = SPEC, begin: Callable[[], Awaitable[object]] | None = None) -> None:
        self.seen: list[object] = []
        self._begin = begin
        self.demand = Demand(spec.memory_bytes)
        settings = Settings(models=(spec,), limits=Limits(load_seconds=SECONDS))
        self.load = Load(spec, settings, self._start, take=self._take, demand=self.demand, clock=monotonic)

    async def _take(self, memory_bytes: int) -> None:
        self.seen.append(memory_bytes)

    async def _start(self, _spec: ModelSpec, _settings: Settings) -> Engine:
        self.seen.append(self.load.at.stage)
        if self._begin is not None:
            await self._begin()
        self.seen.append(self.load.at)
        return Scripted([])


async def test_room_is_made_before_a_worker_is_started(tmp_path: Path) -> None:
    """For its files at the least; where the worker then knows better, that counts."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(bytes(10))
    scene = Scene(ModelSpec(name="m", engine="scripted", path=path), lambda: process.make_room(25))
    await scene.load.start()

    assert [10, "starting", 25, Progress("making room in memory")] == scene.seen


async def test_a_worker_that_wants_less_than_is_known_is_given_what_is_known(tmp_path: Path) -> None:
    """The settings may say more than it can foresee."""
    scene = Scene(SPEC.model_copy(update={"memory_bytes": 40}), lambda: process.make_room(25))
    await scene.load.start()

    assert [40, "starting", 40] == scene.seen[:3]


async def test_a_model_of_which_nothing_is_known_asks_for_no_room() -> None:
    """One on a server elsewhere takes none here."""
    scene = Scene()
    await scene.load.start()

    assert ["starting", Progress("starting")] == scene.seen


async def test_who_finds_no_room_starts_no_worker() -> None:
    """The reason goes to whoever waits for the load."""

    async def none(_memory_bytes: int) -> None:
        raise MemoryShort("others are at work")

    async def never(_spec: ModelSpec, _settings: Settings) -> Engine:
        raise AssertionError

    load = Load(SPEC, Settings(models=(SPEC,)), never, take=none, demand=Demand(1), clock=monotonic)
    with pytest.raises(MemoryShort, match="others are at work"):
        await load.start()

    assert "making room in memory" == load.at.stage


async def test_what_a_worker_tells_is_where_the_load_is() -> None:
    """To the share of it that is done."""

    async def reads() -> None:
        process.tell(Progress("reading the weights", 0.5))

    scene = Scene(begin=reads)
    await scene.load.start()

    assert Progress("reading the weights", 0.5) == scene.load.at


async def test_what_hangs_is_ended_and_told_by_its_stage(passes: Passes) -> None:
    """Whatever it waits for; not before its time."""
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    scene = Scene(begin=hang)

    async def load() -> None:
        async with scene.load.in_time():
            await scene.load.start()

    loading = asyncio.create_task(load())
    await begun.wait()
    await passes(SECONDS - 1)
    assert not loading.done()

    await passes(2)
    with pytest.raises(ModelFailed, match="not loaded within 90 seconds, at the stage: starting; raise"):
        await loading


async def test_a_time_out_of_the_work_itself_is_not_taken_for_the_load_s() -> None:
    """It is a failure of another kind, and is told as such."""
    with pytest.raises(TimeoutError, match="of the work"):
        async with Scene().load.in_time():
            raise TimeoutError("of the work")


async def test_an_engine_that_cannot_be_told_to_think_is_refused_where_the_settings_do() -> None:
    """A setting is honoured or refused, never ignored."""

    class Plain(Scripted):
        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, thinking=False)

    load = Scene(SPEC.model_copy(update={"thinking": 100})).load
    await load.test(Scripted([]))
    with pytest.raises(ModelFailed, match="take `thinking` out of its settings"):
        await load.test(Plain([]))


async def test_what_a_load_found_out_is_told_with_the_time_it_took() -> None:
    """A script looks at nothing, so it is spared the test of its sight."""
    load = Scene().load
    engine = await load.start()
    loaded = await load.test(engine)

    assert (engine.capabilities, None) == (loaded.capabilities, loaded.blind)
    assert 0 < loaded.seconds <= load.elapsed
