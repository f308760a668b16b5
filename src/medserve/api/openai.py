"""What OpenAI's two dialects share: the formats of an answer, what is taken without effect, and how counts are told."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from medserve.api.bodies import JsonObject, Strict
from medserve.errors import NotSupported
from medserve.generation import TokenLogprob, Usage

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is all but impossible: JSON has no minus infinity."""
ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""The JSON Schema of `json_object`."""

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A named JSON Schema that the answer must satisfy; it is kept whether `strict` is said or not."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: Annotated[JsonObject, Field(alias="schema")]
    strict: bool | None = None


class WithoutEffect(Strict):
    """What clients send although it says nothing here: who asks, and tools when there are none."""

    user: str | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=64)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    tools: Annotated[list[JsonObject], Field(json_schema_extra={"maxItems": 0})] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    def refuse_tools(self) -> None:
        """Raise NotSupported when there are tools after all."""
        if self.tools:
            raise NotSupported("tools are not called by the models here; leave it out or send []", param="tools")


def logprob_entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens, each with its alternatives."""
    return [
        _logprob(token.token, token.logprob) | {"top_logprobs": [_logprob(*other) for other in token.top]}
        for token in tokens
    ]


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(token.encode())}


def input_details(usage: Usage) -> dict[str, Any]:
    """What the tokens of a prompt were: reused from earlier work, and pictures."""
    return {"cached_tokens": usage.cached, "image_tokens": usage.image, "image_encodes": usage.encodes}
