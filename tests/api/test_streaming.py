"""Streams say what they should, fail in time, and stop when nobody listens; so do answers in one piece."""

import asyncio
import json
from time import perf_counter
from typing import Any

import httpx
import pytest

from medserve.api import streaming
from medserve.errors import ContextOverflow, EngineTimeout, ModelBusy, ModelFailed, WorkerCrashed
from medserve.settings import Limits, ModelSpec
from tests.api.conftest import Gateway, Slow, gateway, settled

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


def events(text: str) -> list[Any]:
    """The events of a stream, comments left out."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_stream_opens_with_the_role_and_ends_with_the_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Role, words, reason to stop, usage because it was asked for, end mark; one identifier throughout."""
    async with gateway(Slow(pieces=2), monkeypatch) as here:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await here.client.post(CHAT, json=ASKED | options)

    *chunks, usage, end = events(answer.text)
    assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
    assert {"role": "assistant", "content": ""} == chunks[0]["choices"][0]["delta"]
    assert "so so " == "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "stop" == chunks[-1]["choices"][0]["finish_reason"]
    assert ([], 5) == (usage["choices"], usage["usage"]["total_tokens"])
    assert "[DONE]" == end
    assert 1 == len({chunk["id"] for chunk in chunks})


async def test_the_usage_is_left_out_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that read choices[0] of every event must not meet an event without one."""
    async with gateway(Slow(pieces=2), monkeypatch) as here:
        answer = await here.client.post(CHAT, json=ASKED | {"stream": True})

    assert all(event["choices"] for event in events(answer.text)[:-1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "status", "again"),
    [
        (ContextOverflow("too long", param="messages"), 400, None),
        (ModelBusy("no room"), 429, "5"),
        (WorkerCrashed("the worker ended"), 503, "2"),
        (EngineTimeout("too slow"), 504, None),
        (ValueError("Mustermann"), 500, None),
    ],
)
async def test_an_early_failure_is_an_ordinary_error(
    monkeypatch: pytest.MonkeyPatch, stream: bool, failure: Exception, status: int, again: str | None
) -> None:
    """What fails before the first word has its own status, streamed or not, and says when to come again."""
    async with gateway(Slow(pieces=0, failure=failure), monkeypatch) as here:
        answer = await here.client.post(CHAT, json=ASKED | {"stream": stream})

    assert (status, again) == (answer.status_code, answer.headers.get("retry-after"))
    assert "error" in answer.json()
    assert "Mustermann" not in answer.text


@pytest.mark.parametrize("failure", [WorkerCrashed("the worker ended"), ValueError("Mustermann")])
async def test_a_late_failure_ends_the_stream_with_an_error_event(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Defect 002-5: after the first word the status is out; the last event says what happened, without an end mark."""
    async with gateway(Slow(pieces=2, failure=failure), monkeypatch) as here:
        answer = await here.client.post(CHAT, json=ASKED | {"stream": True})

    assert 200 == answer.status_code
    assert "server_error" == events(answer.text)[-1]["error"]["type"]
    assert "Mustermann" not in answer.text


@pytest.mark.parametrize("before_first", [0.0, 60.0], ids=["while it speaks", "before it speaks"])
async def test_a_stream_that_nobody_reads_is_stopped(monkeypatch: pytest.MonkeyPatch, before_first: float) -> None:
    """When the client goes away the engine is free again at once."""
    monkeypatch.setattr(streaming, "HEADERS_WAIT_SECONDS", 0.1)
    async with gateway(Slow(before_first=before_first), monkeypatch) as here:
        async with here.client.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
            assert 200 == answer.status_code
            assert 1 == here.engine.running
        assert await settled(lambda: here.engine.running == 0)
        assert 0 == here.engine.finished


@pytest.mark.parametrize("path", [CHAT, "/v1/workflows/dermoscopy"])
async def test_an_answer_that_nobody_waits_for_is_stopped(
    monkeypatch: pytest.MonkeyPatch, path: str, dermoscopy: Any
) -> None:
    """It is the same for an answer in one piece and for a whole workflow."""
    body: dict[str, Any] = {"json": ASKED} if path == CHAT else {"files": {"images": dermoscopy.read_bytes()}}
    async with gateway(Slow(), monkeypatch) as here:
        with pytest.raises(httpx.ReadTimeout):
            await here.client.post(path, **body, timeout=1.0)
        assert await settled(lambda: here.engine.running == 0)
        assert 0 == here.engine.finished


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a picture is encoded, comments tell proxies that somebody is there."""
    monkeypatch.setattr(streaming, "HEADERS_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "PING_SECONDS", 0.05)
    async with gateway(Slow(pieces=1, before_first=0.4), monkeypatch) as here:
        answer = await here.client.post(CHAT, json=ASKED | {"stream": True})

    assert answer.text.startswith(": waiting\n\n")
    assert "[DONE]" == events(answer.text)[-1]


async def test_a_request_is_held_while_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that is nearly done costs nobody a second try."""
    async with gateway(Slow(pieces=1), monkeypatch, start=0.1) as here:
        assert 503 == (await here.client.get("/readyz")).status_code
        assert 200 == (await here.client.post(CHAT, json=ASKED)).status_code
        assert 200 == (await here.client.get("/readyz")).status_code


async def test_a_long_load_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit (0.3 s here) the answer is 503 with Retry-After, and the load goes on."""
    async with gateway(Slow(), monkeypatch, start=30.0) as here:
        answer = await here.client.post(CHAT, json=ASKED)
        state = (await here.client.get("/v1/models/slow")).json()["state"]

    assert (503, "10") == (answer.status_code, answer.headers["retry-after"])
    assert ("model_loading", "loading") == (answer.json()["error"]["code"], state)


async def test_a_failed_load_is_told_at_once_with_the_time_of_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tries again for ever: until then every request gets the reason, which stands in the model's state."""
    async with gateway(Slow(), monkeypatch, start=ModelFailed("the file is broken")) as here:
        answer = await here.client.post(CHAT, json=ASKED)
        model = (await here.client.get("/v1/models/slow")).json()

    assert 503 == answer.status_code
    assert Limits().retry_seconds == float(answer.headers["retry-after"])
    assert ("failed", "the file is broken") == (model["state"], model["error"])


async def test_liveness_does_not_wait_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers in work, as many as there are slots, and some fifty that wait change nothing for a probe."""
    async with gateway(Slow(), monkeypatch) as here:
        asked = [asyncio.create_task(here.client.post(CHAT, json=ASKED)) for _ in range(50)]
        assert await settled(lambda: here.engine.running == ModelSpec.model_fields["slots"].default)
        seconds = [await _probe(here) for _ in range(5)]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    assert min(seconds) < 0.05


async def _probe(here: Gateway) -> float:
    began = perf_counter()
    assert 200 == (await here.client.get("/livez")).status_code
    return perf_counter() - began
