"""How answers end that do not end by themselves: the client goes, the service is stopped, the worker dies."""

import asyncio
import json
import os
import random
import signal
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from medserve.api import streaming
from medserve.settings import DEMO_MODEL
from tests.api.conftest import Slow, gateway
from tests.serving import Service, alive, serving, until

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MODEL = DEMO_MODEL.name
HELLO = [{"role": "user", "content": "hello"}]
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}
LONG_CHAT: dict[str, Any] = {
    "messages": HELLO,
    "max_tokens": 1500,
    "response_format": {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}},
}
LONG_RESPONSE: dict[str, Any] = {
    "input": "hello",
    "max_output_tokens": 1500,
    "text": {"format": {"type": "json_schema", "name": "endless", "schema": ENDLESS}},
}
"""Both ask for far more than a test waits for, in a form that no model can end soon."""
ABORTS = 100
AT_ONCE = 0.2
"""Seconds within which a slot is to be free again."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the service keeps what must not outlive it: a short name, because sockets lie in it."""
    with TemporaryDirectory(prefix="t-") as name:
        yield Path(name)


@pytest.fixture
def fresh(folder: Path) -> Iterator[Service]:
    """A service on the demonstration model for one test alone."""
    with serving(environment={"TMPDIR": str(folder)}) as running:
        yield running


@pytest.fixture
def worker(fresh: Service, folder: Path) -> Iterator[httpx.Client]:
    """The worker's own listener, which knows what llama.cpp does at this moment."""
    (path,) = folder.glob("medserve-*/*/http.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://worker") as client:
        yield client


@pytest.fixture
def http(fresh: Service) -> Iterator[httpx.Client]:
    """A plain client."""
    with httpx.Client(base_url=fresh.url, trust_env=False, timeout=60) as client:
        yield client


