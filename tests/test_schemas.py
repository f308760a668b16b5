"""Schemas of callers: what is taken, what could keep a service busy for ever, and where they are kept."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from medserve.errors import InvalidRequest, UnknownSchema
from medserve.schemas import MOST_PARTS, Schemas, checked

STONES: dict[str, Any] = {
    "type": "object",
    "properties": {"stones": {"type": "array", "items": {"$ref": "#/$defs/stone"}}, "note": {"type": "string"}},
    "required": ["stones"],
    "$defs": {
        "stone": {
            "type": "object",
            "properties": {"side": {"enum": ["left", "right"]}, "pattern": {"type": "string"}},
            "required": ["side"],
        }
    },
}


def test_a_schema_is_taken_as_it_is() -> None:
    """References inside of it, and a member that is called like a keyword, do no harm."""
    assert STONES == checked(STONES)


def doubling(levels: int) -> dict[str, Any]:
    """A small schema that has 2**levels parts when its references are written out."""
    parts = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**parts, f"d{levels}": {"type": "string"}}}


def nested(levels: int) -> dict[str, Any]:
    """A schema of so many objects within one another."""
    schema: dict[str, Any] = {"type": "string"}
    for _level in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nothing"}, "not valid"),
        ({"$ref": "#"}, "refers to itself"),
        ({"properties": {"child": {"$ref": "#"}}}, "refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "refers to itself"),
        ({"$ref": "https://example.org/schema.json"}, "outside itself"),
        ({"$ref": "other.json"}, "outside itself"),
        ({"$ref": "#/$defs/b"}, "leads nowhere"),
        ({"items": {"pattern": "^(a+)+$"}}, "pattern"),
        ({"patternProperties": {"^(a+)+$": {}}}, "patternProperties"),
        ({"$id": "https://example.org/"}, r"\$id"),
        ({"description": "x" * 20_001}, "at most 20000"),
        (doubling(12), f"more than {MOST_PARTS} parts"),
        (nested(40), "nested more than 32"),
        (nested(400), "nested more than 32"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_a_schema_that_could_do_harm_is_refused(schema: dict[str, Any], words: str) -> None:
    """Before anything is held against it, and with the reason."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        checked(schema)

    assert "schema" == caught.value.param


def test_what_is_deep_but_finite_is_taken() -> None:
    """A few levels are what reports have."""
    checked(nested(20))
    checked(doubling(5))


def test_a_schema_is_kept_under_its_name(tmp_path: Path) -> None:
    """Put, got, replaced, listed and removed; a file of its own that only this user may look for."""
    kept = Schemas(tmp_path)

    assert [] == kept.names()
    assert kept.put("stones", STONES)
    assert not kept.put("stones", STONES)
    assert kept.put("a.b-2", {"type": "string"})
    assert (["a.b-2", "stones"], STONES) == (kept.names(), kept.get("stones"))
    assert 0o700 == stat.S_IMODE((tmp_path / "schemas").stat().st_mode)
    kept.remove("stones")
    assert ["a.b-2"] == kept.names()


@pytest.mark.parametrize("name", ["nobody", "stones2"])
def test_a_name_that_there_is_not_is_unknown(tmp_path: Path, name: str) -> None:
    """Both when it is asked for and when it is to be removed."""
    with pytest.raises(UnknownSchema):
        Schemas(tmp_path).get(name)
    with pytest.raises(UnknownSchema):
        Schemas(tmp_path).remove(name)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/passwd", ".hidden", "A", "x" * 65, "a\n", "ä"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    """Nothing outside of the folder is read, written or removed."""
    kept = Schemas(tmp_path / "home")
    (tmp_path / "x.json").write_text("{}")
    for call in (lambda: kept.get(name), lambda: kept.put(name, {}), lambda: kept.remove(name)):
        with pytest.raises(InvalidRequest, match="a schema's name"):
            call()

    assert (tmp_path / "x.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"$ref": "#"})])
def test_a_file_that_somebody_changed_is_not_believed(tmp_path: Path, text: str) -> None:
    """It is checked again when it is read."""
    kept = Schemas(tmp_path)
    kept.put("stones", STONES)
    (tmp_path / "schemas" / "stones.json").write_text(text)

    with pytest.raises(InvalidRequest):
        kept.get("stones")
