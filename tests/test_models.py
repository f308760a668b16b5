"""Models tell their states apart: what loads, what failed and why, and what may be asked again."""

import asyncio
import gc
import os
import socket
import weakref
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.testing import capture_logs

from medserve.engines import Capabilities, Engine
from medserve.engines.scripted import Scripted
from medserve.errors import InvalidRequest, ModelBlind, ModelBusy, ModelFailed, UnknownModel, WeightsCorrupt
from medserve.generation import Chunk, GenerationRequest, Message, collect
from medserve.images import Image
from medserve.models import ModelHandle, Models, State
from medserve.settings import Limits, ModelSpec, Settings
from tests.pictures import picture

SPEC = ModelSpec(name="m", engine="scripted", replies=("one", "two", "three"))
SETTINGS = Settings(models=(SPEC,))
QUESTION = GenerationRequest((Message("user", ("Hello?",)),))


class Starts:
    """Starts engines from a list, and counts."""

    def __init__(self, *outcomes: Engine | Exception) -> None:
        self.outcomes = list(outcomes)
        self.count = 0

    async def __call__(self, model: ModelSpec, settings: Settings) -> Engine:
        self.count += 1
        await asyncio.sleep(0.01)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Seeing(Scripted):
    """A scripted engine that takes the sight test, from which scripts are otherwise spared."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, sight_test=True)


async def test_a_model_is_cold_until_it_is_asked() -> None:
    """Nothing is loaded because it is declared."""
    handle = ModelHandle(SPEC, SETTINGS)

    assert "cold" == handle.status.state
    assert "one" == (await collect(handle.stream(QUESTION))).text
    assert "ready" == handle.status.state


async def test_many_first_requests_load_once() -> None:
    """They share one load."""
    starts = Starts(Scripted(["a", "b", "c"]))
    handle = ModelHandle(SPEC, SETTINGS, starts)

    answers = await asyncio.gather(*(collect(handle.stream(QUESTION)) for _ in range(3)))

    assert ["a", "b", "c"] == sorted(answer.text for answer in answers)
    assert 1 == starts.count


async def test_a_load_can_be_watched() -> None:
    """While it loads the state says so."""
    handle = ModelHandle(SPEC, SETTINGS, Starts(Scripted([])))

    waiting = asyncio.create_task(handle.ready())
    await asyncio.sleep(0)

    assert "loading" == handle.status.state
    await waiting
    assert "ready" == handle.status.state


async def test_defect_003_1_a_failed_load_says_why_and_is_not_retried_in_silence() -> None:
    """System 003 answered "retry later" for ever; here the reason is kept, and asking again does not load again."""
    starts = Starts(WeightsCorrupt("the file is cut short"))
    handle = ModelHandle(SPEC, SETTINGS, starts)

    for _ in range(2):
        with pytest.raises(WeightsCorrupt, match="cut short"):
            await handle.ready()

    assert (State.FAILED, "the file is cut short", 1) == (handle.state, handle.status.error, starts.count)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_failed_load_is_tried_again_after_a_pause_that_doubles() -> None:
    """A request that comes too early is told when; the state stays failed, with its reason and a count."""
    clock = Clock()
    starts = Starts(WeightsCorrupt("cut short"), WeightsCorrupt("cut short"), Scripted(["hello"]))
    handle = ModelHandle(SPEC, SETTINGS, starts, clock=clock)

    for attempt, pause in enumerate((60, 120), start=1):
        with pytest.raises(WeightsCorrupt, match=r"cut short$"):
            await handle.ready()
        clock.now += pause - 1.5
        with pytest.raises(WeightsCorrupt, match="cut short; a request may try again in 2 seconds"):
            await handle.ready()
        assert (State.FAILED, "cut short", attempt) == (handle.state, handle.status.error, handle.status.attempts)
        assert attempt == starts.count
        clock.now += 1.5

    assert "hello" == (await collect(handle.stream(QUESTION))).text
    assert (None, 0) == (handle.status.error, handle.status.attempts)


async def test_the_pause_after_failures_has_a_limit() -> None:
    """A model that has failed for a week is tried every quarter of an hour."""
    clock = Clock()
    handle = ModelHandle(SPEC, SETTINGS, Starts(*[WeightsCorrupt("cut short")] * 40), clock=clock)

    for _ in range(40):
        with pytest.raises(WeightsCorrupt, match=r"cut short$"):
            await handle.ready()
        clock.now += 900


@pytest.mark.parametrize("blind", [True, False])
async def test_a_refused_request_leaves_no_picture_behind(blind: bool) -> None:
    """An error that is kept for later requests must not keep the earlier ones' pictures in memory."""
    starts = Starts(Seeing(["the same", "the same"]) if blind else WeightsCorrupt("cut short"))
    handle = ModelHandle(SPEC, SETTINGS, starts)
    pictures = [weakref.ref(await _refused(handle)) for _ in range(3)]

    await asyncio.sleep(0)  # the loop itself still holds what it has just handed over
    gc.collect()

    assert [None] * 3 == [one() for one in pictures]


