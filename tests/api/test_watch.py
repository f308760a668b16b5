"""The service as it is seen from outside: metrics for any scraper, and a line and a trace for each request."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as of_openmetrics
from prometheus_client.parser import text_string_to_metric_families as of_text

from medserve import keys, machine, observation, tracing
from medserve.api.routes.metrics import of_gpus
from medserve.engines import openai
from medserve.generation import GenerationRequest, collect
from medserve.generation import Message as Turn
from medserve.keys import Scope
from medserve.settings import ModelSpec, Settings
from tests.api.conftest import Slow, gateway
from tests.collector import Collector, collecting
from tests.serving import Service, serving, until
from tests.test_metrics import value

CONFIG = """
[[models]]
name = "script"
engine = "scripted"
replies = [{replies}]
"""
CHAT = {"model": "script", "messages": [{"role": "user", "content": "Is it round?"}]}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UUID = "7b0c7f4e-2c33-4f0e-9a51-0d9a4f0e7c11"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the service of this module sends its traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    """A service with a script for a model, traced, that other tests do not count in."""
    folder = tmp_path_factory.mktemp("watched")
    config = folder / "medserve.toml"
    config.write_text(CONFIG.format(replies=", ".join(['"It is round."'] * 100)))
    environment = {
        "MEDSERVE_CONFIG": str(config),
        "MEDSERVE_HOME": str(folder / "home"),
        "MEDSERVE_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with serving(environment=environment) as running:
        yield running


@pytest.fixture
def client(watched: Service) -> Iterator[httpx.Client]:
    """A plain client of that service."""
    with httpx.Client(base_url=watched.url, trust_env=False, timeout=60) as client:
        yield client


def read(text: str) -> list[Metric]:
    """Prometheus' text as its own parser reads it."""
    return list(of_text(text))


def scraped(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples by name and labels."""
    families = read(client.get("/metrics").raise_for_status().text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def sample(client: httpx.Client, name: str, **labels: str) -> float | None:
    return scraped(client).get((f"medserve_{name}", frozenset(labels.items())))


def line(service: Service, request: str) -> dict[str, Any]:
    """The access line of the request with this id."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in bytes(service.log).decode().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("request_id") == request and line["event"] == "http.request"]

    assert until(lambda: bool(found()))
    (only,) = found()
    return only


def test_metrics_come_in_both_formats(client: httpx.Client) -> None:
    """Prometheus' text unless OpenMetrics is asked for; each is read whole by a parser of its own."""
    plain = client.get("/metrics")
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
    opened = client.get("/metrics", headers=wanted)

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.text.endswith("# EOF\n")
    for families in (
        read(plain.text),
        list(of_openmetrics(opened.text)),  # type: ignore[no-untyped-call]
    ):
        names = {family.name for family in families}
        assert {"medserve_model_state", "medserve_http_request_duration_seconds", "process_cpu_seconds"} <= {
            name.removesuffix("_total") for name in names
        }


def test_names_follow_prometheus_conventions(client: httpx.Client) -> None:
    """Counters end in _total, times are in seconds, sizes in bytes, and each has words that explain it."""
    families = read(client.get("/metrics").text)

    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        assert not family.name.endswith(("_ms", "_milliseconds", "_mb", "_percent"))
        if family.type == "counter":
            assert all(entry.name.endswith("_total") for entry in family.samples)


def test_an_answer_is_counted_for_its_model(client: httpx.Client) -> None:
    """Its tokens, its outcome and the time to its first piece."""
    before = scraped(client)
    client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    after = scraped(client)

    def more(name: str, **labels: str) -> float:
        place = (f"medserve_{name}", frozenset(labels.items()))
        return after[place] - before.get(place, 0.0)

    assert 1 == more("answers_total", model="script", outcome="stop")
    assert 3 == more("completion_tokens_total", model="script")
    assert 1 == more("time_to_first_token_seconds_count", model="script")
    assert 1 == more("http_requests_total", method="POST", route="/v1/chat/completions", status="200")


def test_the_state_of_each_model_is_one_of_four(client: httpx.Client) -> None:
    """A one for the state that it is in, and zeros."""
    states = {
        state: sample(client, "model_state", model="script", state=state)
        for state in ("cold", "loading", "ready", "failed")
    }

    assert {"cold": 0.0, "loading": 0.0, "ready": 1.0, "failed": 0.0} == states
    assert (0.0, 0.0, 2.0) == tuple(
        sample(client, f"answer{name}", model="script") for name in ("s_in_progress", "s_waiting", "_slots")
    )


def test_what_callers_write_is_no_label(client: httpx.Client) -> None:
    """A thousand invented names make not one series more than the first of them."""

    def invent(name: str) -> None:
        client.post("/v1/chat/completions", json={**CHAT, "model": name})
        client.get(f"/{name}", params={name: name})
        client.get(f"/v1/models/{name}")
        client.get(f"/v1/jobs/{name}")
        client.request("GET", f"/v1/workflows/{name}", headers={"User-Agent": name})
        client.request(name, "/livez")

    invent("Mustermann")
    before = set(scraped(client))
    for number in range(50):
        invent(f"Mustermann{number}")

    assert before == set(scraped(client))
    assert "Mustermann" not in str(before)


def test_each_request_is_one_line_of_the_log(watched: Service, client: httpx.Client) -> None:
    """By its route, with its time, its model and its tokens; the id is the one that the caller was told."""
    client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": UUID})
    told = line(watched, UUID)

    assert 0 < told.pop("ms") < 60_000
    assert told.pop("timestamp")
    assert re.fullmatch("[0-9a-f]{32}", told.pop("trace"))
    assert {
        "event": "http.request",
        "level": "info",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "request_id": UUID,
        "model": "script",
        "prompt_tokens": 3,
        "completion_tokens": 3,
    } == told


def test_the_line_of_a_request_that_matches_nothing_names_no_path(watched: Service, client: httpx.Client) -> None:
    """A path may hold what a caller put there."""
    answer = client.get("/patients/Mustermann?name=Mustermann")
    told = line(watched, answer.headers["x-request-id"])

    assert (None, 404) == (told["route"], told["status"])
    assert b"Mustermann" not in watched.log


def test_a_request_and_its_answer_are_one_trace(watched: Service, collector: Collector, client: httpx.Client) -> None:
    """It continues the caller's; the span has the route for a name, and the line of the log names the trace."""
    ids = {"traceparent": CALLER, "X-Request-Id": UUID.replace("7", "8")}
    client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=ids)

    def spans() -> dict[str, Any]:
        return {span.name: span for span in collector.spans if span.trace == CALLER.split("-")[1]}

    assert until(lambda: len(spans()) == 2)
    request, answer = spans()["POST /v1/chat/completions"], spans()["chat script"]
    assert (CALLER.split("-")[2], request.id) == (request.parent, answer.parent)
    assert {"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200} == (
        request.attributes
    )
    assert 3 == answer.attributes["gen_ai.usage.output_tokens"]
    assert CALLER.split("-")[1] == line(watched, ids["X-Request-Id"])["trace"]


