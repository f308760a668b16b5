"""What a model is and takes, told from its files, its engine and the settings: what none of them says is null."""

from typing import Any

from pydantic import BaseModel, Field

from medserve.api import queries
from medserve.engines import Capabilities
from medserve.generation import Sampling
from medserve.models import ModelHandle
from medserve.settings import Limits

TOLD_BY = {
    "model_id": "weights",
    "model_class": "architecture",
    "processor_class": "processor",
    "capabilities.trained_context_tokens": "trained_context",
}
"""Which fact of the engine fills a place of the description."""


class PictureInput(BaseModel):
    """What a picture becomes before the model sees it: a square of `width` x `height` pixels, 8-bit RGB."""

    width: int
    height: int
    mode: str = "RGB"
    resample: str
    padding: str = "black, to a centred square, before it is resized"
    tokens: int | None = Field(description="of context that one picture takes")
    most_pictures: int = Field(description="in one request")


class ModelAbilities(BaseModel):
    """What the loaded model and its engine can do; `image` is null for a model that sees nothing."""

    image: PictureInput | None
    context_tokens: int = Field(description="of one conversation, the answer included")
    trained_context_tokens: int | None = Field(description="what the weights were made for")
    new_tokens: int = Field(description="the longest answer")
    schema_: bool = Field(serialization_alias="schema", description="answers can be bound to a JSON Schema")
    choices: bool = Field(description="answers can be bound to one of several texts")
    logprobs: bool = Field(description="log-probabilities of an answer's tokens")
    prefix: bool = Field(description="answers can be made to begin with a text")
    score: bool = Field(description="the probability of each of several labels as the whole answer")
    slots: int = Field(description="conversations answered at once")
    waiting: int = Field(description="requests that may wait for a slot")


class ModelDescription(BaseModel):
    """What a model is and takes, as its files and its engine tell it. `reasons` says why something is null.

    `model_id` is the name that the weights have themselves, `model` the one they are served by.
    """

    model_id: str | None
    model: str
    model_class: str | None
    processor_class: str | None
    capabilities: ModelAbilities
    inputs: dict[str, Any] = Field(description="the fields of a request one by one")
    defaults: dict[str, Any] = Field(description="what a request that leaves everything out is answered with")
    request: dict[str, Any] = Field(description="the JSON Schema of a request")
    facts: dict[str, str] = Field(description="identity of the weights, versions and settings")
    reasons: dict[str, str]


def of(handle: ModelHandle, limits: Limits) -> ModelDescription:
    """The description of a model that is ready; raises ModelLoading for another."""
    able, facts = handle.capabilities, dict(handle.capabilities.facts)
    unknown = _unknown(handle)
    described = queries.schema(able, sees="capabilities.image" not in unknown)
    return ModelDescription(
        model_id=facts.get("weights"),
        model=handle.name,
        model_class=facts.get("architecture"),
        processor_class=facts.get("processor"),
        capabilities=ModelAbilities(
            image=None if "capabilities.image" in unknown else _sight(able, limits),
            context_tokens=able.context,
            trained_context_tokens=int(facts["trained_context"]) if "trained_context" in facts else None,
            new_tokens=described["properties"]["max_new_tokens"]["maximum"],
            schema_=able.schema,
            choices=able.choices,
            logprobs=able.logprobs,
            prefix=able.prefix,
            score=able.score,
            slots=handle.spec.slots,
            waiting=handle.spec.waiting,
        ),
        inputs=queries.inputs(described),
        defaults=queries.effective(queries.DEFAULT_NEW_TOKENS, Sampling()),
        request=described,
        facts=facts,
        reasons=unknown,
    )


def _sight(able: Capabilities, limits: Limits) -> PictureInput | None:
    if able.vision is None:
        return None
    side = able.vision.size
    return PictureInput(
        width=side,
        height=side,
        resample=able.vision.resample,
        tokens=able.image_tokens or None,
        most_pictures=limits.images,
    )


def _unknown(handle: ModelHandle) -> dict[str, str]:
    """Why something is not known, by its place in the description."""
    able, status = handle.capabilities, handle.status
    facts = dict(able.facts)
    silent = f"the engine {status.engine} does not tell it"
    unknown = {place: silent for place, fact in TOLD_BY.items() if fact not in facts}
    if able.vision is None:
        blind = "the model was loaded without a vision part"
        return unknown | {"processor_class": blind, "capabilities.image": blind}
    if status.blind is not None:
        return unknown | {"capabilities.image": status.blind}
    return unknown if able.image_tokens else unknown | {"capabilities.image.tokens": silent}
