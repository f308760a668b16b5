"""A request's body is read once, checked strictly, and refused without being quoted."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from medserve.api.errors import invalid

M = TypeVar("M", bound=BaseModel)

SCHEMAS = "#/components/schemas/{model}"


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


def kind_of(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[M]) -> M:
    """The body as a `model`; raises InvalidRequest that names the field. Numbers in quotes are no numbers."""
    if kind_of(request) != "application/json":
        raise HTTPException(415, "send a JSON body with the header Content-Type: application/json")
    data = await request.body()
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid(_findings(error), _document(data)) from None


def checked(model: type[M], fields: Mapping[str, str]) -> M:
    """The texts of a form as a `model`; raises InvalidRequest that names the field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(_findings(error), fields) from None


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
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for body in operation.get("requestBody", {}).get("content", {}).values():
                schemas.update(body["schema"].pop("$defs", {}))
    for never in ("HTTPValidationError", "ValidationError"):
        schemas.pop(never, None)
    return document


def _findings(error: ValidationError) -> Any:
    return error.errors(include_url=False, include_input=False)


def _document(data: bytes) -> object:
    try:
        return from_json(data)
    except ValueError:
        return None
