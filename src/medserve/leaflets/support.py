"""A sentence about a finding may say what the finding says, in plain words, and nothing else.

It is held against the one finding that it was written from. A word passes if it is the finding's own, if it is a plain
word for one of the finding's (`GLOSSARY`), or if it is one of the words that say nothing by themselves (`PLAIN`).
Numbers pass if the finding has them. What is denied must be denied and what is stated must be stated. So no term,
cause, advice, size or side comes in that the report does not hold; what cannot be told to be supported is left out.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from medserve.reports import UNITS, Finding

Fault = Literal["unsupported_word", "unsupported_number", "wrong_polarity", "says_nothing"]

_PLAIN = """
a an the this that these those it its they their there here which what who and or of in on at to by as with from
for into is are was were be been being has have had do does did can you your we our i
picture pictures image images scan report result finding findings computer program model test check
show shows showed shown see sees saw seen look looks looked find finds found say says said called call name named
visible appear appears appeared present part parts area place spot body inside within
measure measured measures size about value number kind type class answer question means mean word words
no not none without never nothing neither nor
"""
CLASS = "Classification"
"""The name of the finding that is a report's label."""
PLAIN = frozenset(_PLAIN.split())
"""Words that make no statement about a body by themselves; sizes, sides, advice and doubts are not among them."""
DENIALS = frozenset(("no", "not", "none", "without", "never", "nothing", "neither", "nor", "cannot", "absent"))
SIMPLE = frozenset(("no", "neither", "nor"))
"""Denials that may stand several times in a sentence without turning one another round."""
GLOSSARY = {
    "nevus": ("mole",),
    "naevus": ("mole",),
    "melanocytic": ("pigment", "pigmented"),
    "carcinoma": ("cancer",),
    "renal": ("kidney",),
    "calculus": ("stone",),
    "calculi": ("stone",),
    "pulmonary": ("lung",),
    "cardiac": ("heart",),
    "hepatic": ("liver",),
    "gastric": ("stomach",),
    "osseous": ("bone",),
    "cutaneous": ("skin",),
    "lesion": ("spot",),
    "pigment": ("colour", "color"),
    "erythema": ("redness", "red"),
    "fracture": ("broken", "break"),
    "mm": ("millimetre", "millimeter"),
    "cm": ("centimetre", "centimeter"),
    "hu": ("hounsfield", "units"),
    "visible": ("seen",),
}
"""Plain words that may stand for a finding's own word; no more than the word itself says."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
WORDS = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")


@dataclass(frozen=True)
class Doubt:
    """Why a sentence is left out, and which words of it gave cause."""

    fault: Fault
    words: tuple[str, ...] = ()


def doubt(sentence: str, finding: Finding) -> Doubt | None:
    """What the finding does not support in a sentence; None where it supports all of it."""
    own = frozenset(map(stem, _own(finding)))
    allowed = own | frozenset(map(stem, PLAIN)) | frozenset(stem(word) for word in _plainer(own))
    words = tuple(_words(sentence))
    if strange := tuple(dict.fromkeys(word for word in words if stem(word) not in allowed)):
        return Doubt("unsupported_word", strange)
    if strange := tuple(number for number in _numbers(sentence) if number not in _numbers(_said(finding))):
        return Doubt("unsupported_number", strange)
    if sentence.rstrip().endswith("?"):
        return Doubt("says_nothing")
    if _denies(words) != denied(finding) or _turned(words):
        return Doubt("wrong_polarity")
    said = frozenset(map(stem, words)) | frozenset(_numbers(sentence))
    if not all(_covered(part, said) for part in _points(finding)):
        return Doubt("says_nothing")
    return None


def denied(finding: Finding) -> bool:
    """Whether the finding says that something is not there."""
    value = finding.value
    if isinstance(value, bool):
        return not value
    if value == ():
        return True
    return isinstance(value, str) and _denies(tuple(_words(value)))


def stem(word: str) -> str:
    """A word without the endings of plural and tense, so that "streaks" is "streak" and "measured" is "measure"."""
    lower = word.lower().replace("\u2019", "'").removesuffix("'s")
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ed", ""), ("ing", ""), ("es", ""), ("s", "")):
        if lower.endswith(ending) and len(lower) - len(ending) >= 3 and not lower.endswith("ss"):
            lower = lower[: -len(ending)] + instead
            break
    return lower.removesuffix("e")


def _own(finding: Finding) -> Iterator[str]:
    yield from _words(finding.name)
    yield from _words(_said(finding))
    yield from _words(UNITS.get(finding.unit, finding.unit))


def _plainer(own: frozenset[str]) -> Iterator[str]:
    for term, plainer in GLOSSARY.items():
        if stem(term) in own:
            yield from plainer


def _said(finding: Finding) -> str:
    value = finding.value
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if isinstance(value, bool) or value is None else str(value)


def _words(text: str) -> Iterator[str]:
    """Words in lower case, "n't" as a word of its own that denies."""
    for found in WORDS.findall(text):
        word = found.lower().replace("\u2019", "'")
        if word.endswith("n't"):
            yield from (word.removesuffix("n't"), "not") if word not in ("can't", "won't") else (word[:2] + "n", "not")
        else:
            yield word


def _numbers(text: str) -> tuple[str, ...]:
    """Numbers as they compare: 7.0 is 7, and 7,5 is 7.5."""
    return tuple(f"{float(number.replace(',', '.')):g}" for number in NUMBER.findall(text))


def _denies(words: Sequence[str]) -> bool:
    return bool(DENIALS & set(words))


def _turned(words: Sequence[str]) -> bool:
    """Whether one denial may deny another, as in "not without"."""
    denials = [word for word in words if word in DENIALS]
    return len([word for word in denials if word not in SIMPLE]) + bool(SIMPLE & set(denials)) > 1


def _points(finding: Finding) -> list[frozenset[str]]:
    """What a sentence has to mention: each of these by one word or number of it at least.

    A word is told with the name of its finding: "Normal." may be said of anything. A class is its own name.
    """
    value = finding.value
    named = [] if finding.name == CLASS else [_content(finding.name)]
    if isinstance(value, tuple) and value:
        return [*named, *map(_content, value)]
    if isinstance(value, float) and not isinstance(value, bool):
        return [frozenset(_numbers(str(value)))]
    if content := _content(_said(finding)):
        return [*named, content]
    return [_content(word) for word in _telling(finding.name)]  # "no malignant changes" is not "no changes"


def _content(text: str) -> frozenset[str]:
    """The stems that carry meaning, and the numbers."""
    own = frozenset(map(stem, _telling(text)))
    return own | frozenset(stem(word) for word in _plainer(own)) | frozenset(_numbers(text))


def _telling(text: str) -> Iterator[str]:
    """The words that make a statement."""
    silent = {"yes", *map(stem, PLAIN)}
    return (word for word in _words(text) if stem(word) not in silent)


def _covered(part: frozenset[str], said: frozenset[str]) -> bool:
    return not part or bool(part & said)
