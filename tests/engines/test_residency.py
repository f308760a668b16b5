"""Models that come and go, with real workers: their memory really comes back, and no answer is ever cut for it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psutil
import pytest
import structlog.testing

from medserve import machine
from medserve.engines import llama_cpp
from medserve.engines.llama_cpp import LlamaCpp
from medserve.errors import EngineError, MemoryShort, ModelBusy, ModelError, ModelFailed, ModelLoading, WorkerCrashed
from medserve.examination import examine
from medserve.generation import GenerationRequest, collect
from medserve.images import Study
from medserve.imaging import raster
from medserve.models import ModelHandle, Models, State
from medserve.residency import Resident, Room
from medserve.settings import DEMO, Limits, ModelSpec, Settings
from medserve.threads import in_thread
from medserve.workflows import find
from tests.engines.subjects import SPEC, ask, picture

pytestmark = pytest.mark.anyio

MIB = 2**20
SECONDS = 30.0
ENDLESS = {"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 400}


def spec(name: str = "a", **changes: Any) -> ModelSpec:
    """The demo model under another name, with some settings changed."""
    return SPEC.model_copy(update={"name": name, **changes})


def endless() -> GenerationRequest:
    """A question whose answer takes much longer than these tests."""
    return ask("Count.", schema=ENDLESS, max_tokens=1900)


@asynccontextmanager
async def residents(*specs: ModelSpec, preload: bool = False, **limits: Any) -> AsyncIterator[Models]:
    """The models of a service, given back in the end."""
    loaded = Models(Settings(models=specs, preload=preload, limits=Limits(**limits)))
    try:
        yield loaded
    finally:
        await loaded.close()


async def until(true: Callable[[], object]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - processes set no event
            await asyncio.sleep(0.01)


async def answered(handle: ModelHandle) -> str:
    """The answer to a short question."""
    return (await collect(handle.stream(ask("Which colour?", max_tokens=4)))).text


others: set[int] = set()
"""Workers that ran before the test began, such as the one that all tests of an engine share."""


@pytest.fixture(autouse=True)
def _others() -> None:
    others.clear()
    others.update(workers())


def workers() -> list[int]:
    """The processes of models that this test has started and that are not told to go."""
    found = []
    for child in psutil.Process().children():
        with_arguments = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
        found += [child.pid] if "medserve.workers.llama_cpp" in with_arguments else []
    return [pid for pid in found if pid not in others]


# --- coming and going ----------------------------------------------------------------------------------------------


async def test_a_load_is_begun_in_the_background_and_can_be_followed() -> None:
    """`begin` returns at once; the stages are told as they come, and the reading in shares of what there is to read."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        handle.begin()
        seen = []
        while handle.state is State.LOADING:
            seen.append(handle.status)
            await asyncio.sleep(0.005)
        done = handle.status

    long = ["starting", "reading the weights and the vision part", "testing its sight"]
    assert long == list(dict.fromkeys(status.stage for status in seen if status.stage in long))
    assert all(status.progress is None or 0 <= status.progress <= 1 for status in seen)
    assert all(status.elapsed is not None and status.elapsed < SECONDS for status in seen)
    assert (State.READY, None, None, None) == (done.state, done.stage, done.progress, done.elapsed)
    assert done.idle_since is not None


async def test_an_idle_model_is_unloaded_and_its_memory_comes_back() -> None:
    """The process that held it has ended; the next request loads it again."""
    async with residents(spec(idle_seconds=0.3)) as loaded:
        handle = loaded.get()
        assert await answered(handle)
        pid = handle.pid
        assert pid is not None
        await handle.weigh()
        assert (handle.status.memory_bytes or 0) > 20 * MIB

        await until(lambda: handle.state is State.COLD)
        await until(lambda: not psutil.pid_exists(pid))

        assert await in_thread(machine.use_of, pid) is None
        assert (None, None) == (handle.status.memory_bytes, handle.status.error)
        assert handle.accepting
        assert await answered(handle)


async def test_a_model_that_answers_is_not_idle() -> None:
    """An answer that takes ten times the idle time is not touched, and the idle time begins when it has ended."""
    async with residents(spec(idle_seconds=0.05)) as loaded:
        handle = loaded.get()
        async with aclosing(handle.stream(endless())) as chunks:
            await anext(chunks)
            pid = handle.pid
            await asyncio.sleep(0.5)
            await anext(chunks)
            assert (State.READY, pid, 1) == (handle.state, handle.pid, handle.status.answering)
            assert handle.status.idle_since is None

        await until(lambda: handle.state is State.COLD)


