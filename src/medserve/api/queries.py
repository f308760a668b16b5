"""A question in the per-model dialect, short or as a conversation, becomes one request to a model or says why not."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from medserve.api import reasoning
from medserve.api.bodies import Strict, Words
from medserve.api.conversation import (
    ImageUrlPart,
    Picture,
    Probability,
    RepetitionPenalty,
    Seed,
    Temperature,
    TextPart,
    Tokens,
    Turn,
    written_as,
)
from medserve.api.reasoning import Length, Thinking, in_tokens, length
from medserve.engines import Capabilities
from medserve.errors import InvalidRequest
from medserve.generation import MAX_OUTPUT_TOKENS, Sampling
from medserve.settings import ModelSpec

DEFAULT_NEW_TOKENS = 200
"""The dialect's own; its callers count on short answers."""
DRAWN_TEMPERATURE = 1.0
"""When sampling is asked for and no temperature is: the model's own distribution."""
LIKELIEST = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
"""What each setting of the draw is when nothing is drawn; any other value would have no effect."""
SHORT = ("text", "prompt", "system", "image")
"""The fields of the short form."""
ASKING = ("messages", "text", "prompt", "image")
"""The fields of which at least one is given."""


class ImagePart(Strict):
    """A picture as Hugging Face's processors take it: exactly one of `image`, `url` and `base64`.

    Each is a data URI, bare base64, or an address that the settings allow. A path is never read.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 2, "maxProperties": 2})

    type: Literal["image"]
    image: Annotated[str, Field(min_length=1)] = ""
    url: Annotated[str, Field(min_length=1)] = ""
    base64: Annotated[str, Field(min_length=1)] = ""

    @model_validator(mode="after")
    def _one_of_three(self) -> "ImagePart":
        if len(self.model_fields_set) != 2:
            raise ValueError("needs exactly one of image, url and base64")
        return self


Part = Annotated[TextPart | ImagePart | ImageUrlPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[Words, Tag("words")] | Annotated[list[Part], Field(min_length=1), Tag("parts")],
    Discriminator(written_as),
]


class Said(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


def _given(*names: str) -> list[dict[str, Any]]:
    """For each name, that the field is there and is not null."""
    return [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]


FORMS: dict[str, Any] = {
    "oneOf": [
        {"title": "conversation", "allOf": _given("messages"), "not": {"anyOf": _given(*SHORT)}},
        {
            "title": "short",
            "anyOf": _given("text", "prompt", "image"),
            "not": {"anyOf": [*_given("messages"), {"allOf": _given("text", "prompt")}]},
        },
    ],
    "if": {"required": ["do_sample"], "properties": {"do_sample": {"const": True}}},
    "then": {"properties": {"temperature": {"not": {"const": 0}}}},
    "else": {"properties": {name: {"enum": [value, None]} for name, value in LIKELIEST.items()}},
}
"""What no single field says: the two forms, and that a setting which would have no effect is refused."""


class Query(Strict):
    """Either `messages`, or `text` (alias `prompt`) with `system` and `image`; the picture goes before the words."""

    model_config = ConfigDict(json_schema_extra=FORMS)

    messages: Annotated[list[Said], Field(min_length=1)] | None = None
    text: Words | None = None
    prompt: Annotated[Words | None, Field(description="the same as text")] = None
    system: Annotated[Words | None, Field(description="none is added when it is left out or empty")] = None
    image: Annotated[
        str | None, Field(min_length=1, description="a data URI, bare base64, or an address that the settings allow")
    ] = None
    max_new_tokens: Tokens = DEFAULT_NEW_TOKENS
    do_sample: Annotated[bool, Field(description="false takes the likeliest token each time")] = False
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000, description="0 keeps every token")] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    thinking: Thinking | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What is said, in the order in which the model reads it; of the short form the picture first."""
        if self.messages is not None:
            return tuple(_turn(said, f"messages.{place}") for place, said in enumerate(self.messages))
        system = [Turn("system", (self.system,))] if self.system and self.system.strip() else []
        shown = () if self.image is None else (Picture(self.image, "image"),)
        return (*system, Turn("user", (*shown, *filter(None, [self.words]))))

    @property
    def names(self) -> dict[str, str]:
        """What this query calls the fields that the layers below name in their errors."""
        short = {"messages": self.asking, "images": "image"} if self.messages is None else {"images": "messages"}
        return short | reasoning.names(in_tokens(self.thinking), "max_new_tokens", named=self._named is not None)

    @property
    def asking(self) -> str:
        """The field that holds the question."""
        if self.messages is not None:
            return "messages"
        return "text" if self.prompt is None else "prompt"

    def check(self) -> None:
        """Refuse what contradicts itself or says nothing, with the field that is to be changed."""
        self._check_form()
        self.sampling()
        if self.thinking and self._named and self.thinking >= self._named:
            raise InvalidRequest(
                f"thinking must be less than max_new_tokens, which it is a part of and here is {self._named}",
                param="thinking",
            )

    def length(self, spec: ModelSpec) -> Length:
        """The longest answer; what is thought comes on top of the usual length, and counts into another."""
        return length(in_tokens(self.thinking), self._named, spec, DEFAULT_NEW_TOKENS)

    @property
    def _named(self) -> int | None:
        return self.max_new_tokens if "max_new_tokens" in self.model_fields_set else None

    def _check_form(self) -> None:
        if self.messages is not None:
            for name in SHORT:
                if getattr(self, name) is not None:
                    raise InvalidRequest(f"{name} goes with no messages; put it into them, or leave it out", param=name)
            return
        if self.text is not None and self.prompt is not None:
            raise InvalidRequest("text and prompt are the same; give one of them", param="prompt")
        if self.image is None and self.words is None:
            raise InvalidRequest("nothing is asked; give text, or messages", param="text")
        if self.image is None and not (self.words or "").strip():
            raise InvalidRequest(f"{self.asking} is empty; write a question", param=self.asking)

    @property
    def words(self) -> str | None:
        """What the short form asks."""
        return self.prompt if self.text is None else self.text

    def sampling(self) -> Sampling:
        """How tokens are drawn; raises InvalidRequest for a setting that would have no effect."""
        drawn = {name: value for name in LIKELIEST if (value := getattr(self, name)) is not None}
        if self.do_sample:
            if drawn.get("temperature") == 0:
                raise InvalidRequest(
                    "temperature 0 draws nothing, and do_sample is true; raise it, or set do_sample to false",
                    param="temperature",
                )
            drawn.setdefault("temperature", DRAWN_TEMPERATURE)
        for name, value in drawn.items():
            if not self.do_sample and value != LIKELIEST[name]:
                raise InvalidRequest(
                    f"{name} has no effect while do_sample is false; set do_sample to true, or leave {name} out",
                    param=name,
                )
        others = {name: value for name in ("repetition_penalty", "seed") if (value := getattr(self, name)) is not None}
        return Sampling(**drawn, **others)