async def _refused(handle: ModelHandle) -> Image:
    """A picture that the model was asked about in vain."""
    shown = picture()
    with pytest.raises(ModelFailed):
        await collect(handle.stream(GenerationRequest((Message("user", (shown, "What is this?")),))))
    return shown


async def test_an_unforeseen_failure_is_a_failed_model_and_not_a_crash() -> None:
    """The gateway goes on; the message holds the kind of error and no more."""
    handle = ModelHandle(SPEC, SETTINGS, Starts(ZeroDivisionError("a secret")))

    with pytest.raises(ModelFailed, match="ZeroDivisionError") as caught:
        await handle.ready()

    assert "secret" not in caught.value.message


async def test_after_its_worker_has_died_a_model_is_loaded_anew() -> None:
    """The next request finds a fresh worker."""
    first = Scripted(["a"])
    handle = ModelHandle(SPEC, SETTINGS, Starts(first, Scripted(["b"])))
    await handle.ready()

    await first.close()

    assert State.COLD is handle.state
    assert "b" == (await collect(handle.stream(QUESTION))).text


async def test_a_blind_model_answers_text_and_refuses_pictures() -> None:
    """It is ready, it says that it is blind and why, and no picture reaches it."""
    handle = ModelHandle(SPEC, SETTINGS, Starts(Seeing(["the same", "the same", "a text"])))
    shown = GenerationRequest((Message("user", (picture(), "What is this?")),))

    assert "a text" == (await collect(handle.stream(QUESTION))).text
    with pytest.raises(ModelBlind, match="two different test pictures"):
        await collect(handle.stream(shown))
    assert handle.status.blind


async def test_a_seeing_model_is_asked_about_pictures() -> None:
    """The test is no obstacle for a model that sees."""
    handle = ModelHandle(SPEC, SETTINGS, Starts(Seeing(["a lesion", "a chest", "an answer"])))
    shown = GenerationRequest((Message("user", (picture(), "What is this?")),))

    assert "an answer" == (await collect(handle.stream(shown))).text
    assert handle.status.blind is None


async def test_a_stream_that_is_left_early_closes_the_engine_s_stream() -> None:
    """Whoever goes away stops the work."""
    closed = asyncio.Event()

    class Endless(Scripted):
        async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
            try:
                while True:
                    yield Chunk("word ")
            finally:
                closed.set()

    handle = ModelHandle(SPEC, SETTINGS, Starts(Endless([])))
    chunks = handle.stream(QUESTION)
    await anext(chunks)
    await chunks.aclose()

    assert closed.is_set()


async def test_an_unknown_model_is_an_error_that_names_the_known_ones() -> None:
    """Defect 002-4: the caller learns what there is."""
    with pytest.raises(UnknownModel, match="there are: m"):
        Models(SETTINGS).get("n")


async def test_closing_gives_everything_back() -> None:
    """The engine is closed and the model is cold."""
    models = Models(SETTINGS)
    engine = await models.get().ready()

    await models.close()

    assert (False, State.COLD) == (engine.alive, models.get().state)


def test_the_two_model_names_must_differ() -> None:
    """A name means one model."""
    with pytest.raises(ValueError, match="share a name"):
        Settings(models=(SPEC, SPEC))


async def test_an_unknown_engine_is_refused_by_name() -> None:
    """With the engines that exist."""
    with pytest.raises((ModelFailed, InvalidRequest), match=r"there are: .*scripted"):
        Models(Settings(models=(ModelSpec(name="x", engine="warp"),)))


# --- what only a person may do -------------------------------------------------------------------------------------


async def test_a_failed_model_is_retried_when_a_person_says_so() -> None:
    """At once, and as if it had never failed."""
    starts = Starts(WeightsCorrupt("cut short"), Scripted(["hello"]))
    handle = ModelHandle(SPEC, SETTINGS, starts, clock=Clock())
    with pytest.raises(WeightsCorrupt):
        await handle.ready()

    handle.begin()
    assert (State.FAILED, 60) == (handle.state, handle.status.retry_seconds)

    handle.retry()
    assert (State.LOADING, None) == (handle.state, handle.status.error)
    assert "hello" == (await collect(handle.stream(QUESTION))).text