async def test_requests_that_come_as_the_idle_time_ends_are_all_answered() -> None:
    """Again and again at the very moment: each finds the model, or a fresh one."""
    async with residents(spec(idle_seconds=0.02)) as loaded:
        handle = loaded.get()
        for pause in (0.018, 0.0199, 0.02, 0.0201, 0.022):
            await asyncio.sleep(pause)
            assert all(await asyncio.gather(*(answered(handle) for _ in range(4))))


async def test_one_examination_is_one_load() -> None:
    """However short the idle time, the model stays between the questions of one study, and goes after the last."""
    starts = 0

    async def start(model: ModelSpec, settings: Settings) -> LlamaCpp:
        nonlocal starts
        starts += 1
        return await llama_cpp.start(model, settings)

    handle = ModelHandle(spec(idle_seconds=1e-6), Settings(), start)
    try:
        await handle.ready()
        await until(lambda: handle.state is State.COLD)
        lesion = raster.decode((DEMO / "drawings" / "lesion-nv.png").read_bytes(), Limits())
        report = await examine(find("dermoscopy"), Study((lesion,)), handle)
        assert len(report.steps) > 3
        assert ("llama-cpp", 2) == (report.provenance.engine, starts)
        await until(lambda: handle.state is State.COLD)
    finally:
        await handle.close()


async def test_a_pinned_model_is_never_idle() -> None:
    """Whatever the limit says; a person may unload it all the same."""
    async with residents(spec(pinned=True), idle_seconds=0.05) as loaded:
        handle = loaded.get()
        await handle.ready()
        await asyncio.sleep(0.3)
        assert "ready" == handle.status.state

        await handle.unload()
        assert "cold" == handle.status.state


async def test_a_model_at_work_is_not_unloaded_by_a_person_either() -> None:
    """The refusal says how much is at work; afterwards it can be unloaded."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        async with aclosing(handle.stream(endless())) as chunks:
            await anext(chunks)
            with pytest.raises(ModelBusy, match="has requests at work"):
                await handle.unload()

        await handle.unload()
        assert [] == workers()


async def test_whoever_calls_off_a_load_and_however_often_no_worker_is_left() -> None:
    """Two people unload a model at once, and one of them hangs up, at every moment of its loading."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        assert await answered(handle)
        seconds = handle.status.load_seconds or 0.3
        await handle.unload()
        for part in range(12):
            handle.begin()
            await asyncio.sleep(seconds * part / 10)
            first, second = [asyncio.create_task(handle.unload()) for _ in range(2)]
            await asyncio.sleep(0.002 * (part % 3))
            first.cancel()
            await asyncio.gather(first, second, handle.unload(), return_exceptions=True)
            assert handle.state is State.COLD
            await until(lambda: not workers())


async def test_unloading_while_it_loads_tells_those_who_wait() -> None:
    """They get an answer, and the worker is gone."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        waiting = asyncio.create_task(answered(handle))
        await until(workers)
        await handle.unload()

        with pytest.raises(ModelLoading, match="unloaded while it loaded"):
            await waiting
        assert (State.COLD, []) == (handle.state, workers())


# --- one memory for all --------------------------------------------------------------------------------------------


async def need(**changes: Any) -> int:
    """What the demo model is measured to hold."""
    async with residents(spec(**changes)) as loaded:
        await loaded.get().ready()
        return loaded.get().status.memory_bytes or 0


async def test_the_estimate_holds_what_the_model_then_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the header of the file, the context and the slots: not less than is measured, nor 64 MiB more."""
    told: list[int] = []
    take = Room.take

    async def noted(self: Room, one: Resident, need: int) -> None:
        told.append(need)
        await take(self, one, need)

    monkeypatch.setattr(Room, "take", noted)
    for changes in ({}, {"context": 8192, "slots": 8}):
        told.clear()
        measured = await need(**changes)
        assert measured <= told[-1] <= measured + 64 * MIB


async def test_of_two_models_one_has_room() -> None:
    """The one that rests makes room for the other, back and forth, and both answer."""
    room = int(1.5 * await need())
    async with residents(spec("a"), spec("b"), memory_bytes=room) as loaded:
        for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
            assert await answered(loaded.get(name))
            assert (State.READY, State.COLD) == (loaded.get(name).state, loaded.get(other).state)
            assert 1 == len(workers())


