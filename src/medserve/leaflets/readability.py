"""How hard a text is to read is measured, by a formula that is published and syllables that are counted by rule.

The Flesch-Kincaid grade (Kincaid et al., 1975, for the US Navy) is the school grade whose pupils understand a text.
Syllables are those of pyphen's hyphenation or the groups of vowels, whichever are more: hyphenation leaves out short
ones at the ends of words. Vowels side by side that are spoken apart ("area") may count once. textstat does it with a
dictionary that it downloads when first used, which a machine without a network cannot.
"""

import re
from functools import cache

from pydantic import Field
from pyphen import Pyphen

from medserve.reports import Record
from medserve.text import sentences

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
RELIABLE = 100
"""Words from which the grade means much; the formula was fitted to passages of that length."""
_VOWELS = re.compile(r"[aeiouy\u00e0-\u00ff]+")


class Readability(Record):
    """What was measured of a text."""

    grade: float = Field(description="Flesch-Kincaid grade: 6 is about 11 to 12 years of age")
    sentences: int
    words: int
    syllables: int
    reliable: bool = Field(description="whether the text has the 100 words for which the formula was made")


def measured(text: str) -> Readability | None:
    """The readability of an English text; None where it has no words."""
    words = WORD.findall(text)
    if not words:
        return None
    count = max(1, len(sentences(text)))
    syllables = sum(map(syllables_of, words))
    grade = 0.39 * len(words) / count + 11.8 * syllables / len(words) - 15.59
    return Readability(
        grade=round(grade, 1),
        sentences=count,
        words=len(words),
        syllables=syllables,
        reliable=len(words) >= RELIABLE,
    )


def syllables_of(word: str) -> int:
    """Syllables of an English word, at least one; a number has one for each digit."""
    if word[0].isdigit():
        return sum(one.isdigit() for one in word)
    lower = word.lower()
    groups = len(_VOWELS.findall(lower)) - (lower.endswith("e") and not lower.endswith(("le", "ee", "ie")))
    return max(1, groups, len(_hyphenation().positions(lower)) + 1)


@cache
def _hyphenation() -> Pyphen:
    return Pyphen(lang="en_US")
