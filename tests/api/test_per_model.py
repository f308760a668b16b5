"""Each model under its own address, on a real service with the real demonstration model."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from time import perf_counter
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.routing import Match

from medserve import machine
from medserve.api import compute, routes
from medserve.api.routes import per_model
from medserve.errors import MemoryShort, ModelFailed
from medserve.generation import Chunk, GenerationRequest
from medserve.images import Image
from medserve.machine import Gpu, Gpus
from medserve.settings import DEMO, Settings
from tests.api.conftest import Gateway, Slow, gateway
from tests.serving import Service, serving, until

DEMO_NAME = "google/medgemma-demo:f16"
CONFIG = """
default_model = "script"

[[models]]
name = "script"
engine = "scripted"
replies = [{replies}]

[[models]]
name = "google/medgemma-demo:f16"
path = "{demo}"
context = 2048
threads = 1
slots = 2

[[models]]
name = "medgemma-27b-it"
path = "{demo}"
context = 2048
threads = 1
idle_seconds = 0.5

[[models]]
name = "words-only"
path = "{words}"
context = 1024
threads = 1

[[models]]
name = "broken"
path = "{broken}"

[[models]]
name = "outsized"
path = "{demo}"
memory_bytes = 1_000_000_000_000_000

[limits]
retry_seconds = 40
"""
SCALING_UP = {
    "status",
    "message",
    "model",
    "estimated_ready_time_seconds",
    "retry_after",
    "poll_url",
    "action",
}
PARAMETERS = {"max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"}
METRICS = {
    "query_duration_seconds",
    "replica_cpu_percent",
    "replica_memory_mb",
    "replica_num_cpus",
    "replica_gpu_memory_allocated_mb",
    "replica_gpu_memory_reserved_mb",
    "replica_gpu_memory_total_mb",
    "replica_gpu_memory_used_mb",
    "replica_gpu_utilization_percent",
}
SIDE = "On which side is the kidney stone? Answer with one: left, right or none."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with six models, of which only the scripted one is loaded at the start."""
    folder = tmp_path_factory.mktemp("per-model")
    words = folder / "words.gguf"
    shutil.copy(DEMO / "medserve-demo.gguf", words)  # no projector lies beside it
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    config = folder / "medserve.toml"
    replies = ", ".join(['"Round."'] * 1000)
    config.write_text(CONFIG.format(replies=replies, demo=DEMO / "medserve-demo.gguf", words=words, broken=broken))
    environment = {"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(folder / "home")}
    with serving(environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    """A plain HTTP client of that service."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def demo(client: httpx.Client) -> str:
    """The address of the demonstration model, which is loaded."""
    return loaded(client, f"/{DEMO_NAME}/v1")


def loaded(client: httpx.Client, base: str) -> str:
    """Poll as a client of the dialect does, until the model answers."""

    def ready() -> bool:
        answer = client.post(f"{base}/generate", json={"text": "hello", "max_new_tokens": 1})
        assert answer.status_code in {200, 202}, answer.text
        return answer.status_code == 200

    assert until(ready, 60)
    return base


def drawing(name: str) -> str:
    """A drawing that the demonstration model was trained to read, as bare base64."""
    return b64encode((DEMO / "drawings" / f"{name}.png").read_bytes()).decode()


# --- while it loads ------------------------------------------------------------------------------------------------


def test_a_cold_model_answers_202_with_poll_facts_and_is_ready_when_polled(client: httpx.Client) -> None:
    """The same keys and headers as 003; no time is named as long as none was measured."""
    asked = {"prompt": "hello", "max_new_tokens": 4}
    first = client.post("/medgemma-27b-it/v1/generate", json=asked)
    told = first.json()

    assert 202 == first.status_code
    assert set(told) >= SCALING_UP
    assert ("scaling_up", "retry_later", "loading") == (told["status"], told["action"], told["state"])
    assert told["estimated_ready_time_seconds"] is None
    assert {"retry-after": "10", "x-status": "scaling-up", "x-action": "retry-later"}.items() <= first.headers.items()
    assert client.base_url.join("/medgemma-27b-it/v1/generate") == told["poll_url"]
    assert until(lambda: client.post(told["poll_url"], json=asked).status_code == 200, 60)


def test_the_time_of_a_load_is_told_from_the_load_before(client: httpx.Client) -> None:
    """Defect 003-3: it told 120 seconds whatever the model, and never scaled to zero; this one was idle and is back."""
    base = loaded(client, "/medgemma-27b-it/v1")
    assert until(lambda: client.get(f"{base}/health").json()["status"] == "cold", 30)
    measured = client.get("/v1/models/medgemma-27b-it").json()["load_seconds"]
    again = client.post(f"{base}/generate", json={"text": "hello"})
    told = again.json()

    assert 202 == again.status_code
    assert measured > 0
    assert 1 <= told["estimated_ready_time_seconds"] <= measured + 1
    assert str(told["retry_after"]) == again.headers["retry-after"]


def test_a_failed_load_is_told_with_its_reason_and_never_answered_202_for_ever(client: httpx.Client) -> None:
    """003 answered 202 "retry later" for ever after a failed load, and /health said scaling_up."""
    base, asked = "/broken/v1", {"text": "hello"}
    assert until(lambda: client.post(f"{base}/generate", json=asked).status_code != 202, 30)
    answers = [client.post(f"{base}/{kind}", json=asked) for kind in ("generate", "chat", "generate")]
    answers += [client.get(f"{base}/schema"), client.get(f"{base}/health")]

    for answer in answers:
        told = answer.json()
        assert (503, "failed") == (answer.status_code, told["status"])
        assert "GGUF" in told["loading_error"]
        assert 0 < int(answer.headers["retry-after"]) <= 40
        assert int(answer.headers["retry-after"]) == told["retry_after"]
    assert answers[0].json()["error"]["param"] == "model"


def test_a_failed_load_has_the_code_that_chat_has_for_it(client: httpx.Client) -> None:
    """A client that knows `weights_corrupt` from one dialect knows it from the other."""
    chat = {"model": "broken", "messages": [{"role": "user", "content": "hello"}]}
    assert until(lambda: client.get("/broken/v1/health").json()["status"] == "failed", 30)
    answers = [client.post("/v1/chat/completions", json=chat), client.post("/broken/v1/chat", json={"text": "hello"})]

    assert [["weights_corrupt", "model", "server_error"]] * 2 == [_error(a, "code", "param", "type") for a in answers]


async def test_a_load_that_finds_no_room_is_told_and_never_answered_202_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a model is cold and not failed, and every question tries again; the caller still learns why."""
    async with gateway(Slow(), monkeypatch, start=MemoryShort("the others are at work")) as here:
        _, *later = [await asked_and_waited(here) for _ in range(4)]

    assert [503] * 3 == [answer.status_code for answer in later]
    for answer in later:
        assert "the others are at work" == answer.json()["loading_error"]
        assert "10" == answer.headers["retry-after"]


def test_a_model_that_can_never_fit_has_failed(client: httpx.Client) -> None:
    """It needs more memory than the machine has; it is not about to be ready."""
    told = []

    def refused() -> bool:
        told.append(client.post("/outsized/v1/generate", json={"text": "hello"}))
        return told[-1].status_code == 503

    assert until(refused, 30)
    assert "memory" in told[-1].text


def test_health_tells_the_states_apart_and_loads_nothing(client: httpx.Client, demo: str) -> None:
    """003 knew healthy and scaling_up only; a cold model stays cold however often it is looked at."""
    base = "/words-only/v1"
    cold = [client.get(f"{base}/health") for _ in range(3)][-1]
    ready = client.get(f"{demo}/health")

    assert (503, "cold", False) == (cold.status_code, cold.json()["status"], cold.json()["ready"])
    assert "retry-after" not in cold.headers
    assert (200, "healthy", True) == (ready.status_code, ready.json()["status"], ready.json()["ready"])
    assert DEMO_NAME == ready.json()["model"]


async def asked_and_waited(here: Gateway) -> httpx.Response:
    """The answer to a question, given when the load that it began has ended."""
    answer = await here.client.post("/slow/v1/generate", json={"text": "a"})
    for _ in range(500):
        if (await here.client.get("/slow/v1/health")).json()["status"] != "loading":
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError


async def test_a_model_that_loads_is_told_as_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """By /health, by /schema, and by the 202 of a question, which says for how long it has been loading."""
    async with gateway(Slow(), monkeypatch, start=30.0) as here:
        asked = await here.client.post("/slow/v1/chat", json={"text": "hello"})
        health = await here.client.get("/slow/v1/health")
        schema = await here.client.get("/slow/v1/schema")

    assert 202 == asked.status_code
    assert 0 <= asked.json()["elapsed_seconds"] < 30
    for answer in (health, schema):
        assert (503, "loading") == (answer.status_code, answer.json()["status"])
        assert "10" == answer.headers["retry-after"]
    assert "model_loading" == schema.json()["error"]["code"]


async def test_a_load_that_fails_while_it_is_polled_ends_the_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with the reason on every question after it."""
    failure = ModelFailed("the file is broken")
    async with gateway(Slow(), monkeypatch, start=failure) as here:
        _, *later = [await asked_and_waited(here) for _ in range(4)]

    assert [503] * 3 == [answer.status_code for answer in later]
    assert {"the file is broken"} == {answer.json()["loading_error"] for answer in later}


# --- what it is ----------------------------------------------------------------------------------------------------


def test_the_schema_tells_what_the_files_of_the_model_say(client: httpx.Client, demo: str) -> None:
    """003's were constants; these are compared with the configuration that the model was made from."""
    told = client.get(f"{demo}/schema").raise_for_status().json()
    config, processor = [json.loads((DEMO / f"{name}.json").read_text()) for name in ("config", "processor_config")]
    image = told["capabilities"]["image"]

    assert processor["image_processor"]["size"] == {"width": image["width"], "height": image["height"]}
    assert (processor["image_seq_length"], "bilinear") == (image["tokens"], image["resample"])
    assert config["text_config"]["max_position_embeddings"] == told["capabilities"]["trained_context_tokens"]
    assert 2048 == told["capabilities"]["context_tokens"] == told["capabilities"]["new_tokens"]
    assert (config["model_type"], "gemma3") == (told["model_class"], told["processor_class"])
    assert {"schema": True, "choices": True, "logprobs": True, "prefix": True, "score": True, "slots": 2}.items() <= (
        told["capabilities"].items()
    )
    assert {} == told["reasons"]


def test_the_weights_name_themselves(client: httpx.Client, demo: str) -> None:
    """003's model_id was the name of the application; here that is `model`, and the weights have their own."""
    told = client.get(f"{demo}/schema").json()

    assert ("medserve-demo", DEMO_NAME) == (told["model_id"], told["model"])
    assert 64 == len(told["facts"]["fingerprint"]) == len(told["facts"]["projector_fingerprint"])


def test_a_model_without_sight_has_no_field_for_a_picture(client: httpx.Client) -> None:
    """Its weights lie without a projector: the schema says so, and a picture is refused by name."""
    base = loaded(client, "/words-only/v1")
    told = client.get(f"{base}/schema").json()
    shown = client.post(f"{base}/generate", json={"text": SIDE, "image": drawing("kidney-left")})

    assert told["capabilities"]["image"] is None
    assert "without a vision part" in told["reasons"]["capabilities.image"]
    assert "image" not in told["inputs"]["required"]
    assert not Draft202012Validator(told["request"]).is_valid({"text": SIDE, "image": "aGk="})
    assert (400, "image") == (shown.status_code, shown.json()["error"]["param"])


def test_what_an_engine_does_not_tell_is_null_with_a_reason(client: httpx.Client) -> None:
    """A script has no files; nothing is guessed for it."""
    told = client.get("/script/v1/schema").json()

    assert [None, None] == [told["model_class"], told["processor_class"]]
    assert {"model_class", "processor_class", "capabilities.trained_context_tokens"} <= set(told["reasons"])


def test_the_defaults_are_those_that_a_short_question_is_answered_with(client: httpx.Client, demo: str) -> None:
    """What the schema promises is what the answer echoes."""
    defaults = client.get(f"{demo}/schema").json()["defaults"]
    used = client.post(f"{demo}/generate", json={"text": "hello"}).json()["parameters"]

    assert defaults == used
    assert set(used) == PARAMETERS


def test_a_model_lists_itself_under_its_own_address(client: httpx.Client, demo: str) -> None:
    """For clients whose base URL is that of one model."""
    listed = client.get(f"{demo}/models").json()

    assert [(DEMO_NAME, "model")] == [(entry["id"], entry["object"]) for entry in listed["data"]]


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DEMO_NAME, "google%2Fmedgemma-demo%3Af16", "medgemma-demo:f16", "medgemma-27b-it"])
def test_a_model_is_found_by_its_name_with_slashes_and_colons_or_by_its_end(client: httpx.Client, name: str) -> None:
    """Defect 003-2: the address that 003 documented led to nothing, because its service had another name by default."""
    assert client.get(f"/{name}/v1/health").status_code in {200, 503}


