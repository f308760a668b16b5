"""The whole service on the real engine and the demonstration model: a process, HTTP, the official client, signals."""

import json
import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import openai
import PIL.Image
import pytest

from medserve.settings import DEMO_MODEL
from tests.serving import Service, alive, serving, until

DERMOSCOPY = "/v1/workflows/dermoscopy"
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}
LONG: dict[str, Any] = {
    "max_tokens": 1500,
    "response_format": {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}},
}
"""Asks for far more than a test waits for, in a form that no model can end soon."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service for all tests that leave it running."""
    with serving() as running:
        yield running


@pytest.fixture
def fresh() -> Iterator[Service]:
    """A service for one test alone, which may break it."""
    with serving() as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A plain client."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    """The official client."""
    with speaking_to(service) as client:
        yield client


def speaking_to(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=60)


def looking(picture: bytes, words: str) -> Any:
    """A conversation about a picture."""
    url = "data:image/png;base64," + b64encode(picture).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def worker_of(service: Service) -> int:
    """The one process that runs the model."""
    assert until(lambda: len(service.workers) == 1)
    return service.workers[0]


def test_a_real_photograph_becomes_a_report(http: httpx.Client, dermoscopy: Path) -> None:
    """All steps are there, the picture was encoded once, and the notice is on it, as JSON and as text."""
    files = {"images": dermoscopy.read_bytes()}
    report = http.post(DERMOSCOPY, files=files).raise_for_status().json()
    text = http.post(DERMOSCOPY, files=files, headers={"Accept": "text/plain"}).raise_for_status().text

    assert 7 == len(report["steps"])
    assert 1 == report["tokens"]["encodes"]
    assert report["tokens"]["cached"] > 0
    assert report["conclusion"]["probabilities"].keys() == {"MEL", "NV", "BCC", "BKL"}
    assert "blind" not in report["flags"]
    assert "Research use only" in text


def test_the_same_picture_as_json_gives_the_same_answers(http: httpx.Client, dermoscopy: Path) -> None:
    """Word for word, whichever way it came."""
    data = dermoscopy.read_bytes()
    ways: list[dict[str, Any]] = [{"files": {"images": data}}, {"json": {"images": [b64encode(data).decode()]}}]
    first, second = (http.post(DERMOSCOPY, **way).raise_for_status().json() for way in ways)

    assert first["conclusion"] == second["conclusion"]
    assert [step["reply"] for step in first["steps"]] == [step["reply"] for step in second["steps"]]


def test_the_official_client_talks_about_a_picture(client: openai.OpenAI, dermoscopy: Path) -> None:
    """Streamed and whole answers are the same words, image tokens are counted, log-probabilities are there."""
    asked: Any = {
        "model": DEMO_MODEL.name,
        "messages": looking(dermoscopy.read_bytes(), "Describe the image."),
        "max_tokens": 16,
    }
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == streamed
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    assert 3 == len(whole.choices[0].logprobs.content[0].top_logprobs)
    assert chunks[-1].usage is not None
    assert getattr(chunks[-1].usage.prompt_tokens_details, "image_tokens", 0) > 0


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    """Whatever the model would say, the answer fits."""
    schema = {
        "type": "object",
        "properties": {"sees": {"type": "boolean"}},
        "required": ["sees"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "sight", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(
        model=DEMO_MODEL.name,
        messages=[{"role": "user", "content": "Do you see?"}],
        response_format=wanted,
        max_tokens=32,
    )

    assert json.loads(answer.choices[0].message.content or "") in ({"sees": True}, {"sees": False})


def test_a_prompt_that_does_not_fit_is_the_callers_error(client: openai.OpenAI) -> None:
    """The client's own class, whole or streamed, with the code that clients look for."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=DEMO_MODEL.name, messages=[{"role": "user", "content": "yes no " * 5000}], stream=stream
            )
        assert "context_length_exceeded" == caught.value.code


def test_a_client_that_leaves_frees_its_place(http: httpx.Client, client: openai.OpenAI) -> None:
    """Far more clients than there are places ask for much and go; the next one is served at once."""
    for _ in range(DEMO_MODEL.slots * 3):
        stream = client.chat.completions.create(
            model=DEMO_MODEL.name, messages=[{"role": "user", "content": "hello"}], stream=True, **LONG
        )
        next(iter(stream))
        stream.close()
        with pytest.raises(httpx.ReadTimeout):
            http.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], **LONG}, timeout=0.05
            )
    began = perf_counter()
    client.chat.completions.create(model=DEMO_MODEL.name, messages=[{"role": "user", "content": "hello"}], max_tokens=1)

    assert perf_counter() - began < 5


def test_a_large_picture_leaves_no_memory_behind(http: httpx.Client, service: Service) -> None:
    """Twenty million pixels, five times over, cost the gateway less than one of them would if it were kept."""
    file = BytesIO()
    PIL.Image.effect_noise((500, 400), 40).convert("RGB").resize((5000, 4000)).save(file, "PNG", compress_level=1)
    asked = {"messages": looking(file.getvalue(), "Describe the image."), "max_tokens": 1}
    for _ in range(3):
        http.post("/v1/chat/completions", json=asked).raise_for_status()
    held = service.resident
    for _ in range(5):
        http.post("/v1/chat/completions", json=asked).raise_for_status()

    assert service.resident - held < 60_000_000


def test_a_model_that_is_busy_does_not_silence_the_service(fresh: Service) -> None:
    """While the worker stands still, as in a long encode, probes are answered within 50 ms."""
    worker = worker_of(fresh)
    with speaking_to(fresh) as client, ThreadPoolExecutor(1) as pool:
        os.kill(worker, signal.SIGSTOP)
        try:
            asked = pool.submit(_greet, client)
            sleep(0.3)
            with httpx.Client(base_url=fresh.url, trust_env=False) as probe:
                seconds = [_seconds(probe) for _ in range(10)]
            waited = not asked.done()
        finally:
            os.kill(worker, signal.SIGCONT)
        assert asked.result(30).usage is not None

    assert waited
    assert sorted(seconds)[5] < 0.05


def _greet(client: openai.OpenAI) -> Any:
    messages: Any = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model=DEMO_MODEL.name, messages=messages, max_tokens=2)


def _seconds(probe: httpx.Client) -> float:
    began = perf_counter()
    probe.get("/livez").raise_for_status()
    return perf_counter() - began


def test_a_crash_in_mid_answer_is_told_and_mended(fresh: Service) -> None:
    """The stream ends with an error event, and the next request finds a new worker."""
    hello: Any = [{"role": "user", "content": "hello"}]
    worker = worker_of(fresh)
    with speaking_to(fresh) as client:
        os.kill(worker, signal.SIGSTOP)  # else so small a model may be done before it is killed
        stream = client.chat.completions.create(model=DEMO_MODEL.name, messages=hello, stream=True, **LONG)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        answer = client.chat.completions.create(model=DEMO_MODEL.name, messages=hello, max_tokens=2)

    assert "worker_crashed" == caught.value.code
    assert answer.usage is not None
    assert worker != worker_of(fresh)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_is_left_behind(fresh: Service, how: signal.Signals) -> None:
    """However the gateway ends, its worker ends too."""
    worker = worker_of(fresh)
    status = fresh.stop(how)

    assert until(lambda: not alive(worker))
    assert status in (0, -how, 128 + how)
    assert b"Traceback" not in fresh.log
