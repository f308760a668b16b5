"""JSON that stands in a text is found whole, and of a broken one what is whole is told apart from what is missing.

Nothing is repaired, completed or filled in: a value that is returned was written by the model, character for character.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

from medserve.text import split_thinking

DEPTH = 32
"""Lists and objects within one another that are looked into when a value is broken."""


@dataclass(frozen=True)
class Recovered:
    """What of a reply is JSON: `value` where the reply holds one whole object or list, and no `error`.

    Else `error` says why, without quoting the reply. Of a broken value `partial` holds what stood whole before the
    break, and `missing` is the JSON pointer (RFC 6901) of what is not whole: a value that was begun, or, where the
    break is between two of them, the object or list that may have had more.
    """

    value: Any = None
    error: str = ""
    partial: Any = None
    missing: tuple[str, ...] = ()


def recover(reply: str) -> Recovered:
    """The one JSON object or list of a reply, wherever it stands; its thinking is never searched."""
    parts = split_thinking(reply)
    if not parts.text.strip():
        return Recovered(error="the answer was cut off while thinking" if parts.truncated else "the answer is empty")
    found, broken = values(parts.text)
    if broken:
        partial, missing = _partial(parts.text)
        return Recovered(error=f"the JSON is {broken}", partial=partial, missing=missing)
    structured = _one_kind([value for value in found if isinstance(value, dict | list)])
    if not structured:
        return Recovered(error="the answer holds no JSON object or list")
    if len({json.dumps(value, sort_keys=True) for value in structured}) > 1:
        return Recovered(error="the answer holds several different JSON values")
    return Recovered(structured[0])


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a place, by the names and numbers that lead to it."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _one_kind(found: list[Any]) -> list[Any]:
    """Those values that hold an object, where there are any: beside one, "[1]" in running text is a reference."""
    told = [value for value in found if isinstance(value, dict) or any(isinstance(item, dict) for item in value)]
    return told or found


# --- whole values --------------------------------------------------------------------------------------------------

_BEGINS = re.compile(r"\{\s*(?:[\"'}]|\w+\s*:)|\[\s*[\[{\"\]\d-]|\[\s*(?:true|false|null)\b")
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError("the number is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _value in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)


def values(text: str) -> tuple[list[Any], str]:
    """The outermost JSON values in a text, fenced or not, and how a broken one is broken ("" if none is)."""
    try:
        return [_DECODER.decode(_unfenced(text))], ""
    except (ValueError, RecursionError):
        pass
    found: list[Any] = []
    place, broken = 0, ""
    while begin := _BEGINS.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, begin.start())
            found.append(value)
        except (ValueError, RecursionError):
            end = _closing(text, begin.start())
            if end is None:
                return found, "cut short"
            place, broken = end, "not well formed"
    return found, broken


def _unfenced(text: str) -> str:
    bare = text.strip()
    if bare.startswith("```"):
        bare = bare.removeprefix("```").removeprefix("json").removesuffix("```").strip()
    return bare


def _closing(text: str, start: int) -> int | None:
    """One past the bracket that closes the one at `start`, brackets in strings aside; None if it is never closed."""
    depth = 0
    for part in _PARTS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if not depth:
            return part.end()
    return None


# --- broken values -------------------------------------------------------------------------------------------------

_NOTHING = object()
_BLANK = re.compile(r"\s*")
_ENDED = re.compile(r"[\s,\]}]")


def _partial(text: str) -> tuple[Any, tuple[str, ...]]:
    """What stands whole in the first broken value of a text, and where it breaks."""
    place = 0
    while begin := _BEGINS.search(text, place):
        walk = _Walk(text)
        value, end = walk.value(begin.start(), "", DEPTH)
        if end is None:
            return (None if value is _NOTHING else value), (walk.broken,)
        place = end
    return None, ()


class _Walk:
    """A reading of one value, member by member, up to the place where it `broken` off."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.broken = ""

    def value(self, place: int, above: str, depth: int) -> tuple[Any, int | None]:
        """The value at a place and its end; of a broken one what is whole of it, or _NOTHING, and None."""
        try:
            value, end = _DECODER.raw_decode(self.text, place)
        except (ValueError, RecursionError):
            return self._inside(place, above, depth)
        # A number's last digits may be missing: at the end of a text, 4 and "4." may have been going to be 4.5.
        if type(value) in (int, float) and not _ENDED.match(self.text, end):
            return self._stop(above)
        return value, end

    def _inside(self, place: int, above: str, depth: int) -> tuple[Any, int | None]:
        match self.text[place : place + 1]:
            case "{" if depth:
                return self._object(self._next(place + 1), above, depth - 1)
            case "[" if depth:
                return self._list(self._next(place + 1), above, depth - 1)
            case _:
                return self._stop(above)

    def _object(self, place: int, above: str, depth: int) -> tuple[Any, None]:
        members: dict[str, Any] = {}
        while True:
            key, after = self._key(place)
            if key is None:
                return self._stop(above, members)
            below = above + pointer((key,))
            if key in members:
                del members[key]  # which of the two is meant, nobody knows
                return self._stop(below, members)
            value, end = self.value(after, below, depth)
            if value is not _NOTHING:
                members[key] = value
            if end is None:
                return members or _NOTHING, None
            place = self._next(end)
            if self.text[place : place + 1] != ",":
                return self._stop(above, members)
            place = self._next(place + 1)

    def _list(self, place: int, above: str, depth: int) -> tuple[Any, None]:
        items: list[Any] = []
        while True:
            value, end = self.value(place, above + pointer((len(items),)), depth)
            if value is not _NOTHING:
                items.append(value)
            if end is None:
                return items or _NOTHING, None
            place = self._next(end)
            if self.text[place : place + 1] != ",":
                return self._stop(above, items)
            place = self._next(place + 1)

    def _key(self, place: int) -> tuple[str | None, int]:
        """A member's name and where its value begins; None where there is no whole name with a colon."""
        try:
            key, end = _DECODER.raw_decode(self.text, place)
        except (ValueError, RecursionError):
            return None, place
        colon = self._next(end)
        if not isinstance(key, str) or self.text[colon : colon + 1] != ":":
            return None, place
        return key, self._next(colon + 1)

    def _next(self, place: int) -> int:
        """The first place from here on that is not blank."""
        found = _BLANK.match(self.text, place)
        return found.end() if found else place

    def _stop(self, above: str, so_far: Any = _NOTHING) -> tuple[Any, None]:
        self.broken = above
        return so_far or _NOTHING, None