async def test_a_model_at_work_keeps_its_room() -> None:
    """The other is refused with numbers, is not taken for broken, and loads when the work is done."""
    room = int(1.5 * await need())
    async with residents(spec("a"), spec("b"), memory_bytes=room) as loaded:
        a, b = loaded.get("a"), loaded.get("b")
        async with aclosing(a.stream(endless())) as chunks:
            await anext(chunks)
            with pytest.raises(MemoryShort, match=r"b needs about \d+ MiB, of \d+ MiB for models \d+ MiB are free"):
                await answered(b)
            await anext(chunks)
            assert (State.READY, State.COLD, 0) == (a.state, b.state, b.status.attempts)
            assert "needs about" in str(b.status.error)

        assert await answered(b)
        assert (State.COLD, None) == (a.state, b.status.error)


async def test_a_pinned_model_keeps_its_room() -> None:
    """Although it rests."""
    room = int(1.5 * await need())
    async with residents(spec("a", pinned=True), spec("b"), memory_bytes=room) as loaded:
        assert await answered(loaded.get("a"))
        with pytest.raises(MemoryShort, match="pinned"):
            await answered(loaded.get("b"))


async def test_two_models_that_load_at_once_share_no_room() -> None:
    """One loads; the other is told that there is none, before it has taken any."""
    room = int(1.5 * await need())
    async with residents(spec("a"), spec("b"), memory_bytes=room) as loaded:
        outcomes = await asyncio.gather(answered(loaded.get("a")), answered(loaded.get("b")), return_exceptions=True)

        assert {str, MemoryShort} == {type(outcome) for outcome in outcomes}
        assert 1 == len(workers())


async def test_a_model_that_can_never_fit_has_failed() -> None:
    """With both numbers; no worker is left."""
    async with residents(spec(memory_bytes=100 * MIB), memory_bytes=64 * MIB) as loaded:
        with pytest.raises(ModelFailed, match=r"needs about 100 MiB and limits\.memory_bytes allows 64 MiB"):
            await answered(loaded.get())
        assert (State.FAILED, []) == (loaded.get().state, workers())


async def test_models_that_outgrow_their_room_make_each_other_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fitted when they were loaded; as one grows at its work, the one that rests goes."""
    monkeypatch.setattr("medserve.models.handle.LOOK_SECONDS", 0.0)
    one = await need()
    async with residents(spec("a"), spec("b"), memory_bytes=4 * one) as loaded:
        a, b = loaded.get("a"), loaded.get("b")
        assert await answered(a)
        assert await answered(b)
        loaded._room._limit = int(1.5 * one)
        assert await answered(b)

        await until(lambda: a.state is State.COLD)
        assert b.state is State.READY


# --- workers that end ----------------------------------------------------------------------------------------------


async def test_a_worker_killed_while_it_loads_is_a_failure_that_can_be_tried_again() -> None:
    """The reason is kept; requests do not load again before their time; a person does."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        waiting = asyncio.create_task(answered(handle))
        await until(workers)
        os.kill(workers()[0], signal.SIGKILL)

        with pytest.raises(ModelFailed, match="was ended by signal 9 while it loaded"):
            await waiting
        with pytest.raises(ModelFailed, match=r"signal 9.*a request may try again in 60 seconds") as caught:
            await answered(handle)
        status = handle.status
        assert (State.FAILED, 1, 60) == (status.state, status.attempts, round(status.retry_seconds or 0))
        assert 59 < (caught.value.retry_after or 0) <= 60
        assert not handle.accepting

        handle.retry()
        assert State.LOADING is handle.state
        assert await answered(handle)


async def test_a_worker_that_hangs_while_it_loads_is_ended() -> None:
    """A stopped process says nothing and does not end: after the limit the model has failed and the process is gone."""
    async with residents(spec(), load_seconds=3) as loaded:
        handle = loaded.get()
        handle.begin()
        await until(workers)
        hung = workers()[0]
        os.kill(hung, signal.SIGSTOP)

        await until(lambda: handle.state is State.FAILED)
        assert "not loaded within 3 seconds, at the stage: " in str(handle.status.error)
        await until(lambda: not psutil.pid_exists(hung))


async def killed(handle: ModelHandle) -> None:
    """The worker of a loaded model ends."""
    await handle.ready()
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    await until(lambda: handle.state is not State.READY)


async def test_after_a_first_crash_the_next_request_loads_at_once() -> None:
    """The state says what happened, as soon as it has."""
    async with residents(spec()) as loaded:
        handle = loaded.get()
        await killed(handle)
        await until(lambda: handle.status.error)

        assert "ended by itself" in str(handle.status.error)
        assert (State.COLD, 1) == (handle.state, handle.status.crashes)
        assert await answered(handle)
        assert (None, 0) == (handle.status.error, handle.status.crashes)