@pytest.mark.parametrize("path", ["demo:f16/v1/health", "nobody/v1/schema", "v1/v1/models", "google/v1/models"])
def test_an_unknown_model_is_told_with_the_names_there_are(client: httpx.Client, path: str) -> None:
    """In OpenAI's shape; half a name is none."""
    answer = client.get(f"/{path}")

    assert (404, "model_not_found", "model") == (answer.status_code, *_error(answer, "code", "param"))
    assert DEMO_NAME in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["//v1/health", "/medgemma-27b-it/v1/unheard-of"])
def test_an_address_that_is_none_is_not_found(client: httpx.Client, path: str) -> None:
    """Neither a model without a name nor a route that is not there; an empty name does not mean the default model."""
    answer = client.get(str(client.base_url).rstrip("/") + path)

    assert (404, "not_found") == (answer.status_code, *_error(answer, "code"))


def test_every_route_is_reached_though_names_of_models_hold_slashes() -> None:
    """An address could be meant for two routes: none of these hides another, and no other hides one of these."""
    found = sorted(info.name for info in iter_modules(routes.__path__))
    routers = {name: import_module(f"{routes.__name__}.{name}").router for name in found}
    every = [(name, route) for name, router in routers.items() for route in router.routes]

    assert len(every) > 15
    for name, route in every:
        path, method = re.sub(r"\{(\w+)(:\w+)?\}", r"\1", route.path), min(route.methods)
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        reached = [other for other, at in every if at.matches(scope)[0] is Match.FULL]
        assert name == reached[0], path
        assert ("per_model" in reached) == (name == "per_model"), path


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"host": "127.0.0.1:8080"}, "http://127.0.0.1:8080/a/b:c/v1/chat"),
        ({"host": "localhost"}, "http://localhost/a/b:c/v1/chat"),
        ({"host": "[::1]:8080", "scheme": "https"}, "https://[::1]:8080/a/b:c/v1/chat"),
        ({"host": "10.0.0.7:8080"}, "http://10.0.0.7:8080/a/b:c/v1/chat"),
        ({"host": "evil.example.org"}, "/a/b:c/v1/chat"),
        ({"host": "evil.example.org@127.0.0.1"}, "http://10.0.0.7:8080/a/b:c/v1/chat"),
        ({"host": "127.0.0.1:8080", "root_path": "/med"}, "http://127.0.0.1:8080/med/a/b:c/v1/chat"),
        ({"host": "hospital.example.org", "root_path": "/med"}, "/med/a/b:c/v1/chat"),
        ({"host": "localhost", "root_path": "/a"}, "http://localhost/a/b:c/v1/chat"),
        ({"host": "localhost", "root_path": "/a", "path": "/ab/v1/chat"}, "http://localhost/a/ab/v1/chat"),
        ({"host": "localhost", "root_path": "/med", "path": "/med/a/v1/chat"}, "http://localhost/med/a/v1/chat"),
        ({"host": "localhost", "path": "/a b?c#d/v1/chat"}, "http://localhost/a%20b%3Fc%23d/v1/chat"),
    ],
)
def test_the_address_to_poll_keeps_a_proxys_prefix_and_repeats_no_foreign_host(
    scope: Mapping[str, str], expected: str
) -> None:
    """Whole where it leads to this machine for certain, else from the root of whatever host was asked."""
    rest = {name: value for name, value in scope.items() if name != "host"}
    asked = {"type": "http", "method": "POST", "scheme": "http", "path": "/a/b:c/v1/chat", "query_string": b"key=1"}
    here = {"root_path": "", "server": ("10.0.0.7", 8080), "headers": [(b"host", scope["host"].encode())]}
    request = Request({**asked, **here, **rest})
    address = per_model.poll_url(request, Settings(host="0.0.0.0", open_to_network=True))  # noqa: S104 - not bound

    assert expected == address


