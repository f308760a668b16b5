"""Models tell their states apart: what loads, what failed and why, and what may be asked again."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from medserve.engines import Capabilities, Engine
from medserve.engines.scripted import Scripted
from medserve.errors import InvalidRequest, ModelBlind, ModelFailed, UnknownModel, WeightsCorrupt
from medserve.generation import Chunk, GenerationRequest, Message, collect
from medserve.images import Image
from medserve.models import ModelHandle, Models, State
from medserve.settings import ModelSpec, Settings
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
    """The caller learns what there is."""
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
