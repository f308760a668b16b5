"""What a request brings becomes one study through the one door; uploads lie on disk and not in memory."""

from collections import Counter
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import Field
from starlette.exceptions import HTTPException

from medserve import references
from medserve.api.bodies import Strict, checked, kind_of, read_json, request_body, schema_of
from medserve.errors import InvalidRequest, MedserveError
from medserve.imaging import encoded, intake
from medserve.imaging.intake import Reading, Wanted
from medserve.imaging.material import Material, most_files
from medserve.multipart import Malformed, Part, Parts
from medserve.references import Given
from medserve.settings import Limits, Settings
from medserve.threads import in_thread

TEXT_FIELDS = 16
"""More fields than a form can have here; beyond it the form is refused."""
PIECE = 2**20
"""Bytes of an upload that are written at once."""
_OF_FILES = (None, "image", "images", "files")
"""Names that the layers below have for the field in which pictures come."""


W = TypeVar("W", bound="Sent")
F = TypeVar("F", bound=Strict)


class Sent(Strict):
    """A study inside JSON: its files are data URIs, base64 texts, or references that are allowed."""

    images: Annotated[list[str], Field(min_length=1)]


def bodies(whole: type[Sent], fields: type[Strict]) -> dict[str, Any]:
    """Both ways to send a study, for an OpenAPI operation: JSON as `whole`, or a form with `fields` and files."""
    return request_body({"application/json": schema_of(whole), "multipart/form-data": form_schema(fields)})


def form_schema(fields: type[Strict], name: str = "images") -> dict[str, Any]:
    """The JSON Schema of a form with `fields` and files; one file alone where they are called `file`."""
    schema = schema_of(fields)
    file = {"type": "string", "format": "binary"}
    files = file if name == "file" else {"type": "array", "items": file, "minItems": 1}
    properties = {field: _without_null(kind) for field, kind in schema["properties"].items()}
    return schema | {"properties": {name: files, **properties}, "required": [name, *schema.get("required", [])]}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field as a form can have it: there or left out, and never null."""
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {name: value for name, value in schema.items() if name not in {"anyOf", "default"}} | kinds[0]


@asynccontextmanager
async def received(
    request: Request, limits: Limits, whole: type[W], fields: type[F]
) -> AsyncIterator[tuple[W | F, Sequence[str | Path]]]:
    """What was chosen, and the study's files as they came, which lie there for as long as the context lasts."""
    match kind_of(request):
        case "application/json":
            order = await read_json(request, whole)
            yield order, order.images
        case "multipart/form-data":
            async with form(request, limits) as sent:
                texts, files = sorted_out(sent, fields.model_fields)
                yield checked(fields, texts), files
        case _:
            raise HTTPException(415, "send multipart/form-data with files named images, or application/json")


async def read(given: Sequence[str | Path], settings: Settings, wanted: Wanted, param: str = "images") -> Reading:
    """The study in texts of a request (data URI, base64, reference) and uploaded files; errors name the field."""
    places = [f"{param}.{place}" for place in range(len(given))]
    items = [await _one(one, settings.limits, place) for one, place in zip(given, places, strict=True)]
    return await _together(items, settings, wanted, places[0] if len(places) == 1 else param)


async def contents(given: Sequence[str | Path], settings: Settings, param: str = "images") -> tuple[bytes, ...]:
    """The files themselves, for what is written about them when their folder is gone; references are fetched."""
    items = [await _one(one, settings.limits, param) for one in given]
    async with references.gathered(items, settings) as materials:
        return await in_thread(lambda: tuple(data for material in materials for data in _contents(material)))


def _contents(material: Material) -> list[bytes]:
    if isinstance(material, bytes):
        return [material]
    paths = sorted(path for path in material.rglob("*") if path.is_file()) if material.is_dir() else [material]
    return [path.read_bytes() for path in paths]


async def read_one(given: str | Path, settings: Settings, wanted: Wanted, param: str) -> Reading:
    """`read` for a field that is no list."""
    return await _together([await _one(given, settings.limits, param)], settings, wanted, param)


async def _one(given: str | Path, limits: Limits, param: str) -> Given:
    if isinstance(given, Path) or references.is_address(given):
        return given
    try:
        return await encoded.read(given, limits)
    except InvalidRequest as error:
        raise _placed(error, param) from None


async def _together(items: Sequence[Given], settings: Settings, wanted: Wanted, param: str) -> Reading:
    try:
        async with references.gathered(items, settings) as materials:
            return await intake.reading(materials, settings.limits, wanted)
    except (InvalidRequest, references.SourceFailed) as error:
        raise _placed(error, param) from None


def _placed(error: MedserveError, param: str) -> MedserveError:
    """The error with the field's own name, unless it is about another one."""
    if error.param not in _OF_FILES:
        return error
    return type(error)(f"{param}: {error.message}", param=param)


@dataclass(frozen=True)
class Form:
    """A form as it came: its texts and its files, each with the name of its field, in their order."""

    texts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, Path], ...]


@asynccontextmanager
async def form(request: Request, limits: Limits, most: int | None = None) -> AsyncIterator[Form]:
    """The request's form, whose files (at most `most`) lie in a folder for as long as the context lasts."""
    async with references.spool() as folder:
        try:
            parts = await _received(request, folder, most or most_files(limits))
        except Malformed as error:
            raise InvalidRequest(f"the form is refused: {error}") from None
        yield Form(
            tuple((part.name, part.text) for part in parts if part.text is not None),
            tuple((part.name, part.path) for part in parts if part.path is not None),
        )


def sorted_out(form: Form, known: Container[str], field: str = "images") -> tuple[dict[str, str], list[Path]]:
    """The texts of a form by name, and its files, all of which must be under the name `field`.

    `known` are the names of texts that may be quoted. An empty text counts as left out, as a browser's form sends it.
    """
    if any(name != field for name, _ in form.files) or any(name == field for name, _ in form.texts):
        raise InvalidRequest(f"send pictures as files under the name {field}, and nothing else", param=field)
    texts = [(name, value) for name, value in form.texts if value]
    if twice := [name for name, count in Counter(name for name, _ in texts).items() if count > 1]:
        once = twice[0] if twice[0] in known else "a field"
        raise InvalidRequest(f"{once} is given more than once; give it once", param=once)
    return dict(texts), [path for _, path in form.files]


async def _received(request: Request, folder: Path, most: int) -> list[Part]:
    kind = request.headers.get("content-type", "")
    held = bytearray()
    with Parts(kind, folder, files=most, texts=TEXT_FIELDS) as parts:
        async for piece in request.stream():
            held += piece
            if len(held) >= PIECE:
                await in_thread(parts.feed, bytes(held))
                held.clear()
        await in_thread(parts.feed, bytes(held))
        return parts.finish()
