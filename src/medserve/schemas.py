"""JSON Schemas that answers have to fit: checked before they are used, and kept under names so that all use the same.

They come from callers and are held against what a model wrote, so that a schema may neither lead elsewhere nor cost
more than its size: references stay inside of it, nothing is inside of itself, and there are no patterns, which can
take longer than anybody waits.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medserve.errors import InvalidRequest, UnknownSchema
from medserve.readers import json_of

MOST_CHARACTERS = 20_000
"""Of a schema as JSON: it stands in the prompt."""
MOST_PARTS = 2_000
"""Schemas within a schema, each reference written out in full."""
MOST_DEPTH = 32
"""Schemas within one another."""
MOST_KEPT = 1_000
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAMED = ("properties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_REFUSED = ("pattern", "patternProperties", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$id", "$anchor")

Schema = dict[str, Any]


def checked(schema: Schema) -> Schema:
    """The schema itself, once it is known to be one and to be harmless; raises InvalidRequest with the reason."""
    try:
        characters = len(json.dumps(schema, ensure_ascii=False))
        if characters > MOST_CHARACTERS:
            raise _refused(f"has {characters} characters and at most {MOST_CHARACTERS} are taken; ask for less at once")
        json_of(schema)
        parts, depth = _Walk(schema).measured(schema)
    except RecursionError:
        depth, parts = MOST_DEPTH + 1, 0
    if depth > MOST_DEPTH:
        raise _refused(f"is nested more than {MOST_DEPTH} deep; write it flatter")
    if parts > MOST_PARTS:
        raise _refused(f"has more than {MOST_PARTS} parts with its references written out; use a simpler one")
    return schema


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"the schema {why}", param="schema")


class _Walk:
    """A way through a schema that follows its references, and counts what it comes by."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def measured(self, schema: Any) -> tuple[int, int]:
        """How many schemas this one has in it and how deep, itself included, with every reference written out."""
        if not isinstance(schema, dict):  # true and false
            return 1, 1
        key = id(schema)
        if key in self._open:
            raise _refused("refers to itself; write out as many levels as are needed")
        if key not in self._known:
            self._open.add(key)
            inside = [self.measured(part) for part in self._inside(schema)]
            self._known[key] = 1 + sum(parts for parts, _ in inside), 1 + max((depth for _, depth in inside), default=0)
            self._open.remove(key)
        return self._known[key]

    def _inside(self, schema: Schema) -> Iterator[Any]:
        for keyword in _REFUSED:
            if keyword in schema:
                raise _refused(f"uses {keyword}, which is not taken here; use enum, format or lengths instead")
        if "$ref" in schema:
            yield self._meant(schema["$ref"])
        for keyword in _NAMED:
            yield from schema.get(keyword, {}).values()
        for keyword in _LISTED:
            yield from schema.get(keyword, ())
        yield from (schema[keyword] for keyword in _SINGLE if keyword in schema)

    def _meant(self, reference: str) -> Any:
        """What a reference leads to, which must be in the schema itself (a JSON pointer, RFC 6901)."""
        found: Any = self._root
        if reference != "#" and not reference.startswith("#/"):
            raise _refused("refers to something outside itself; put the definition under $defs")
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise _refused("has a reference that leads nowhere; put the definition under $defs")
            found = found[name]
        return found


class Schemas:
    """Schemas by name, one file each in a folder that only this user may read. Calls block, and are quick."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "schemas"

    def names(self) -> list[str]:
        """All names, in their order."""
        try:
            return sorted(file.stem for file in self._folder.iterdir() if file.suffix == ".json")
        except FileNotFoundError:
            return []

    def get(self, name: str) -> Schema:
        """The schema of that name; raises UnknownSchema."""
        try:
            text = self._file(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UnknownSchema("no schema has that name; `medserve schemas ls` shows all", param="schema") from None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise InvalidRequest("the file of that schema is damaged; add it again", param="schema")
        return checked(found)

    def put(self, name: str, schema: Schema) -> bool:
        """Keep a schema, in place of one of the same name; whether the name is new. Raises InvalidRequest."""
        file, text = self._file(name), json.dumps(checked(schema), indent=2, ensure_ascii=False)
        known = self.names()
        if name not in known and len(known) >= MOST_KEPT:
            raise InvalidRequest(f"{MOST_KEPT} schemas are kept and no more are; remove one", param="name")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        half = file.with_suffix(f".{os.getpid()}")
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(file)  # whole or not at all, for whoever reads it meanwhile
        return name not in known

    def remove(self, name: str) -> None:
        """Forget a schema; raises UnknownSchema."""
        try:
            self._file(name).unlink()
        except FileNotFoundError:
            raise UnknownSchema("no schema has that name; `medserve schemas ls` shows all", param="schema") from None

    def _file(self, name: str) -> Path:
        """Where a name is kept. Names are no paths: they have no slash, and begin with a letter or digit."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "a schema's name has 1 to 64 small letters, digits and . _ -, and begins with a letter or digit",
                param="name",
            )
        return self._folder / f"{name}.json"
