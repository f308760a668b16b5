"""What 003's adapter to OpenAI's dialect got wrong, asked of the real dialect, service and demonstration model."""

import json
from base64 import b64encode
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import httpx
import pytest

from medserve.settings import DEMO
from tests.serving import Service, serving

CONFIG = """
[[models]]
name = "medserve-demo"
path = "{demo}"
context = 2048
threads = 1

[[models]]
name = "cold"
path = "{demo}"
context = 2048
threads = 1

[limits]
hold_seconds = 0.05
"""
SIGNS = "Which colours does the lesion have? Answer with colour names only, separated by commas."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that is loaded and one that is not, which holds no request for long."""
    folder = tmp_path_factory.mktemp("adapter")
    config = folder / "medserve.toml"
    config.write_text(CONFIG.format(demo=DEMO / "medserve-demo.gguf"))
    with serving(environment={"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(folder / "home")}) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    """A plain HTTP client of that service."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


def asked(client: httpx.Client, content: Any, **more: Any) -> httpx.Response:
    """One question to the model that is loaded, or to another."""
    messages = [{"role": "user", "content": content}]
    return client.post("/v1/chat/completions", json={"model": "medserve-demo", "messages": messages, **more})


def shown(words: str) -> list[dict[str, Any]]:
    """The words after a drawing of a lesion."""
    data = b64encode((DEMO / "drawings" / "lesion-mel.png").read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [picture, {"type": "text", "text": words}]


def test_a_model_that_loads_is_an_error_and_no_empty_answer(client: httpx.Client) -> None:
    """Defect 003-4: it turned a 202 into a 200 with an empty answer, which a client takes for the model's own."""
    answer = asked(client, "hello", model="cold")

    assert (503, "model_loading") == (answer.status_code, answer.json()["error"]["code"])
    assert int(answer.headers["retry-after"]) >= 1
    assert "choices" not in answer.json()


def test_a_stream_comes_while_the_model_writes(client: httpx.Client) -> None:
    """It waited for the whole answer and cut it into pieces of 20 characters."""
    messages = [{"role": "user", "content": shown(SIGNS)}]
    body = {"model": "medserve-demo", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    began = perf_counter()
    came: list[tuple[float, str]] = []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        came = [(perf_counter() - began, line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    events = [json.loads(data) for _, data in came]
    pieces = [event["choices"][0]["delta"].get("content") for event in events if event["choices"]]
    words = [piece for piece in pieces if piece]
    whole = asked(client, shown(SIGNS)).json()

    assert whole["choices"][0]["message"]["content"] == "".join(words)
    assert len(words) >= events[-1]["usage"]["completion_tokens"] - 2  # the end of turn has no words
    assert max(map(len, words)) < 20
    assert came[0][0] < came[-1][0]


def test_tokens_are_counted_by_the_engine(client: httpx.Client) -> None:
    """It divided characters by four, and of a list of parts it counted the parts."""
    text = "a" * 400
    usages = [
        asked(client, content, max_tokens=1).json()["usage"]
        for content in (text, [{"type": "text", "text": text}], shown(text))
    ]

    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"] != len(text) // 4
    assert 16 == usages[2]["prompt_tokens_details"]["image_tokens"]
    assert usages[2]["prompt_tokens"] >= usages[1]["prompt_tokens"] + 16
    assert {1} == {usage["completion_tokens"] for usage in usages}


def test_a_parameter_that_is_null_counts_as_left_out(client: httpx.Client) -> None:
    """A temperature of null ended it with a TypeError."""
    plain = asked(client, "hello", max_tokens=8)
    null = asked(client, "hello", max_tokens=8, temperature=None, top_p=None, stop=None, seed=None)

    assert 200 == null.status_code
    assert plain.json()["choices"] == null.json()["choices"]
