"""`litellm`, on which many tools are built, works unchanged against a real process with the demonstration model."""

import warnings
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medserve.settings import DEMO_MODEL
from tests.serving import Service

# Its import and its pydantic models warn about themselves, which is not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

HELLO: Any = [{"role": "user", "content": "Describe a melanoma."}]


@pytest.fixture(scope="module")
def litellm() -> Iterator[ModuleType]:
    """The library with what it knows of models from its own files, and not from the internet."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        patch.setattr(litellm, "telemetry", False)
        yield litellm


@pytest.fixture
def asked(demo: Service) -> dict[str, Any]:
    """Where and whom to ask."""
    return {"model": f"openai/{DEMO_MODEL.name}", "api_base": f"{demo.url}/v1", "api_key": "unused", "max_retries": 0}


def looking(path: Path) -> Any:
    """A conversation about a picture."""
    url = "data:image/jpeg;base64," + b64encode(path.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]
    return [{"role": "user", "content": parts}]


def test_a_completion_is_read(litellm: ModuleType, asked: dict[str, Any]) -> None:
    """Words, reason and counts, and two answers where two are asked for."""
    answer = litellm.completion(**asked, messages=HELLO, max_tokens=8, n=2, temperature=1.0, seed=5)

    assert [0, 1] == [choice.index for choice in answer.choices]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_picture_is_described_in_a_stream(litellm: ModuleType, asked: dict[str, Any], dermoscopy: Path) -> None:
    """Asynchronously, and in the words that come whole."""
    whole = await litellm.acompletion(**asked, messages=looking(dermoscopy), max_tokens=16)
    stream = await litellm.acompletion(
        **asked, messages=looking(dermoscopy), max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == words
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens
    assert whole.usage.prompt_tokens_details.image_tokens > 0


def test_a_schema_is_kept(litellm: ModuleType, asked: dict[str, Any]) -> None:
    """As it sends it."""
    schema = {"type": "object", "properties": {"colours": {"type": "integer"}}, "required": ["colours"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "finding", "schema": schema, "strict": True}}
    answer = litellm.completion(**asked, messages=HELLO, max_tokens=32, response_format=wanted)

    assert answer.choices[0].message.content.startswith('{"colours": ')


def test_a_response_is_read(litellm: ModuleType, asked: dict[str, Any]) -> None:
    """The Responses API, whole and as events."""
    whole = litellm.responses(**asked, input="Describe a melanoma.", max_output_tokens=16)
    events = list(litellm.responses(**asked, input="Describe a melanoma.", max_output_tokens=16, stream=True))

    assert whole.output[0].content[0].text == "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )


def test_an_error_has_the_class_that_it_knows(litellm: ModuleType, asked: dict[str, Any]) -> None:
    """Not one that is tried again for ever."""
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/gpt-9"}, messages=HELLO)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**asked, messages=HELLO, max_tokens=10**6)