async def test_crashes_without_an_answer_in_between_are_paused_longer_and_longer() -> None:
    """The second costs two seconds, the third four; meanwhile requests get the reason and when to come again."""
    now = 0.0
    handle = ModelHandle(spec(), Settings(), clock=lambda: now)
    try:
        for crashes, pause in ((1, 0), (2, 2), (3, 4)):
            await killed(handle)
            await until(lambda: handle.status.error)
            assert crashes == handle.status.crashes
            if pause:
                with pytest.raises(ModelFailed, match=f"{crashes} times.*again in {pause} seconds") as caught:
                    await answered(handle)
                assert (State.FAILED, pause) == (handle.state, caught.value.retry_after)
            now += pause
        assert await answered(handle)
        assert (0, None) == (handle.status.crashes, handle.status.error)
    finally:
        await handle.close()


async def test_a_preloaded_model_comes_back_by_itself() -> None:
    """No request has to find out that its worker has ended."""
    async with residents(spec(), preload=True) as loaded:
        loaded.preload()
        handle = loaded.get()
        await until(lambda: handle.state is State.READY)
        first = handle.pid
        await killed(handle)
        assert not handle.accepting

        await until(lambda: handle.state is State.READY)
        assert first != handle.pid
        assert 1 == handle.status.crashes


async def test_a_worker_that_ends_while_it_is_weighed_was_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its load is not over then, so that none can be begun: who waits is told, and a kept model still comes back."""
    settle, ends = Room.settle, 1

    async def deadly(room: Room, who: Resident) -> None:
        nonlocal ends
        if ends:
            ends -= 1
            assert isinstance(who, ModelHandle)
            assert who.pid is not None
            os.kill(who.pid, signal.SIGKILL)
            await until(lambda: who.status.crashes)
        await settle(room, who)

    monkeypatch.setattr(Room, "settle", deadly)
    async with residents(spec(), preload=True) as loaded:
        loaded.preload()
        handle = loaded.get()
        with structlog.testing.capture_logs() as logged, pytest.raises(WorkerCrashed, match="ask again"):
            await handle.ready()
        assert ["model.loading", "model.crashed", "model.loading"] == [entry["event"] for entry in logged]

        await until(lambda: handle.state is State.READY)
        assert (1, None) == (handle.status.crashes, handle.status.error)


async def test_a_worker_killed_under_an_answer_is_told_to_who_waits_for_it() -> None:
    """An error and no silence; the place is free again."""
    async with residents(spec(slots=1, waiting=0)) as loaded:
        handle = loaded.get()
        async with aclosing(handle.stream(endless())) as chunks:
            await anext(chunks)
            assert handle.pid is not None
            os.kill(handle.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="ended with work to do"):
                await collect(chunks)

        assert await answered(handle)


# --- room to wait --------------------------------------------------------------------------------------------------


async def test_a_full_waiting_room_says_when_to_come_again() -> None:
    """Going by how long answers take here: one second each, one slot, and one that waits before it, makes two."""
    async with residents(spec(slots=1, waiting=1)) as loaded:
        handle = loaded.get()
        assert await answered(handle)
        engine = await handle.ready()
        engine.places._recent.clear()  # type: ignore[attr-defined]
        engine.places._recent.append(1.0)  # type: ignore[attr-defined]
        async with aclosing(handle.stream(endless())) as chunks:
            await anext(chunks)
            second = asyncio.create_task(answered(handle))
            await until(lambda: handle.status.waiting)
            assert (1, 1, 1) == (handle.status.answering, handle.status.waiting, handle.status.slots)
            with pytest.raises(ModelBusy, match="come again in about 2 seconds") as caught:
                await answered(handle)
        assert 2.0 == caught.value.retry_after
        assert await second


async def test_no_more_wait_for_a_load_than_may_wait_for_an_answer() -> None:
    """Of five first requests three fit; the others are refused at once and not when the model is loaded."""
    async with residents(spec(slots=1, waiting=2)) as loaded:
        tasks = [asyncio.create_task(answered(loaded.get())) for _ in range(5)]
        await until(lambda: 2 == sum(task.done() for task in tasks))
        assert (State.LOADING, 3) == (loaded.get().state, loaded.get().status.waiting)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [ModelBusy, ModelBusy] == [type(outcome) for outcome in outcomes if isinstance(outcome, ModelError)]
    assert 3 == sum(isinstance(outcome, str) for outcome in outcomes)


async def test_scores_are_leases_too() -> None:
    """A model that scores labels is at work, and rests afterwards."""
    async with residents(spec(idle_seconds=0.1)) as loaded:
        handle = loaded.get()
        scores = await handle.score(ask(picture(1), "Which?"), ("MEL", "NV"))
        assert {"MEL", "NV"} == set(scores.logprobs)
        assert handle.status.idle_since is not None
        await until(lambda: handle.state is State.COLD)
