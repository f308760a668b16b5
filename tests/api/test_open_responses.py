"""The cases of Open Responses' compliance suite, checked with the types that are generated from its specification.

The suite itself is TypeScript. Its requests are repeated here in its order, and what it checks: every event and the
response have the shape of the specification (2026-04-24), there is output, and the status is `completed`. Where it asks
for what is not offered here (functions, PDF files, turns kept by the service), the refusal is checked instead: it names
the parameter. Its two optional cases are functions too; its cases over WebSocket are not offered and not repeated.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import openresponses_types as spec
import PIL.Image
import PIL.ImageDraw
import pytest
from pydantic import BaseModel, TypeAdapter

from medserve.settings import DEMO_MODEL
from tests.serving import Service

EVENTS: dict[str, type[BaseModel]] = {
    "response.created": spec.ResponseCreatedStreamingEvent,
    "response.in_progress": spec.ResponseInProgressStreamingEvent,
    "response.output_item.added": spec.ResponseOutputItemAddedStreamingEvent,
    "response.content_part.added": spec.ResponseContentPartAddedStreamingEvent,
    "response.output_text.delta": spec.ResponseOutputTextDeltaStreamingEvent,
    "response.output_text.done": spec.ResponseOutputTextDoneStreamingEvent,
    "response.content_part.done": spec.ResponseContentPartDoneStreamingEvent,
    "response.output_item.done": spec.ResponseOutputItemDoneStreamingEvent,
    "response.completed": spec.ResponseCompletedStreamingEvent,
    "response.incomplete": spec.ResponseIncompleteStreamingEvent,
}
"""The types of all events that an answer in words has."""
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


def message(role: str, content: object) -> dict[str, Any]:
    """One item of an input."""
    return {"type": "message", "role": role, "content": content}


def heart() -> str:
    """A red shape on white, 32 x 32, as a data URI."""
    image = PIL.Image.new("RGB", (32, 32), "white")
    PIL.ImageDraw.Draw(image).polygon([(16, 28), (4, 12), (10, 5), (16, 10), (22, 5), (28, 12)], fill="red")
    out = BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + b64encode(out.getvalue()).decode()


CASES: dict[str, list[dict[str, Any]]] = {
    "basic-response": [message("user", "Say hello in exactly 3 words.")],
    "streaming-response": [message("user", "Count from 1 to 5.")],
    "system-prompt": [
        message("system", "You are a pirate. Always respond in pirate speak."),
        message("user", "Say hello."),
    ],
    "image-input": [
        message(
            "user",
            [
                {"type": "input_text", "text": "What do you see in this image? Answer in one sentence."},
                {"type": "input_image", "image_url": heart()},
            ],
        )
    ],
    "multi-turn": [
        message("user", "My name is Alice."),
        message("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
        message("user", "What is my name?"),
    ],
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tool-calling": ({"input": "What's the weather like in San Francisco?", "tools": [WEATHER]}, "tools"),
    "function-call-roundtrip": (
        {
            "input": "Use the weather tool to get the temperature in San Francisco.",
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "name": "get_weather"},
        },
        "tool_choice",
    ),
    "file-input": (
        {"input": [message("user", [{"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0x"}])]},
        "input.0.content.0",
    ),
    "previous-response-id": (
        {"input": "What code word did I ask you to remember?", "previous_response_id": "resp_1"},
        "previous_response_id",
    ),
}


@pytest.fixture
def http(demo: Service) -> Iterator[httpx.Client]:
    """A plain client."""
    with httpx.Client(base_url=f"{demo.url}/v1", trust_env=False, timeout=60) as client:
        yield client


def completed(response: dict[str, Any]) -> None:
    """What the suite asks of every response."""
    spec.ResponseResource.model_validate(response)
    assert response["output"]
    assert "completed" == response["status"]


@pytest.mark.parametrize("case", CASES)
def test_a_response_has_the_shape_of_the_specification(http: httpx.Client, case: str) -> None:
    """Every case, whole."""
    body = {"model": DEMO_MODEL.name, "input": CASES[case], "stream": False}
    spec.CreateResponseBody.model_validate(body)

    completed(http.post("/responses", json=body).raise_for_status().json())


@pytest.mark.parametrize("case", CASES)
def test_every_event_has_the_shape_of_the_specification(http: httpx.Client, case: str) -> None:
    """Every case, streamed: names of events are their types, and `[DONE]` comes last."""
    body = {"model": DEMO_MODEL.name, "input": CASES[case], "stream": True}
    answer = http.post("/responses", json=body).raise_for_status()
    *blocks, end, rest = answer.text.split("\n\n")
    told = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks if not block.startswith(":")]
    events = [json.loads(event["data"]) for event in told]

    assert ("data: [DONE]", "") == (end, rest)
    assert [event["type"] for event in events] == [event["event"] for event in told]
    assert list(range(len(events))) == [event["sequence_number"] for event in events]
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    completed(events[-1]["response"])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_offered_is_refused_by_name(http: httpx.Client, case: str) -> None:
    """And never answered as if it had been understood."""
    body, param = REFUSED[case]
    answer = http.post("/responses", json={"model": DEMO_MODEL.name, **body})

    assert 400 == answer.status_code
    assert param == answer.json()["error"]["param"]
    assert "invalid_request_error" == answer.json()["error"]["type"]


def test_a_background_response_has_the_shape_of_the_specification_all_along(http: httpx.Client) -> None:
    """From queued to completed."""
    body = {"model": DEMO_MODEL.name, "input": CASES["basic-response"], "background": True}
    response = http.post("/responses", json=body).raise_for_status().json()
    while response["status"] in ("queued", "in_progress"):
        spec.ResponseResource.model_validate(response)
        response = http.get(f"/responses/{response['id']}").raise_for_status().json()

    completed(response)


def test_a_response_with_log_probabilities_and_a_format_has_the_shape_of_the_specification(http: httpx.Client) -> None:
    """The parts that no case of the suite asks for."""
    body = {
        "model": DEMO_MODEL.name,
        "input": CASES["basic-response"],
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "text": {"format": {"type": "json_object"}},
        "metadata": {"a": "b"},
        "instructions": "Answer in JSON.",
        "max_output_tokens": 32,
        "prompt_cache_key": "a",
        "safety_identifier": "b",
    }
    response = http.post("/responses", json=body).raise_for_status().json()

    spec.ResponseResource.model_validate(response)
    parts = TypeAdapter(list[spec.LogProb]).validate_python(response["output"][0]["content"][0]["logprobs"])
    assert all(2 == len(part.top_logprobs) for part in parts)
