"""A request's body is read once, checked strictly, and refused without being quoted."""

import re
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from itertools import islice
from math import isfinite
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from medserve.api.errors import NAMELESS, invalid
from medserve.errors import InvalidRequest
from medserve.threads import in_thread

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

SCHEMAS = "#/components/schemas/{model}"
REFUSED = frozenset(
    {
        "audio",
        "background",
        "conversation",
        "function_call",
        "functions",
        "include",
        "instructions",
        "logit_bias",
        "max_tool_calls",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "reasoning",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "text",
        "tool_choice",
        "tools",
        "truncation",
        "verbosity",
        "web_search_options",
    }
)
"""Parameters of OpenAI's that some route does not honour; a refusal may name them."""
LONGEST_NAME = 40
LIKENESS = 0.75
"""How much of a mistyped name must be right for the refusal to name it, between 0 and 1."""


MOST_VALUES = 20_000
"""What the lists and objects of a JSON body may hold together."""
MOST_SCANNED = 8 * 2**20
LARGE = 2**20
_SIGNS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[,\[{]', re.DOTALL)
"""A string, or a sign that a value may follow."""


class Strict(BaseModel):
    """What is not known is refused: a parameter that would be ignored is a wrong answer in the making."""

    model_config = ConfigDict(extra="forbid")


def printable(text: str) -> str:
    """The text; raises ValueError when it holds what no prompt may hold."""
    if "\0" in text:
        raise ValueError("holds a NUL character; remove it")
    return text


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON, though parsers let them pass."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        _finite(item)
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("holds NaN or Infinity, which are no JSON")
    return value


Words = Annotated[str, AfterValidator(printable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]
OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)


def kind_of(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[M]) -> M:
    """The body as a `model`; raises InvalidRequest that names the field. Numbers in quotes are no numbers."""
    if kind_of(request) != "application/json":
        raise HTTPException(415, "send a JSON body with the header Content-Type: application/json")
    data = await request.body()
    # Looking and parsing hold Python's lock for a part of their time only; what is small is not worth the way.
    return await in_thread(_uncrowded, data, model) if len(data) > LARGE else _uncrowded(data, model)


def _uncrowded(data: bytes, model: type[M]) -> M:
    if _crowded(data):
        told = f"the body holds more than {MOST_VALUES} values in lists and objects; send pictures as files of a form"
        raise InvalidRequest(told)
    return parsed(data, model)


def parsed(data: bytes, model: type[M]) -> M:
    """JSON as a `model`; raises InvalidRequest that names the field. Numbers in quotes are no numbers."""
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid(_findings(error), _document(data)) from None


def _crowded(data: bytes) -> bool:
    """Whether a JSON text has more than `MOST_VALUES` values; of a large one, whether it could have.

    Each of them may be a finding: a list of four million numbers, 8 MB, took a minute and 5 GB to be refused. Most
    bodies are told by counting alone; only where the signs are many, those inside of strings are left out.
    """
    signs = 0
    for start in range(0, len(data), LARGE):
        signs += sum(data.count(sign, start, start + LARGE) for sign in b",[{")
        if signs > MOST_VALUES:
            break
    else:
        return False
    if len(data) > MOST_SCANNED:
        return True
    outside = (1 for found in _SIGNS.finditer(data) if data[found.start()] != ord('"'))
    return sum(islice(outside, MOST_VALUES + 1)) > MOST_VALUES


def checked(model: type[M], fields: Mapping[str, Any], *, strict: bool = False) -> M:
    """The texts of a form, or (`strict`) a JSON object, as a `model`; raises InvalidRequest that names the field."""
    try:
        return model.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise invalid(_findings(error), fields) from None


def json_text(kind: TypeAdapter[T], text: str, field: str, what: str) -> T:
    """The JSON in a text field of a form; raises InvalidRequest that says `what` the field must be."""
    try:
        return kind.validate_json(text)
    except ValidationError:
        raise InvalidRequest(f"{field} must be {what}", param=field) from None


def request_body(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The part of an OpenAPI operation that says which bodies it takes, by media type."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": dict(s)} for kind, s in content.items()}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON Schema whose parts lie among the document's components; `$defs` travels along until `hoisted`."""
    return model.model_json_schema(ref_template=SCHEMAS)


def hoisted(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with every `$defs` of a body moved to the components, where its references point.

    FastAPI's 422, which is never sent, is left out.
    """
    document = deepcopy(document)  # bodies are described once, and every application of this process shows them
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for body in operation.get("requestBody", {}).get("content", {}).values():
                for branch in (body["schema"], *body["schema"].get("anyOf", ())):
                    schemas.update(branch.pop("$defs", {}))
    for never in ("HTTPValidationError", "ValidationError"):
        schemas.pop(never, None)
    return document


def _findings(error: ValidationError) -> list[dict[str, Any]]:
    """The first of pydantic's findings, the one that is told; there may be thousands."""
    return [_nameless(dict(found)) for found in error.errors(include_url=False, include_input=False)[:1]]


def _nameless(found: dict[str, Any]) -> dict[str, Any]:
    """A finding without the names of fields that are the caller's own: like any other text, they may name a person.

    A name that is spelt nearly as one of ours stays: whoever mistyped it must find it.
    """
    *before, last = found["loc"] or ("",)
    if found["type"] == "extra_forbidden" and not _ours(last):
        return found | {"type": "unknown_field", "loc": tuple(map(_shown, before))}
    return found | {"loc": tuple(map(_shown, found["loc"]))}


def _shown(part: str | int) -> str | int:
    return part if _ours(part) else NAMELESS


def _ours(part: str | int) -> bool:
    """Whether it is a place in a list, a name that we know, or one that is nearly so."""
    if isinstance(part, int):
        return True
    known = _names()
    return part in known or (len(part) <= LONGEST_NAME and bool(get_close_matches(part, known, 1, LIKENESS)))


@cache
def _names() -> frozenset[str]:
    """The names of all fields that this package's records have, and those of OpenAI's that are refused."""
    records: list[type[BaseModel]] = [BaseModel]
    names = set(REFUSED)
    while records:
        record = records.pop()
        records += record.__subclasses__()
        if record.__module__.partition(".")[0] == "medserve":
            names |= {field.alias or name for name, field in record.model_fields.items()}
    return frozenset(names)


def _document(data: bytes) -> object:
    try:
        return from_json(data)
    except ValueError:
        return None
