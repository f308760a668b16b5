"""The official `openai` client works unchanged: what it asks is understood, and what goes wrong it knows by class."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving import Service

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    """The client of the scripted service; it tries once, so that errors are seen."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_completion_is_read(client: openai.OpenAI) -> None:
    """Words, reason to stop and counts."""
    answer = client.chat.completions.create(model="script", messages=HELLO, max_tokens=5, user="x")

    assert ("Round.", "stop") == (answer.choices[0].message.content, answer.choices[0].finish_reason)
    assert answer.usage is not None
    assert 2 == answer.usage.total_tokens


def test_what_clients_send_without_meaning_anything_is_taken(client: openai.OpenAI) -> None:
    """No tools under three names, who asks, one limit said twice: nothing of it changes the answer."""
    answer = client.chat.completions.create(
        model="script",
        messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_tokens=5,
        max_completion_tokens=5,
        n=1,
        tools=[],
        tool_choice="none",
        parallel_tool_calls=False,
        user="x",
        safety_identifier="x",
        prompt_cache_key="x",
        metadata={"a": "b"},
        service_tier="auto",
        store=False,
        stream=False,
    )

    assert "Round." == answer.choices[0].message.content


def test_several_answers_are_told_apart_in_a_stream(client: openai.OpenAI) -> None:
    """By their index; each opens with the role and ends with a reason."""
    chunks = list(client.chat.completions.create(model="script", messages=HELLO, n=3, stream=True))

    for index in range(3):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert ("assistant", "stop") == (own[0].delta.role, own[-1].finish_reason)
        assert "Round." == "".join(choice.delta.content or "" for choice in own)


def test_a_stream_is_read(client: openai.OpenAI) -> None:
    """Its pieces make the same words, and the usage comes last."""
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="script", messages=HELLO, stream=True, stream_options=options))

    assert "assistant" == chunks[0].choices[0].delta.role
    assert "Round." == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None


def test_a_picture_is_seen(client: openai.OpenAI, dermoscopy: Path) -> None:
    """Its tokens stand in the usage."""
    url = "data:image/jpeg;base64," + b64encode(dermoscopy.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    messages: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model="script", messages=messages)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert 256 == getattr(answer.usage.prompt_tokens_details, "image_tokens", None)


def test_models_are_listed(client: openai.OpenAI) -> None:
    """And one can be asked for by name."""
    assert ["script"] == [model.id for model in client.models.list()]
    assert "script" == client.models.retrieve("script").id


@pytest.mark.parametrize("stream", [True, False])
def test_errors_have_the_classes_that_the_client_knows(client: openai.OpenAI, stream: bool) -> None:
    """An unknown model is NotFoundError, a bad parameter BadRequestError that names it."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO, stream=stream)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="script", messages=HELLO, stream=stream, n=9)

    assert ("model_not_found", "model") == (unknown.value.code, unknown.value.param)
    assert "n" == bad.value.param
