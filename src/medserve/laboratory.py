"""What a laboratory prints becomes numbers, units and limits by rule; what no rule covers is None and stays in words.

Nothing is converted: a number keeps the unit it was printed with, and a unit is only given its UCUM code. A sign that
may part thousands or decimals is read only where the page itself shows which of the two it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Sign = Literal[".", ","]
Comparator = Literal["", "<", "<=", ">", ">="]

_GAP = "[ '\u2019\u00a0\u2009\u202f]"
_NUMBER = rf"[+\-\u2212]?[0-9](?:[0-9.,]|{_GAP}(?=[0-9]))*"
_COMPARATORS: Mapping[str, Comparator] = {
    "<": "<", "<=": "<=", "=<": "<=", "\u2264": "<=", ">": ">", ">=": ">=", "=>": ">=", "\u2265": ">=",
}  # fmt: skip
_WORDS: Mapping[str, Comparator] = {
    "up to": "<=", "bis": "<=", "less than": "<", "below": "<", "under": "<",
    "more than": ">", "greater than": ">", "above": ">", "over": ">", "from": ">=", "at least": ">=",
}  # fmt: skip
_COMPARED = re.compile(rf"({'|'.join(map(re.escape, [*_COMPARATORS, *_WORDS]))})\s*({_NUMBER})", re.IGNORECASE)
_BETWEEN = re.compile(
    rf"({_NUMBER})\s*(?:-|\u2010|\u2011|\u2012|\u2013|\u2014|\u2212|\bto\b|\bbis\b|\.\.\.?)\s*({_NUMBER})",
    re.IGNORECASE,
)
_GRADED = re.compile(r"[0-9]\s*\+|\+{1,4}|[0-9]+\s*:\s*[0-9]+|[0-9]+\s*[-\u2013]\s*[0-9]+")
"""1+, a titre of 1:160, 0-2 a field: results that begin with a digit and are no numbers."""


@dataclass(frozen=True)
class Number:
    """A number as it was printed, and the sign before it where it only bounds the result."""

    value: float
    comparator: Comparator = ""


@dataclass(frozen=True)
class Limits:
    """A reference range; a side without a limit is None. `strict` are limits that lie outside themselves (< 5)."""

    low: float | None
    high: float | None
    strict: bool = False


class Position(StrEnum):
    """Where a result lies by the printed range."""

    BELOW = "below"
    WITHIN = "within"
    ABOVE = "above"


class Mark(StrEnum):
    """What a printed mark says of a result."""

    LOW = "low"
    HIGH = "high"
    ABNORMAL = "abnormal"
    NORMAL = "normal"


# --- numbers ---------------------------------------------------------------------------------------------------------


def decimal_sign(texts: Iterable[str]) -> Sign | None:
    """The sign that parts decimals in these texts, where one of their numbers shows it and none shows the other."""
    shown = {sign for text in texts for number in re.findall(_NUMBER, text) if (sign := _shown(number))}
    return shown.pop() if len(shown) == 1 else None


def _shown(number: str) -> Sign | None:
    """The sign that can only part decimals in a number: 0.5, 13,5 and 1,234.5 show it, 1,234 and 12 do not."""
    bare = re.sub(_GAP, "", number.lstrip("+-\u2212"))
    signs = [character for character in bare if character in ".,"]
    if not signs or (len(signs) > 1 and len(set(signs)) == 1):
        return None
    last: Sign = "." if signs[-1] == "." else ","
    whole, _sign, decimals = bare.rpartition(last)
    certain = len(set(signs)) == 2 or len(decimals) != 3 or whole == "0" or len(whole) > 3
    return last if certain or bare != number.lstrip("+-\u2212") else None


def number(text: str, sign: Sign | None) -> float | None:
    """A number as printed; None for what is none, and for 1,234 where `sign` does not say what the comma parts."""
    if not re.fullmatch(_NUMBER, text := text.strip()):
        return None
    digits = text.replace("\u2212", "-").lstrip("+")
    grouped = re.sub(_GAP, "", digits)
    if grouped != digits and not re.fullmatch(rf"-?[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}})+(?:[.,][0-9]+)?", digits):
        return None
    decimal = _shown(text) or sign
    if decimal is None:
        signs = set(grouped) & {".", ","}
        if len(signs) == 1 and sum(grouped.count(one) for one in signs) == 1:
            return None
        decimal = "," if "." in signs else "."
    return _parsed(grouped, decimal)


def _parsed(digits: str, decimal: Sign) -> float | None:
    thousands = "," if decimal == "." else "."
    whole, _sign, decimals = digits.partition(decimal)
    if thousands in whole and not re.fullmatch(rf"-?[0-9]{{1,3}}(?:{re.escape(thousands)}[0-9]{{3}})+", whole):
        return None
    whole = whole.replace(thousands, "")
    if not re.fullmatch(r"-?[0-9]+", whole) or not re.fullmatch(r"[0-9]*", decimals) or digits.endswith(decimal):
        return None
    return float(f"{whole}.{decimals or 0}")


def result(text: str, sign: Sign | None) -> Number | str | None:
    """A result as a number, or in words where it is one in words; None where it looks like a number and is none."""
    text = text.strip()
    if compared := _COMPARED.fullmatch(text):
        bound = number(compared[2], sign)
        return None if bound is None else Number(bound, _comparator(compared[1]))
    if (read := number(text, sign)) is not None:
        return Number(read)
    if not text or (re.match(r"[<>=\u2264\u2265]|[+\-\u2212]?\s*[0-9]", text) and not _GRADED.fullmatch(text)):
        return None
    return text


def _comparator(word: str) -> Comparator:
    return _COMPARATORS.get(word) or _WORDS[word.lower()]


# --- reference ranges ------------------------------------------------------------------------------------------------


def limits(text: str, sign: Sign | None, unit: str = "") -> Limits | None:
    """A printed reference range: "3.5 - 5.1", "< 5", "up to 40", in brackets or not, with `unit` after it or not.

    None for ranges by sex or age, of which nobody said which one applies, and for all other words.
    """
    bare = text.strip()
    if bare[:1] + bare[-1:] in {"()", "[]"}:
        bare = bare[1:-1].strip()
    if unit and bare.lower().endswith(unit.lower()):
        bare = bare[: -len(unit)].strip()
    if compared := _COMPARED.fullmatch(bare):
        return _one_sided(number(compared[2], sign), _comparator(compared[1]))
    if not (between := _BETWEEN.fullmatch(bare)):
        return None
    low, high = number(between[1], sign), number(between[2], sign)
    return None if low is None or high is None or low > high else Limits(low, high)


def _one_sided(bound: float | None, comparator: Comparator) -> Limits | None:
    if bound is None:
        return None
    strict = comparator in {"<", ">"}
    return Limits(None, bound, strict) if comparator.startswith("<") else Limits(bound, None, strict)


def position(read: Number, range_: Limits) -> Position | None:
    """Where a result lies; None where "< 5" leaves open on which side of a limit it is."""
    if (low := range_.low) is not None and not _at_least(read, low, range_.strict):
        return Position.BELOW if _below(read, low, range_.strict) else None
    if (high := range_.high) is not None and not _at_most(read, high, range_.strict):
        return Position.ABOVE if _above(read, high, range_.strict) else None
    return Position.WITHIN


def _at_least(read: Number, low: float, strict: bool) -> bool:
    """Whether it is certain that a result is not below a limit."""
    if read.comparator.startswith("<"):
        return False
    return read.value > low or (read.value == low and (not strict or read.comparator == ">"))


def _below(read: Number, low: float, strict: bool) -> bool:
    """Whether it is certain that a result is below a limit."""
    if read.comparator.startswith(">"):
        return False
    return read.value < low or (read.value == low and (strict or read.comparator == "<"))


def _at_most(read: Number, high: float, strict: bool) -> bool:
    return _at_least(_turned(read), -high, strict)


def _above(read: Number, high: float, strict: bool) -> bool:
    return _below(_turned(read), -high, strict)


def _turned(read: Number) -> Number:
    """The result seen from the other side of zero."""
    mirror: Mapping[Comparator, Comparator] = {"": "", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
    return Number(-read.value, mirror[read.comparator])


# --- marks -----------------------------------------------------------------------------------------------------------

_MARKS: Mapping[str, Mark] = {
    **dict.fromkeys(("h", "hh", "h*", "hi", "high", "+", "++", "+++", "\u2191", "\u2191\u2191", "\u25b2"), Mark.HIGH),
    **dict.fromkeys(("l", "ll", "l*", "lo", "low", "-", "--", "---", "\u2193", "\u2193\u2193", "\u25bc"), Mark.LOW),
    **dict.fromkeys(("a", "aa", "abn", "abnormal", "*", "**", "!"), Mark.ABNORMAL),
    **dict.fromkeys(("n", "normal", "in range", "wnl"), Mark.NORMAL),
}


def mark(text: str) -> Mark | None:
    """What a printed mark says; None for one that is not known."""
    return _MARKS.get(text.strip().strip("()[]").replace("\u2212", "-").lower())


def disagree(printed: Mark | None, found: Position, *, marked: bool) -> bool:
    """Whether a mark contradicts the range; where a page is `marked` at all, no mark says that all is well."""
    match printed:
        case Mark.HIGH:
            return found is not Position.ABOVE
        case Mark.LOW:
            return found is not Position.BELOW
        case Mark.ABNORMAL:
            return found is Position.WITHIN
        case Mark.NORMAL:
            return found is not Position.WITHIN
        case _:
            return marked and found is not Position.WITHIN


# --- units -----------------------------------------------------------------------------------------------------------

_VOLUMES = {"l": "L", "dl": "dL", "ml": "mL", "ul": "uL"}
_AMOUNTS = {
    **{unit: unit for unit in ("g", "mg", "ug", "ng", "pg", "mol", "mmol", "umol", "nmol", "pmol")},
    "mcg": "ug",
    "u": "U",
    "mu": "mU",
    "uu": "uU",
    "ku": "kU",
    "iu": "[IU]",
    "miu": "m[IU]",
    "uiu": "u[IU]",
    "kiu": "k[IU]",
    "meq": "meq",
    "mval": "meq",
}
_COUNTS = {
    **{f"10*{power}": f"10*{power}" for power in (3, 6, 9, 12)},
    "k": "10*3",
    "thou": "10*3",
    "tsd": "10*3",
    "mio": "10*6",
    "mill": "10*6",
    "gpt": "10*9",
    "tpt": "10*12",
    "": "",
    "cells": "",
}
_OTHERS = {
    "%": "%", "vol%": "%", "\u2030": "[ppth]", "fl": "fL", "pg": "pg", "pg/cell": "pg", "ph": "[pH]", "l/l": "L/L",
    "s": "s", "sec": "s", "sek": "s", "min": "min", "h": "h", "mm/h": "mm/h", "mm/hr": "mm/h", "mm/1h": "mm/h",
    "mmhg": "mm[Hg]", "kpa": "kPa", "\u00b0c": "Cel", "ratio": "{ratio}", "inr": "{INR}", "mmol/mol": "mmol/mol",
    "ml/min": "mL/min", "ml/min/1.73m2": "mL/min/{1.73_m2}", "ml/min/1,73m2": "mL/min/{1.73_m2}",
    "mosm/kg": "mosm/kg", "mosmol/kg": "mosm/kg", "mosm/l": "mosm/L", "mosmol/l": "mosm/L",
    "/hpf": "/[HPF]", "/lpf": "/[LPF]", "mg/g": "mg/g", "ug/g": "ug/g", "mg/mmol": "mg/mmol", "ukat/l": "ukat/L",
    "nkat/l": "nkat/L", "mg/24h": "mg/(24.h)", "g/24h": "g/(24.h)", "mmol/24h": "mmol/(24.h)", "ml/24h": "mL/(24.h)",
}  # fmt: skip
_BY_CASE: Mapping[str, str | None] = {
    # A small letter would make another unit of these: giga and gram, mega and milli.
    "G/L": None, "M/uL": "10*6/uL", "M/UL": "10*6/uL", "m/ul": None, "m/uL": None, "T/L": "10*12/L", "t/l": None,
}  # fmt: skip
UNITS: Mapping[str, str] = {
    **{f"{a}/{v}": f"{code}/{volume}" for a, code in _AMOUNTS.items() for v, volume in _VOLUMES.items()},
    **{f"{c}/{v}": f"{code}/{volume}" for c, code in _COUNTS.items() for v, volume in _VOLUMES.items()},
    **_OTHERS,
}
"""UCUM codes (ucum.org) by what laboratories print, in small letters and without gaps.

Codes are written as in the Regenstrief Institute's table of examples for electronic messaging where that has them; the
printed forms are common usage.
"""
_LIKE = str.maketrans(
    {
        "\u00b5": "u",
        "\u03bc": "u",
        "\u00d7": "x",
        "\u00b7": "x",
        **{power: str(n) for n, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)
_POWER = re.compile(r"^x?10(?:\^|\*\*?|e)?(3|6|9|12)(?=/)", re.IGNORECASE)


def unit(text: str) -> str | None:
    """The UCUM code of a unit as it is printed; None where it is not known or may mean two."""
    bare = _POWER.sub(r"10*\1", re.sub(r"\s", "", text).translate(_LIKE))
    return _BY_CASE[bare] if bare in _BY_CASE else UNITS.get(bare.lower())