# --- what it answers -----------------------------------------------------------------------------------------------


def test_both_forms_and_openais_dialect_ask_the_same(client: httpx.Client, demo: str) -> None:
    """The picture first, then the words: word for word and token for token the same question."""
    picture = drawing("kidney-left")
    uri = f"data:image/png;base64,{picture}"
    words = {"type": "text", "text": SIDE}
    bodies: list[dict[str, Any]] = [{"text": SIDE, "image": picture}, {"prompt": SIDE, "image": uri}]
    part = {"type": "image_url", "image_url": {"url": uri}}
    parts = [
        part,
        *({"type": "image", name: text} for name, text in [("image", uri), ("url", uri), ("base64", picture)]),
    ]
    bodies += [{"messages": [{"role": "user", "content": [part, words]}]} for part in parts]
    answers = [client.post(f"{demo}/{kind}", json=body) for body in bodies for kind in ("generate", "chat")]
    told = [answer.raise_for_status().json() for answer in answers]
    openai = {"model": DEMO_NAME, "messages": [{"role": "user", "content": [part, words]}]}
    same = client.post("/v1/chat/completions", json=openai).raise_for_status().json()

    assert {"left"} == {answer["response"] for answer in told} == {same["choices"][0]["message"]["content"]}
    assert {same["usage"]["prompt_tokens"]} == {answer["usage"]["prompt_tokens"] for answer in told}
    assert {16} == {answer["usage"]["image_tokens"] for answer in told}
    assert {"success"} == {answer["status"] for answer in told}


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_answer_depends_on_the_picture(client: httpx.Client, demo: str, side: str) -> None:
    """It is really looked at."""
    told = client.post(f"{demo}/generate", json={"text": SIDE, "image": drawing(f"kidney-{side}")}).json()

    assert side == told["response"]


