"""Traces go where they are asked to, hang together, and tell kinds of errors instead of their words."""

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import nullcontext
from time import monotonic

import pytest

from medserve import observation, tracing
from medserve.api import create_app
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import EngineError, InvalidRequest
from medserve.examination import examine
from medserve.generation import Chunk, Finish, GenerationRequest, Message, Usage, collect
from medserve.images import Study
from medserve.imaging import raster
from medserve.settings import DEMO, Limits, Settings
from medserve.workflows import find
from tests.collector import Collector, collecting

SERVER, CLIENT = 2, 3
DRAWINGS = DEMO / "drawings"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASKED = GenerationRequest((Message("user", ("What is it?",)),), max_tokens=20)


def seen(engine: Scripted, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
    """An answer of `engine` as a model of its name gives it."""
    return observation.answer(engine.name, engine, request, nullcontext())


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A receiver that tracing sends to until the test stops it."""
    with collecting() as collector:
        tracing.start(Settings(otlp_endpoint=collector.url))
        yield collector
        tracing.stop()


async def test_a_request_its_steps_and_its_answers_are_one_trace(collector: Collector) -> None:
    """It continues the caller's trace, and each part lies in the one that asked for it."""
    engine = Scripted([Reply("Round.", finish=Finish.STOP, usage=Usage(12, 2, 8))], name="script")
    with tracing.span("POST /x", kind="server", traceparent=CALLER), observation.step("look"):
        await collect(seen(engine, ASKED))
    tracing.stop()

    request, step, answer = collector.named("POST /x"), collector.named("step look"), collector.named("chat script")
    assert {"0af7651916cd43dd8448eb211c80319c"} == {span.trace for span in (request, step, answer)}
    assert ("b7ad6b7169203331", request.id, step.id) == (request.parent, step.parent, answer.parent)
    assert (SERVER, CLIENT) == (request.kind, answer.kind)
    assert "medserve" == collector.resource["service.name"]


async def test_an_answers_span_has_the_conventions_names_and_no_words(collector: Collector) -> None:
    """The names are those of OpenTelemetry's conventions for generative AI."""
    engine = Scripted([Reply("Round.", finish=Finish.STOP, usage=Usage(12, 2, 8))], name="script")
    await collect(seen(engine, ASKED))
    tracing.stop()

    told = collector.named("chat script").attributes
    first = told.pop("gen_ai.response.time_to_first_chunk")
    assert 0 <= first < 10
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "medserve",
        "gen_ai.request.model": "script",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "medserve.pictures": 0,
        "medserve.usage.image_tokens": 0,
        "medserve.vision_encodes": 0,
    } == told


async def test_an_error_is_told_by_its_kind(collector: Collector) -> None:
    """Its words may quote a prompt; no event and no status holds them."""
    with pytest.raises(EngineError), tracing.span("work"):
        raise EngineError("Mustermann")
    with pytest.raises(ZeroDivisionError), tracing.span("sum"):
        raise ZeroDivisionError("Mustermann")
    tracing.stop()

    work, total = collector.named("work"), collector.named("sum")
    assert (True, EngineError.code, 0) == (work.failed, work.attributes["error.type"], work.events)
    assert (True, "ZeroDivisionError") == (total.failed, total.attributes["error.type"])
    assert not any(b"Mustermann" in body for _, body in collector.bodies)


@pytest.mark.parametrize("broken", ["", "Mustermann", "00-1-2-3", CALLER + "-Mustermann", "00-" + "0" * 32 + "-1-01"])
def test_a_broken_traceparent_begins_a_new_trace(collector: Collector, broken: str) -> None:
    """And nothing of it is told."""
    with tracing.span("GET", kind="server", traceparent=broken):
        pass
    tracing.stop()

    assert "" == collector.named("GET").parent
    assert not any(b"Mustermann" in body for _, body in collector.bodies)


def test_a_request_to_another_server_carries_the_trace(collector: Collector) -> None:
    """As the header that the W3C names."""
    with tracing.span("work"):
        carried = tracing.headers()["traceparent"]
    tracing.stop()

    span = collector.named("work")
    assert carried.startswith(f"00-{span.trace}-{span.id}-")


async def test_a_stream_that_is_read_by_several_tasks_stays_one_span(collector: Collector) -> None:
    """The context of one task is never left in another."""
    import asyncio

    stream = seen(Scripted(["one two three four five"], name="script"), ASKED)
    with tracing.span("request"):
        while await asyncio.create_task(anext(stream, None)) is not None:
            assert tracing.headers()
    assert {} == {name: value for name, value in tracing.headers().items() if name != "traceparent"}
    tracing.stop()

    assert collector.named("request").id == collector.named("chat script").parent


def test_without_an_endpoint_nothing_is_traced() -> None:
    """And nothing of the SDK is imported for it."""
    tracing.start(Settings())
    with tracing.span("work") as span:
        span.set({"anything": "at all"})

    assert span is tracing.SILENT
    assert {} == tracing.headers()


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that is set and does nothing would be found out when the traces are needed."""
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)

    with pytest.raises(InvalidRequest, match=r"medserve\[otel\]") as refused:
        tracing.check(Settings(otlp_endpoint="http://127.0.0.1:4318"))
    assert "otlp_endpoint" == refused.value.param
    with pytest.raises(InvalidRequest):
        create_app(Settings(otlp_endpoint="http://127.0.0.1:4318"))


def test_a_collector_that_does_not_answer_holds_nothing_up() -> None:
    """The last spans are given up after a few seconds."""
    tracing.start(Settings(otlp_endpoint="http://127.0.0.1:9"))
    with tracing.span("work"):
        pass
    began = monotonic()
    tracing.stop()

    assert monotonic() - began < tracing.STOP_SECONDS + 3


def test_the_standard_variable_names_the_collector_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours goes before it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1" == Settings().otlp_endpoint
    monkeypatch.setenv("MEDSERVE_OTLP_ENDPOINT", "http://127.0.0.1:2")
    assert "http://127.0.0.1:2" == Settings().otlp_endpoint


async def test_what_a_caller_wants_located_or_compared_is_in_no_trace(collector: Collector) -> None:
    """A caller may write a patient's name there, and a step's name in the report repeats it."""
    drawn = (DRAWINGS / "chest-normal.png", DRAWINGS / "chest-large-heart.png")
    films = tuple(raster.decode(one.read_bytes(), Limits()) for one in drawn)
    engine = Scripted(["yes", "A chest film.", "[]", "stable"])
    asked = {"locate": ["Mustermann"], "compare": ["Mustermann"], "guard": False}
    made = await examine(find("chest-xray"), Study(films), engine, options=asked)
    tracing.stop()

    assert 2 == sum("mustermann" in step.name.lower() for step in made.steps)
    assert {"step Location", "step Comparison"} < {span.name for span in collector.spans}
    assert not any(b"mustermann" in body.lower() for _, body in collector.bodies)
