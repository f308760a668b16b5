"""JSON is found where a model wrote it, a broken one is told apart into whole and missing, and nothing is invented."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.recovery import Recovered, recover

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
OBJECTS = st.dictionaries(st.text(), VALUES)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            'Here is the result: {"stones":[{"size_mm":4}],"confidence":0.35,"note":"x"}',
            {"stones": [{"size_mm": 4}], "confidence": 0.35, "note": "x"},
        ),
        ('{"stones":[],"confidence":0.9} This is not a diagnosis.', {"stones": [], "confidence": 0.9}),
        ('```json\n{"stones":[],"confidence":0.2}', {"stones": [], "confidence": 0.2}),
        ('```\n{"stones":[{"hu":850}]}\n```', {"stones": [{"hu": 850}]}),
        ('Sure.\n```json\n{"stones":[]}\n```\nAsk a doctor.', {"stones": []}),
        ('<unused94>thought\n{"stones":[1],"confidence":1}<unused95>{"stones":[]}', {"stones": []}),
        ('thought\n{"stones":[1]}<unused95>{"stones":[]}', {"stones": []}),
        ('[{"size_mm":4}]', [{"size_mm": 4}]),
        ("Found: [] in both kidneys.", []),
        ('As in [1] and [2]: {"stones":[]}', {"stones": []}),
        ('{"stones":[]}\nAgain: {"stones": []}', {"stones": []}),
    ],
)
def test_defect_004_1_no_field_is_lost_and_no_confidence_invented(reply: str, expected: Any) -> None:
    """System 004 gave a confidence of 0.8 to every answer with a word before or after the JSON."""
    assert Recovered(expected) == recover(reply)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("There are no stones.", "no JSON"),
        ("", "empty"),
        ("42", "no JSON"),
        ('<unused94>thought\n{"stones":[]}', "thinking"),
        ('{"a":1} or {"a":2}', "several"),
        ("{'a': 1}", "not well formed"),
        ("[" * 50_000, "cut short"),
    ],
)
def test_what_is_no_json_is_no_value_and_says_why(reply: str, error: str) -> None:
    """Thinking least of all, although JSON may stand in it."""
    found = recover(reply)

    assert (None, None) == (found.value, found.partial)
    assert error in found.error


@pytest.mark.parametrize(
    ("reply", "partial", "missing"),
    [
        ('{"stones":[{"mm":4,"hu":850},{"mm":6,"h', {"stones": [{"mm": 4, "hu": 850}, {"mm": 6}]}, "/stones/1"),
        ('{"stones":[{"mm":4.', None, "/stones/0/mm"),
        ('{"stones":[{"mm":4', None, "/stones/0/mm"),
        ('{"mm":4 ', {"mm": 4}, ""),
        ('{"side":"lef', None, "/side"),
        ('{"side":"left","confidence":0.', {"side": "left"}, "/confidence"),
        ('{"side":"left",', {"side": "left"}, ""),
        ('{"a/b":{"c~d":tr', None, "/a~1b/c~0d"),
        ('Whole: {"a":1}. {"b":2,"c":', {"b": 2}, "/c"),
        ('{"a":1,"b":NaN,"c":2}', {"a": 1}, "/b"),
        ('{"a":1,"a":2}', None, "/a"),
        ('[{"a":1},{"b":2}', [{"a": 1}, {"b": 2}], ""),
    ],
)
def test_of_a_broken_value_whole_and_missing_are_told_apart(reply: str, partial: Any, missing: str) -> None:
    """And neither is the value: a 4 that may have been going to be 4.5 is no measurement."""
    found = recover(reply)

    assert (None, partial, (missing,)) == (found.value, found.partial, found.missing)
    assert found.error


def _within(part: Any, whole: Any) -> bool:
    """Whether everything in `part` stands in `whole` at the same place."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(_within(a, b) for a, b in zip(part, whole, strict=False))
    return type(part) is type(whole) and part == whole


@given(OBJECTS, st.integers(min_value=0), st.sampled_from(["", "```json\n", "The result is: "]))
def test_whatever_is_cut_off_nothing_is_added(value: dict[str, Any], cut: int, before: str) -> None:
    """However a text is cut, each recovered number and word is one that the whole text had at that place."""
    text = json.dumps(value)
    found = recover(before + text[: cut % len(text)])

    assert found.value is None
    assert found.partial is None or _within(found.partial, value)


@given(OBJECTS, st.sampled_from(["", "Here it is: ", "```json\n", "```\n"]), st.sampled_from(["", "\n```", " Done."]))
def test_an_object_is_found_as_it_was_written(value: dict[str, Any], before: str, after: str) -> None:
    """Whatever stands around it."""
    found = recover(before + json.dumps(value) + after)

    assert Recovered(value) == found


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    """And a value is only there without an error."""
    found = recover(text)

    assert (found.value is None) or not found.error