def _turn(said: Said, param: str) -> Turn:
    if isinstance(said.content, str):
        return Turn(said.role, (said.content,))
    parts = [_part(part, f"{param}.content.{place}") for place, part in enumerate(said.content)]
    return Turn(said.role, tuple(parts))


def _part(part: Part, param: str) -> str | Picture:
    match part:
        case TextPart():
            return part.text
        case ImagePart():
            (name,) = part.model_fields_set - {"type"}
            return Picture(getattr(part, name), f"{param}.{name}")
        case ImageUrlPart():
            return Picture(part.image_url.url, f"{param}.image_url.url")


def effective(max_tokens: int, sampling: Sampling, thinking: int | None = None) -> dict[str, Any]:
    """The parameters as the model is really asked with them; sent back, they ask for the same."""
    used: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
    }
    chosen = {"seed": sampling.seed, "thinking": thinking}
    return used | {name: value for name, value in chosen.items() if value is not None}


class UnseenSaid(Said):
    """One turn of a conversation, in words."""

    content: Annotated[  # type: ignore[assignment]  # narrower, and never written to
        Annotated[Words, Tag("words")] | Annotated[list[TextPart], Field(min_length=1), Tag("parts")],
        Discriminator(written_as),
    ]


class UnseenQuery(Query):
    """Either `messages`, or `text` (alias `prompt`) with `system`, for a model that sees nothing."""

    messages: Annotated[list[UnseenSaid], Field(min_length=1)] | None = None  # type: ignore[assignment]
    image: None = None


def schema(able: Capabilities, *, sees: bool) -> dict[str, Any]:
    """The JSON Schema of what this model can be asked; without sight no field for a picture is in it.

    Nor is the one for thinking where the engine cannot be told how long to think.
    """
    described = (Query if sees else UnseenQuery).model_json_schema()
    described["properties"]["max_new_tokens"]["maximum"] = min(MAX_OUTPUT_TOKENS, able.context)
    if not able.thinking:
        del described["properties"]["thinking"]
    return described


def inputs(described: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of such a schema one by one: those of which some must be given, and those that may be left out."""
    fields = {name: _flat(field) for name, field in described["properties"].items() if field.get("type") != "null"}
    asking = {name: field for name, field in fields.items() if name in ASKING}
    optional = {name: field for name, field in fields.items() if name not in ASKING}
    rule = "either messages alone, or text (or prompt, the same) and what else is wanted"
    return {"required": asking, "optional": optional, "rule": rule + (", or image alone" if "image" in asking else "")}


def _flat(field: Mapping[str, Any]) -> dict[str, Any]:
    """A field without the null beside its type and without what points elsewhere."""
    kind: Mapping[str, Any] = next((kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"), {})
    told = {key: value for key, value in {**field, **kind}.items() if value is not None}
    return {key: value for key, value in told.items() if key not in ("anyOf", "items", "title")}