async def test_defect_003_1_a_load_that_hangs_has_an_end() -> None:
    """Whatever an engine waits for: after `limits.load_seconds` the state is failed, with the stage it hung in."""

    async def hangs(_model: ModelSpec, _settings: Settings) -> Engine:
        await asyncio.Event().wait()
        raise AssertionError

    settings = Settings(models=(SPEC,), limits=Limits(load_seconds=0.05))
    handle = ModelHandle(SPEC, settings, hangs)
    handle.begin()
    with pytest.raises(ModelFailed, match=r"not loaded within 0\.05 seconds, at the stage: starting"):
        await handle.ready()

    assert (State.FAILED, 1) == (handle.state, handle.status.attempts)


async def test_a_server_that_never_answers_is_a_load_that_failed() -> None:
    """An engine at a url whose server takes connections and says nothing."""

    with socket.create_server(("127.0.0.1", 0)) as server:
        spec = ModelSpec(name="far", engine="openai", url=f"http://127.0.0.1:{server.getsockname()[1]}")
        handle = ModelHandle(spec, Settings(models=(spec,), limits=Limits(load_seconds=0.2)))
        with pytest.raises(ModelFailed, match="load_seconds"):
            await handle.ready()

    assert State.FAILED is handle.state


class Slow(Scripted):
    """A scripted engine whose answers begin when the test says so."""

    def __init__(self, *replies: str) -> None:
        super().__init__(replies)
        self.go = asyncio.Event()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        await self.go.wait()
        async for chunk in super().stream(request):
            yield chunk


async def test_an_engine_without_places_of_its_own_has_the_model_s() -> None:
    """Slots and waiting room hold for every engine."""
    spec = SPEC.model_copy(update={"slots": 1, "waiting": 1})
    engine = Slow("a", "b")
    handle = ModelHandle(spec, SETTINGS, Starts(engine))
    await handle.ready()
    answers = [asyncio.create_task(collect(handle.stream(QUESTION))) for _ in range(2)]
    await asyncio.sleep(0.05)

    assert (1, 1) == (handle.status.answering, handle.status.waiting)
    with pytest.raises(ModelBusy) as caught:
        await collect(handle.stream(QUESTION))
    assert 0 < (caught.value.retry_after or 0) < 60

    engine.go.set()
    assert {"a", "b"} == {answer.text for answer in await asyncio.gather(*answers)}
    assert (0, 0) == (handle.status.answering, handle.status.waiting)


async def test_a_model_is_added_and_removed() -> None:
    """It answers in between; what was removed is unknown, also to those who hold it still."""
    models = Models(SETTINGS)
    handle = await models.add(ModelSpec(name="more", engine="scripted", replies=("hello",)))
    assert ["m", "more"] == [one.name for one in models]
    assert "hello" == (await collect(models.get("more").stream(QUESTION))).text

    await models.remove("more")

    assert ["m"] == [one.name for one in models]
    with pytest.raises(UnknownModel, match="was removed"):
        await collect(handle.stream(QUESTION))


@pytest.mark.parametrize(
    ("spec", "param", "words"),
    [
        ({"name": "m"}, "name", "already"),
        ({"path": "weights.gguf"}, "path", "absolute"),
        ({"projector": "../mmproj.gguf"}, "projector", "absolute"),
        ({"path": "/nowhere/weights.gguf"}, "path", "no file"),
        ({"path": "/dev/null"}, "path", "no file"),
        ({"path": "/" + "x" * 5000}, "path", "no file"),
        ({"engine": "warp"}, "engine", "there are: .*scripted"),
        ({"engine": "openai", "url": "file:///etc/passwd"}, "url", "http"),
    ],
)
async def test_a_model_that_cannot_be_added_is_refused_by_its_field(
    spec: dict[str, str], param: str, words: str
) -> None:
    """Nothing that was named is repeated, and nothing is added."""
    models = Models(SETTINGS)
    with pytest.raises(InvalidRequest, match=words) as caught:
        await models.add(ModelSpec.model_validate({"name": "n", "engine": "scripted", **spec}))

    assert param == caught.value.param
    assert not {"weights", "passwd", "/dev/null"} & set(caught.value.message.split())
    assert ["m"] == [one.name for one in models]