def test_an_answer_that_the_limit_cut_says_so(client: httpx.Client, demo: str) -> None:
    """`finish` tells it; `parameters` are those really used; tokens are counted by the engine."""
    asked = {"text": SIDE, "image": drawing("kidney-left"), "max_new_tokens": 1, "do_sample": True, "seed": 7}
    told = client.post(f"{demo}/chat", json=asked | {"temperature": 0.5, "top_k": 3, "top_p": 0.9}).json()

    assert ("length", 1) == (told["finish"], told["usage"]["completion_tokens"])
    assert "esearch use only" in told["notice"]
    assert told["parameters"] == {
        "max_new_tokens": 1,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "repetition_penalty": 1.0,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{broken", None),
        ("[1, 2]", None),
        ({"text": "hello", "temprature": 1}, "temprature"),
        ({"text": "hello", "max_new_tokens": 0}, "max_new_tokens"),
        ({"text": "hello", "max_new_tokens": 100_000}, "max_new_tokens"),
        ({"text": "hello", "max_new_tokens": "200"}, "max_new_tokens"),
        ({"text": "hello", "temperature": 3}, "temperature"),
        ({"text": "hello", "temperature": 0.7, "do_sample": False}, "temperature"),
        ({"text": "hello", "top_p": -1}, "top_p"),
        ({"text": "hello", "repetition_penalty": 0}, "repetition_penalty"),
        ({"text": "hello", "image": "no base64!"}, "image"),
        ({"text": "hello", "image": "aGVsbG8="}, "image"),
        ({"text": "hello", "image": "/etc/hostname"}, "image"),
        ({"text": "hello", "image": "file:///etc/hostname"}, "image"),
        ({"text": "hello", "image": "https://example.org/a.png"}, "image"),
        ({"text": ""}, "text"),
        ({}, "text"),
        ({"text": "hello", "messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.image"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "/etc/x"}]}]}, None),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "messages"),
        ({"text": "hello " * 5000}, "text"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(
    client: httpx.Client, demo: str, body: str | dict[str, Any], param: str | None
) -> None:
    """Defect 003-9: 003 answered 500 to all of these, or took them in silence; here nothing sent is repeated."""
    content = body if isinstance(body, str) else json.dumps(body)
    answer = client.post(f"{demo}/generate", content=content, headers={"Content-Type": "application/json"})

    assert 400 == answer.status_code, answer.text
    if param is not None:
        assert (param,) == tuple(_error(answer, "param"))
    assert "hostname" not in answer.text


@pytest.mark.parametrize("part", [{"type": "image", "image": "URL"}, {"type": "image", "url": "URL"}])
def test_no_address_in_a_conversation_is_followed(client: httpx.Client, demo: str, part: dict[str, str]) -> None:
    """Defect 003-5: 003 handed messages to a loader that fetched any address and read any file of the server."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        sent = {name: value.replace("URL", address) for name, value in part.items()}
        messages = [{"role": "user", "content": [sent, {"type": "text", "text": "hello"}]}]
        answer = client.post(f"{demo}/generate", json={"messages": messages})
        trap.settimeout(0.2)
        with pytest.raises(TimeoutError):
            trap.accept()

    assert (400, "reference_refused") == (answer.status_code, *_error(answer, "code"))
    assert _error(answer, "param")[0].startswith("messages.0.content.0.")
    assert "127.0.0.1" not in answer.text


class Listening(Slow):
    """An engine that keeps what it was asked."""

    heard: GenerationRequest

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.heard = request
        async for chunk in super().stream(request):
            yield chunk


async def ready(here: Gateway) -> None:
    """Ask until the model of the gateway answers."""
    for _ in range(200):
        if (await here.client.get("/slow/v1/schema")).status_code == 200:
            return
        await asyncio.sleep(0.02)
    raise AssertionError


async def settled(true: Callable[[], bool]) -> bool:
    """Whether something comes to hold within some seconds."""
    for _ in range(500):
        if true():
            return True
        await asyncio.sleep(0.02)
    return False


async def test_the_model_reads_the_picture_first_and_no_system_text_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever 003 did: MedGemma's own format, and nothing invented."""
    engine = Listening(pieces=1)
    async with gateway(engine, monkeypatch) as here:
        await ready(here)
        asked = {"text": "what is it?", "image": drawing("kidney-left"), "max_new_tokens": 5}
        (await here.client.post("/slow/v1/generate", json=asked)).raise_for_status()

    (turn,) = engine.heard.messages
    assert ("user", 5) == (turn.role, engine.heard.max_tokens)
    assert [Image, str] == [type(part) for part in turn.parts]


async def test_health_is_answered_while_answers_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 003-6: 003 blocked its event loop during generate: health, models and the second question waited."""
    async with gateway(Slow(pieces=200), monkeypatch) as here:
        await ready(here)
        asked = [asyncio.create_task(here.client.post("/slow/v1/generate", json={"text": "a"})) for _ in range(10)]
        assert await settled(lambda: here.engine.running > 0)
        seconds = []
        for _ in range(5):
            began = perf_counter()
            (await here.client.get("/slow/v1/health")).raise_for_status()
            seconds.append(perf_counter() - began)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    assert min(seconds) < 0.05


async def test_more_questions_than_there_is_room_for_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """003 had no limit: each question began at once and all of them suffered. Here two are answered and 64 wait."""
    async with gateway(Slow(), monkeypatch) as here:
        await ready(here)
        asked = [asyncio.create_task(here.client.post("/slow/v1/generate", json={"text": "a"})) for _ in range(70)]
        assert await settled(lambda: sum(task.done() for task in asked) == 4)
        refused = [task.result() for task in asked if task.done()]
        assert 2 == here.engine.running
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    assert {(429, "model_busy")} == {(answer.status_code, *_error(answer, "code")) for answer in refused}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_a_full_model_says_so_before_pictures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent here is no picture, which reading it would have told: nothing is decoded for who has to go away."""
    said = {"image": "bm8gcGljdHVyZQ=="}
    whole, file = {"images": list(said.values())}, b"no picture"
    async with gateway(Slow(), monkeypatch) as here:
        await ready(here)
        asked = [asyncio.create_task(here.client.post("/slow/v1/generate", json={"text": "a"})) for _ in range(67)]
        assert await settled(lambda: sum(task.done() for task in asked) == 1)
        told = [
            await here.client.post("/slow/v1/generate", json=said | {"text": "what is it?"}),
            await here.client.post("/v1/workflows/dermoscopy", json=whole),
            await here.client.post("/v1/workflows/dermoscopy", files={"images": file}),
            await here.client.post("/predict", files={"image_file": file}),
            await here.client.post("/analyze", json=whole | {"prompt": "what is it?"}),
        ]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    assert [429] * 5 == [answer.status_code for answer in told]


async def test_an_answer_that_nobody_waits_for_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """003 could not be stopped once it had begun to generate."""
    async with gateway(Slow(), monkeypatch) as here:
        await ready(here)
        with pytest.raises(httpx.ReadTimeout):
            await here.client.post("/slow/v1/generate", json={"text": "a"}, timeout=0.5)
        assert await settled(lambda: here.engine.running == 0)
        assert 0 == here.engine.finished


# --- what it cost --------------------------------------------------------------------------------------------------


def test_an_answer_tells_what_its_worker_used(client: httpx.Client, demo: str) -> None:
    """Processor time over the whole query, not over a tenth of a second; memory of the worker, not of the gateway."""
    began = perf_counter()
    told = client.post(f"{demo}/generate", json={"text": SIDE, "image": drawing("kidney-right")}).json()
    waited = perf_counter() - began
    metrics = told["compute_metrics"]

    assert METRICS | {"reasons"} == set(metrics)
    assert 0 < metrics["query_duration_seconds"] <= waited + 0.001
    assert metrics["replica_memory_mb"] > 20
    assert metrics["replica_num_cpus"] >= 1
    assert metrics["replica_cpu_percent"] is not None or metrics["query_duration_seconds"] < 0.1


@dataclass
class Working(Slow):
    """An engine that says which process is its worker."""

    pid: int = 0

    async def exited(self) -> int:
        return await asyncio.sleep(3600, 0)


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that keeps one processor busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield process.pid
        process.kill()


async def test_processor_time_is_that_of_the_worker_over_the_whole_query(
    monkeypatch: pytest.MonkeyPatch, busy: int
) -> None:
    """003 sampled for a tenth of a second and blocked all else meanwhile. The engine waits; its worker burns time."""
    async with gateway(Working(pieces=50, pid=busy), monkeypatch) as here:
        await ready(here)
        metrics = (await here.client.post("/slow/v1/generate", json={"text": "a"})).json()["compute_metrics"]

    assert 5 < metrics["replica_cpu_percent"] < 120
    assert 3 < metrics["replica_memory_mb"] < 200
    assert len(os.sched_getaffinity(0)) == metrics["replica_num_cpus"]
    assert "does not say which devices" in metrics["reasons"]["replica_gpu_memory_total_mb"]


async def test_an_answer_too_short_to_measure_says_so(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    """Processor time is counted in steps: over a few milliseconds a share of it would mean nothing."""
    monkeypatch.setattr(compute, "SHORTEST_SECONDS", 60.0)  # a few milliseconds, on a machine under load
    async with gateway(Working(pieces=1, between=0, pid=busy), monkeypatch) as here:
        await ready(here)
        metrics = (await here.client.post("/slow/v1/generate", json={"text": "a"})).json()["compute_metrics"]

    assert metrics["replica_cpu_percent"] is None
    assert "too short" in metrics["reasons"]["replica_cpu_percent"]


def test_all_the_gpus_that_a_worker_uses_are_counted() -> None:
    """Defect 003-8: 003 told of the current device alone, though its model lay on several."""
    gpus = (Gpu(0, "a", 80 * 2**30, 20 * 2**30, 90.0), Gpu(1, "a", 80 * 2**30, 10 * 2**30, 30.0))

    assert {
        "replica_gpu_memory_total_mb": 160 * 1024.0,
        "replica_gpu_memory_used_mb": 30 * 1024.0,
        "replica_gpu_utilization_percent": 60.0,
    } == compute.together(gpus)


def test_only_the_gpus_that_the_worker_computes_on_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the driver's word; where that names no process of ours, all that are visible count, and this is said."""
    ours, facts = os.getpid(), {"devices": "CUDA0"}
    gpus = [Gpu(place, "a", 80 * 2**30, 0, 0.0, frozenset({pid})) for place, pid in ((0, 1), (1, ours), (2, 1))]
    total = "replica_gpu_memory_total_mb"

    def told(*devices: Gpu) -> tuple[float | None, str | None]:
        monkeypatch.setattr(machine, "gpus", lambda: Gpus(devices))
        values, reasons = compute._devices(facts, ours)
        return values[total], reasons.get(total)

    assert (80 * 1024.0, None) == told(*gpus)
    assert (160 * 1024.0, compute.NOT_MATCHED) == told(gpus[0], gpus[2])
    assert (80 * 1024.0, None) == told(gpus[0])  # there is no other that it could be


def test_what_cannot_be_measured_is_null_with_a_reason(client: httpx.Client, demo: str) -> None:
    """003 told zeros where there was no GPU; each null here says why, and no number has an excuse."""
    answers = [client.post(f"{base}/generate", json={"text": "hello"}).json() for base in (demo, "/script/v1")]
    nulls = [{name for name, value in answer["compute_metrics"].items() if value is None} for answer in answers]

    assert nulls == [set(answer["compute_metrics"]["reasons"]) for answer in answers]
    assert {"replica_memory_mb", "replica_num_cpus"} <= nulls[1] - nulls[0]
    assert "process" in answers[1]["compute_metrics"]["reasons"]["replica_memory_mb"]


def _error(answer: httpx.Response, *names: str) -> list[Any]:
    return [answer.json()["error"][name] for name in names]