def connected(service: Service) -> socket.socket:
    """A connection of one's own, to be closed at any moment."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + f"{len(content)}\r\n\r\n".encode() + content


def picture_of(dermoscopy: Path) -> str:
    return b64encode(dermoscopy.read_bytes()).decode()


def asked(dermoscopy: Path) -> dict[str, tuple[bytes, bool]]:
    """Requests of every dialect that take their time, and whether they are streams."""
    picture = picture_of(dermoscopy)
    seen = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}]
    looking = [{"role": "user", "content": [*seen, {"type": "text", "text": "Describe the image."}]}]
    return {
        "chat": (request(CHAT, LONG_CHAT), False),
        "chat, streamed": (request(CHAT, LONG_CHAT | {"stream": True}), True),
        "two answers, streamed": (request(CHAT, LONG_CHAT | {"stream": True, "n": 2}), True),
        "picture, streamed": (request(CHAT, LONG_CHAT | {"messages": looking, "stream": True}), True),
        "picture": (request(CHAT, LONG_CHAT | {"messages": looking}), False),
        "responses": (request(RESPONSES, LONG_RESPONSE), False),
        "responses, streamed": (request(RESPONSES, LONG_RESPONSE | {"stream": True}), True),
        "workflow": (request("/v1/workflows/dermoscopy", {"images": [picture]}), False),
        "per model": (request(f"/{MODEL}/v1/generate", {"text": "hello " * 50, "max_new_tokens": 1500}), False),
    }


def read_some(connection: socket.socket) -> bytes:
    """What comes up to the first words of an answer."""
    said = b""
    while said.count(b"data: ") < 4:
        piece = connection.recv(65536)
        assert piece, said
        said += piece
    return said


def test_a_hundred_clients_that_leave_cost_nobody_a_slot(
    fresh: Service, http: httpx.Client, worker: httpx.Client, dermoscopy: Path
) -> None:
    """Before the first byte, in the vision encode, in mid-stream, in every dialect: the worker stops within 200 ms."""
    chance = random.Random(1)
    kinds = list(asked(dermoscopy).values())
    seconds = []
    for number in range(ABORTS):
        content, streams = kinds[number % len(kinds)]
        with connected(fresh) as connection:
            if number % 10 == 9:
                connection.sendall(content[: len(content) // 2])  # not even the whole question
            else:
                connection.sendall(content)
                if streams and number % 2:
                    read_some(connection)
                else:
                    sleep(chance.uniform(0.0, 0.12))
        seconds.append(_until_free(http, worker))
    answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 2})

    assert 200 == answer.status_code
    assert sorted(seconds)[ABORTS * 95 // 100] < AT_ONCE, sorted(seconds)[-10:]
    assert max(seconds) < 5 * AT_ONCE  # on a machine that has other work to do, a look may come late
    assert [] == [line for line in fresh.log.splitlines() if b"request.failed" in line]


def _until_free(http: httpx.Client, worker: httpx.Client) -> float:
    """Seconds until both the gateway and llama.cpp have nothing to do any more."""
    began = perf_counter()
    while True:
        busy = any(slot["is_processing"] for slot in worker.get("/slots").json())
        status = http.get(f"/v1/models/{MODEL}").json()
        if not busy and not status["answering"] and not status["waiting"]:
            return perf_counter() - began
        assert perf_counter() - began < 10, (busy, status["answering"], status["waiting"])


def test_clients_that_leave_all_at_once_free_the_waiting_room(
    fresh: Service, http: httpx.Client, worker: httpx.Client
) -> None:
    """Those that wait for a place give it up as those that have one do."""
    connections = [connected(fresh) for _ in range(30)]
    for connection in connections:
        connection.sendall(request(CHAT, LONG_CHAT | {"stream": True}))
    assert until(lambda: http.get(f"/v1/models/{MODEL}").json()["waiting"] == 30 - DEMO_MODEL.slots)
    for connection in connections:
        connection.close()

    assert _until_free(http, worker) < 1
    assert 200 == http.post(CHAT, json={"messages": HELLO, "max_tokens": 2}).status_code


def test_a_stopping_service_lets_answers_end(fresh: Service, folder: Path) -> None:
    """Streams run to their end mark, nobody new comes in, and nothing is left: no worker, no file, status 0."""
    workers = fresh.workers
    body = LONG_CHAT | {"max_tokens": 600}
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(_streamed, fresh, CHAT, body | {"stream": True}) for _ in range(2)]
        assert until(lambda: b"answering" in _status(fresh) and json.loads(_status(fresh))["answering"] == 2)
        fresh.process.send_signal(signal.SIGTERM)
        assert until(lambda: _refused(fresh))
        running = fresh.process.poll() is None
        ended = [stream.result() for stream in streams]
    status = fresh.process.wait(30)

    assert running
    assert all(text.endswith("data: [DONE]\n\n") and '"finish_reason": "length"' in text for text in ended)
    assert 0 == status
    assert until(lambda: not any(alive(pid) for pid in workers))
    assert [] == list(folder.iterdir())


def _streamed(service: Service, path: str, body: dict[str, Any]) -> str:
    return httpx.post(f"{service.url}{path}", json=body, trust_env=False, timeout=60).text


def _status(service: Service) -> bytes:
    return httpx.get(f"{service.url}/v1/models/{MODEL}", trust_env=False).content


def _refused(service: Service) -> bool:
    try:
        answer = httpx.get(f"{service.url}/v1/models", trust_env=False)
        return answer.status_code == 503 and "retry-after" in answer.headers
    except httpx.TransportError:
        return True


def test_what_does_not_end_in_time_is_told_so(folder: Path) -> None:
    """When the time for ending is over, a stream gets an error event and a waiting request a 503; never silence."""
    limits = {"MEDSERVE_LIMITS__DRAIN_SECONDS": "1", "TMPDIR": str(folder)}
    with serving(environment=limits) as service, ThreadPoolExecutor(2) as pool:
        (pid,) = service.workers
        stream = pool.submit(_streamed, service, RESPONSES, LONG_RESPONSE | {"stream": True})
        assert until(lambda: json.loads(_status(service))["answering"] == 1)
        os.kill(pid, signal.SIGSTOP)  # nothing ends any more
        try:
            whole = pool.submit(httpx.post, f"{service.url}{CHAT}", json=LONG_CHAT, trust_env=False, timeout=60)
            assert until(lambda: service.log.count(b"/v1/models") >= 1 and _inside(service) == 2)
            service.process.send_signal(signal.SIGTERM)
            said, answer = stream.result(), whole.result()
        finally:
            os.kill(pid, signal.SIGCONT)
        status = service.process.wait(30)

    assert "service_stopping" in said
    assert "response.completed" not in said
    assert (503, "service_stopping") == (answer.status_code, answer.json()["error"]["code"])
    assert "retry-after" in answer.headers
    assert 0 == status
    assert until(lambda: not alive(pid))


def _inside(service: Service) -> int:
    status = json.loads(_status(service))
    return int(status["answering"] + status["waiting"])


@pytest.mark.parametrize(("path", "body"), [(CHAT, LONG_CHAT), (RESPONSES, LONG_RESPONSE)])
def test_a_worker_that_dies_in_mid_stream_is_told(fresh: Service, path: str, body: dict[str, Any]) -> None:
    """The last event is the error, so that nobody takes half an answer for a whole one; the next request is served."""
    (pid,) = fresh.workers
    with connected(fresh) as connection:
        connection.sendall(request(path, body | {"stream": True}))
        said = read_some(connection)
        os.kill(pid, signal.SIGKILL)
        while not said.endswith(b"0\r\n\r\n"):
            piece = connection.recv(65536)
            assert piece, "the connection was cut"
            said += piece
    answer = httpx.post(f"{fresh.url}{CHAT}", json={"messages": HELLO, "max_tokens": 2}, trust_env=False, timeout=60)

    events = said.decode().split("data: ")
    told = next(place for place, event in enumerate(events) if "worker_crashed" in event)
    assert told >= len(events) - 2  # a failed response, whose event says what it is, is followed by the end mark
    assert path == RESPONSES or "[DONE]" not in events[-1]
    assert b"response.completed" not in said
    assert 200 == answer.status_code


async def test_a_client_that_leaves_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is logged as an error, however the answer was left."""
    monkeypatch.setattr(streaming, "HEADERS_WAIT_SECONDS", 0.05)
    async with _left(monkeypatch) as engine:
        pass

    assert 0 == engine.running == engine.finished


@asynccontextmanager
async def _left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    engine = Slow(between=5)
    with capture_logs() as logs:
        async with gateway(engine, monkeypatch) as here:
            for stream in (True, False):
                with pytest.raises(httpx.ReadTimeout):
                    await here.client.post(CHAT, json={"messages": HELLO, "stream": stream}, timeout=0.3)
            for _ in range(100):
                if not engine.running:
                    break
                await asyncio.sleep(0.01)
            yield engine
    assert [] == [line for line in logs if line["log_level"] == "error"]