async def test_a_model_of_the_settings_is_not_removed() -> None:
    """It would be there again after the next start; unloading is what can be done."""
    with pytest.raises(InvalidRequest, match=r"declared in the settings .* unload it"):
        await Models(SETTINGS).remove("m")


async def test_what_is_to_be_preloaded_is_loaded_at_the_start() -> None:
    """The default, unless told otherwise, and each model that says so."""
    others = tuple(SPEC.model_copy(update={"name": name, "preload": name == "b"}) for name in "bc")
    for preload, expected in ((True, ["ready", "ready", "cold"]), (False, ["cold", "ready", "cold"])):
        models = Models(Settings(models=(SPEC, *others), preload=preload))
        models.preload()
        await asyncio.gather(*(handle.ready() for handle in models if handle.state is State.LOADING))

        assert expected == [handle.state for handle in models]
        await models.close()


async def test_a_load_that_is_called_off_before_it_began_leaves_a_cold_model() -> None:
    """It is not loading for ever, and can be loaded."""
    handle = ModelHandle(SPEC, SETTINGS)
    handle.begin()
    await handle.unload()

    assert State.COLD is handle.state
    assert "one" == (await collect(handle.stream(QUESTION))).text


@pytest.mark.parametrize("again", ["load", "unload"])
async def test_a_worker_on_its_way_out_is_ended_whoever_stops_waiting_for_it(again: str) -> None:
    """A load, or a person, that waits for it and is called off leaves no process behind whose memory counts as free."""
    ended = False

    class Slow(Scripted):
        async def close(self) -> None:
            nonlocal ended
            await asyncio.sleep(0.1)
            ended = True

    handle = ModelHandle(SPEC, SETTINGS, Starts(Slow([])))
    await handle.ready()
    unloading = asyncio.create_task(handle.unload())
    await asyncio.sleep(0.01)
    if again == "load":
        handle.begin()
        await asyncio.sleep(0.01)
        await handle.unload()
    else:
        unloading.cancel()
    await asyncio.gather(unloading, return_exceptions=True)
    await handle.close()

    assert ended
    assert handle.state is State.COLD


async def test_a_load_that_is_begun_while_another_is_called_off_is_not_forgotten() -> None:
    """Else a third one would start beside it, and of two workers one would never end."""
    starts = Starts(Scripted([]), Scripted([]), Scripted([]))
    handle = ModelHandle(SPEC, SETTINGS, starts)
    handle.begin()
    await asyncio.sleep(0)
    unloading = asyncio.create_task(handle.unload())
    while handle.state is State.LOADING:  # noqa: ASYNC110 - at the very moment
        await asyncio.sleep(0)
    handle.begin()
    await unloading

    states = [handle.state]
    await handle.ready()
    states.append(handle.state)
    assert [State.LOADING, State.READY] == states
    await handle.close()


async def test_what_happens_to_a_model_by_itself_is_told_of_no_request() -> None:
    """That it was idle, or that its worker ended an hour later, has nothing to do with whoever had it loaded."""

    class Mortal(Scripted):
        pid = os.getpid()

        def __init__(self) -> None:
            super().__init__([])
            self.end = asyncio.Event()

        async def exited(self) -> int:
            await self.end.wait()
            return -9

    mortal = Mortal()
    settings = SETTINGS.model_copy(update={"limits": Limits(idle_seconds=0.05)})
    handle = ModelHandle(SPEC, settings, Starts(mortal, Scripted([])))
    with capture_logs([merge_contextvars]) as told, bound_contextvars(request_id="r"):
        await handle.ready()
        mortal.end.set()
        await asyncio.sleep(0.01)
        assert handle.state is State.COLD
        await handle.ready()
        await asyncio.sleep(0.1)
    await handle.close()

    ids = {entry["event"]: entry.get("request_id") for entry in told}
    assert {"model.loading": "r", "model.ready": "r", "model.crashed": None, "model.unloaded": None} == ids


async def test_an_engine_that_ends_badly_is_unloaded_all_the_same() -> None:
    """What it raises is logged, and the next load is not held up."""

    class Clumsy(Scripted):
        async def close(self) -> None:
            raise RuntimeError("while closing")

    handle = ModelHandle(SPEC, SETTINGS, Starts(Clumsy(["a"]), Scripted(["b"])))
    assert "a" == (await collect(handle.stream(QUESTION))).text
    await handle.unload()

    assert "b" == (await collect(handle.stream(QUESTION))).text