async def test_a_client_that_leaves_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer counts as cancelled, and nothing counts as at work any more."""
    before = value("answers_total", model="slow", outcome="cancelled")
    async with gateway(Slow(), monkeypatch) as running:
        asked = {**CHAT, "model": "slow", "stream": True}
        async with running.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            async for _ in answer.aiter_lines():
                break
            assert 1 == value("http_requests_in_progress")
        for _ in range(100):
            if value("http_requests_in_progress") == 0:
                break
            await running.client.get("/livez")

    assert before + 1 == value("answers_total", model="slow", outcome="cancelled")
    assert 0 == value("http_requests_in_progress")


def test_metrics_take_a_key_of_their_own(tmp_path: Path) -> None:
    """Whoever may ask models need not see how the service is used, and a scraper need not ask models."""
    home, config = tmp_path / "home", tmp_path / "medserve.toml"
    config.write_text(CONFIG.format(replies='"Yes."'))

    async def made() -> dict[Scope, str]:
        async with keys.opened(Settings(home=home)) as kept:
            return {scope: (await kept.add(str(scope), [scope]))[1] for scope in (Scope.USE, Scope.METRICS)}

    secrets = asyncio.run(made())
    with (
        serving(environment={"MEDSERVE_HOME": str(home), "MEDSERVE_CONFIG": str(config)}) as service,
        httpx.Client(base_url=service.url, trust_env=False) as client,
    ):
        statuses = {
            (scope, path): client.get(path, headers={"Authorization": f"Bearer {secret}"}).status_code
            for scope, secret in secrets.items()
            for path in ("/metrics", "/v1/models")
        }
        client.get("/metrics", headers={"Authorization": f"Bearer {secrets[Scope.METRICS]}", "X-Request-Id": UUID})
        told = line(service, UUID)

    assert {
        (Scope.USE, "/metrics"): 403,
        (Scope.USE, "/v1/models"): 200,
        (Scope.METRICS, "/metrics"): 200,
        (Scope.METRICS, "/v1/models"): 403,
    } == statuses
    assert re.fullmatch("[0-9a-f]{32}", told["key"])
    assert not any(secret.encode() in service.log for secret in secrets.values())


async def test_a_trace_goes_on_into_a_server_behind_a_url(watched: Service, collector: Collector) -> None:
    """An engine that is a server elsewhere, here this very service, adds its spans to ours."""
    tracing.start(Settings(otlp_endpoint=collector.url))
    engine = await openai.start(ModelSpec(name="script", engine="openai", url=watched.url), Settings())
    try:
        with tracing.span("work") as work:
            asked = GenerationRequest((Turn("user", ("Is it round?",)),))
            await collect(observation.answer("elsewhere", engine, asked, nullcontext()))
    finally:
        await engine.close()
        tracing.stop()

    def chain() -> list[str]:
        ours = {span.parent: span for span in collector.spans if span.trace == work.trace}
        names, last = [], ""
        while last in ours:
            names.append(ours[last].name)
            last = ours[last].id
        return names

    assert until(lambda: len(chain()) == 4)
    assert ["work", "chat elsewhere", "POST /v1/chat/completions", "chat script"] == chain()


def test_gpus_are_told_in_base_units() -> None:
    """Bytes, and a share between 0 and 1; there is nothing to tell where there is no GPU."""
    one = machine.Gpus((machine.Gpu(index=0, name="NVIDIA L4", total_bytes=100, used_bytes=40, utilisation=25.0),))
    told = {family.name: [(entry.labels, entry.value) for entry in family.samples] for family in of_gpus(one)}

    assert {
        "medserve_gpu_memory_used_bytes": [({"gpu": "0"}, 40)],
        "medserve_gpu_memory_total_bytes": [({"gpu": "0"}, 100)],
        "medserve_gpu_utilisation_ratio": [({"gpu": "0"}, 0.25)],
    } == told
    assert not any(family.samples for family in of_gpus(machine.Gpus((), "no driver answers")))
