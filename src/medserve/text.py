"""A model's words are told apart, never rewritten: thinking from answer, use from noise, data from control tokens.

Everything here is a pure function of its text. What is taken out is returned beside what is kept, with the reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medserve.flags import Flag

# --- thinking -----------------------------------------------------------------------------------------------------

OPENING = "<unused94>"
CLOSING = "<unused95>"
LABEL = "thought\n"
"""MedGemma writes `<unused94>thought\\n ... <unused95>answer` (Google's notebooks; the tokens are not "special")."""


@dataclass(frozen=True)
class Thinking:
    """An answer taken apart: `text` outside the thinking, `thinking` inside, `truncated` if a block never closed."""

    text: str
    thinking: str
    truncated: bool


class ThinkingSplitter:
    """Tells thinking from answer while they are being written; marks may be cut anywhere between pieces.

    The pieces add up to what `split_thinking` says of the whole text. One case cannot be known in advance: a closing
    mark without an opening, after text that has been shown already. The mark is then left in the text, so that
    `split_thinking` of the sum still finds the answer.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._label = True

    def feed(self, piece: str) -> tuple[str, str]:
        """The (text, thinking) that is certain after one more piece."""
        self._held += piece
        return self._advance(last=False)

    def finish(self) -> tuple[str, str]:
        """The (text, thinking) that was still held back; call it once, after the last piece."""
        return self._advance(last=True)

    @property
    def truncated(self) -> bool:
        """Whether a block of thinking is open."""
        return self._inside

    def _advance(self, last: bool) -> tuple[str, str]:
        text: list[str] = []
        thinking: list[str] = []
        while self._take_label(last):
            mark = CLOSING if self._inside else OPENING
            before, found, after = self._held.partition(mark)
            keep = "" if found or last else _beginning(self._held, mark)
            (thinking if self._inside else text).append(before.removesuffix(keep))
            if not found:
                self._held = keep
                break
            self._held, self._inside, self._label = after, not self._inside, not self._inside
        return "".join(text), "".join(thinking)

    def _take_label(self, last: bool) -> bool:
        """Drop the word `thought` that opens a block; at the very beginning it opens one without its mark.

        Engines that hide control tokens leave the label behind. Returns False while more text is needed to decide.
        """
        if not self._label:
            return True
        if not last and len(self._held) < len(LABEL) and LABEL.startswith(self._held):
            return False
        self._label = False
        if self._held.startswith(LABEL):
            self._held, self._inside = self._held[len(LABEL) :], True
        return True


def _beginning(text: str, mark: str) -> str:
    """The longest end of `text` that could be the beginning of `mark`."""
    longest = min(len(mark) - 1, len(text))
    return next((mark[:size] for size in range(longest, 0, -1) if text.endswith(mark[:size])), "")


def split_thinking(text: str) -> Thinking:
    """Answer and thinking of a whole text.

    A block that never closes is thinking to its end, and the answer is `truncated`. Before a closing mark that lacks
    its opening everything is thinking, as in Google's own notebooks. The label `thought` belongs to neither.
    """
    splitter = ThinkingSplitter()
    answer, thinking = (a + b for a, b in zip(splitter.feed(text), splitter.finish(), strict=True))
    stray, closing, rest = answer.rpartition(CLOSING)
    if closing:
        answer, thinking = rest, stray.replace(CLOSING, "") + thinking
    return Thinking(answer, thinking, splitter.truncated)


# --- control tokens -----------------------------------------------------------------------------------------------

CONTROL = re.compile(
    r"<(?:(?:start|end)_of_(?:turn|image|audio)|(?:image|audio)_soft_token|bos|eos|pad|unk|mask|2mass|unused\d+"
    r"|__[A-Za-z0-9_]+__|0x[0-9A-Fa-f]{2})>|\[multimodal\]|\[@BOS@\]"
)
"""Literals that Gemma's tokenizers turn into control tokens, and the media markers of llama.cpp (`<__media__>`)."""

WORD_JOINER = "\u2060"


def neutralise(text: str) -> str:
    """The same text with control tokens made data, by an invisible U+2060 after the first character of each.

    Tokenizers find these literals anywhere, even in a user's own words: `<end_of_turn>` in a pasted report would end
    the turn and let the report speak as the system. Apply it to whole messages: a literal that is put together from
    two texts is seen by neither.
    """
    return CONTROL.sub(lambda found: found[0][0] + WORD_JOINER + found[0][1:], text)


# --- sentences ----------------------------------------------------------------------------------------------------

LONG = 160
"""A sentence of more characters is divided further, at clause borders: models forget full stops."""

# Possessive quantifiers (++, *+) keep these linear: a run of a hundred thousand dots or spaces is looked at once.
_END = re.compile(r"(?<![.!?])[.!?]++[\"'\u201d\u2019)\]*]*+(?=\s|$)|\n")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|approx|ca|dr|fig)\.$", re.IGNORECASE)
_NUMBERING = re.compile(r"\d{1,3}\.")
_CLAUSE = re.compile(
    r"((?<=[,;:])\s++|(?<!\s)\s++(?=(?:but|however|although|though|whereas|nevertheless|i|we)\b))", re.IGNORECASE
)
_INK = re.compile(r"\S")


@dataclass(frozen=True)
class _Piece:
    """One sentence, or one clause of a long one: `whole` numbers the sentence, `gap` is the white space before it."""

    text: str
    gap: str
    whole: int


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences begin and end; an abbreviation, or the number of a list's item, ends none."""
    begin = 0
    for found in _END.finditer(text):
        end = found.end()
        begin = _ink(text, begin)
        if begin >= end:
            continue
        tail = text[max(begin, end - 12) : end]
        if found[0] != "\n" and (_ABBREVIATION.search(tail) or (end - begin < 5 and _NUMBERING.fullmatch(tail))):
            continue
        yield begin, end
        begin = end
    yield _ink(text, begin), len(text)


def _ink(text: str, start: int) -> int:
    """The first place from `start` on that is not white space."""
    found = _INK.search(text, start)
    return found.start() if found else len(text)


def _pieces(text: str) -> Iterator[_Piece]:
    last = 0
    for whole, (begin, end) in enumerate(_spans(text)):
        said = text[begin:end].rstrip()
        if not said:
            continue
        parts = _CLAUSE.split(said) if len(said) > LONG else [said]
        for gap, clause in zip((text[last:begin], *parts[1::2]), parts[::2], strict=True):
            yield _Piece(clause, gap, whole)
        last = begin + len(said)


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text in order, nothing but the white space around them left out.

    A line's end ends a sentence. Where more than 160 characters come without a full stop, clauses stand for sentences.
    """
    return tuple(piece.text for piece in _pieces(text))


# --- what makes a sentence unfit ----------------------------------------------------------------------------------

_THINKING = re.compile(rf"{OPENING}|{CLOSING}|</?(?:think|thinking|thought|reasoning)>|^\s*thought\s*$", re.I | re.M)
_PERCEIVE = r"(?:\w+ly\s+)?(?:see|find|detect|observe|discern|identify|recogni[sz]e|visuali[sz]e|appreciate|make out)\b"
_UNABLE = r"(?:cannot|can not|can't|could not|couldn't|(?:am |are |'m |'re )?(?:unable|not able) to)"
_PICTURE = r"(?:image|picture|photo|photograph|attachment|file)s?\b"
_REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:very )?sorry\b|\bi apologi[sz]e\b|\bmy apologies\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bi(?:'m| am) (?:only |just )?an ai\b"
    rf"|\b(?:i|we)\s*{_UNABLE}\s+(?!{_PERCEIVE})"
    rf"|\b{_UNABLE}\s+(?:see|view|access|open|identify|find|process)\s+(?:(?:the|this|that|any|an|your)\s+)?{_PICTURE}"
    rf"|\bnot able to\s+(?!{_PERCEIVE}|be\b)"
    r"|\bi (?:won't|will not|must decline|decline)\b|\b(?:would be|is|seems) inappropriate\b",
    re.IGNORECASE,
)
_REPEAT = re.compile(r"(.{3,19}?)\1{3}", re.DOTALL)
_MEASURE = re.compile(
    r"\d\s*(?:mm|cm|m|\u00b5m|\u03bcm|um|nm|%|hu|ml|mg|g|kg|kv|kvp|mas|ms|s|years?|y|x|\u00d7)(?![a-z])", re.IGNORECASE
)
_RULE = re.compile(r"[\s|:=_*#~+\-\u2013\u2014\u2500.]+")


def is_refusal(text: str) -> bool:
    """Whether the guardrail speaks. "I cannot see dots" is an observation; "I cannot see the image" is a refusal."""
    return bool(_REFUSAL.search(text.replace("\u2019", "'")))


def _repeats(text: str) -> bool:
    return any(any(letter.isalpha() for letter in found[1]) for found in _REPEAT.finditer(text))


def _mostly_foreign(text: str) -> bool:
    return len(text) > 5 and sum(not character.isascii() for character in text) > 0.3 * len(text)


def _few_letters(text: str) -> bool:
    if len(text) <= 5 or _MEASURE.search(text) or _RULE.fullmatch(text):
        return False
    visible = [character for character in text if not character.isspace()]
    return sum(character.isalpha() for character in visible) < 0.4 * len(visible)


def _fault(sentence: str) -> Flag | None:
    """The first reason for which a sentence cannot be used, if there is one."""
    tests = {
        Flag.THINKING_LEAK: bool(_THINKING.search(sentence)),
        Flag.SPECIAL_TOKEN_LEAK: bool(CONTROL.search(sentence)) or "\u2581" in sentence,
        Flag.REFUSAL: is_refusal(sentence),
        Flag.GIBBERISH_REPEAT: _repeats(sentence),
        Flag.EXCESSIVE_NON_ASCII: _mostly_foreign(sentence),
        Flag.LOW_ALPHA_RATIO: _few_letters(sentence),
    }
    return next((flag for flag, raised in tests.items() if raised), None)


# --- cleaning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removed:
    """A sentence that was taken out, word for word, and the first reason for it."""

    sentence: str
    reason: Flag


@dataclass(frozen=True)
class Cleaned:
    """The sentences that may be used, as one text, and those that may not, in order."""

    text: str
    removed: tuple[Removed, ...]


def clean(text: str) -> Cleaned:
    """Take unfit sentences out of a text, and nothing else: no word of what stays is changed.

    The reasons are refusal, thinking, control tokens, repetition, foreign script and lack of letters, each judged on
    its own sentence. Cleaning a cleaned text changes nothing. Takes time in proportion to the text.
    """
    pieces = list(_pieces(text))
    faults = [_fault(piece.text) for piece in pieces]
    sizes = Counter(piece.whole for piece in pieces)
    # What is left of a divided sentence gets lines of its own, lest clauses grow together into another sentence.
    broken = {piece.whole for piece, fault in zip(pieces, faults, strict=True) if fault and sizes[piece.whole] > 1}
    kept: list[str] = []
    gap, intact = "", True
    for piece, fault in zip(pieces, faults, strict=True):
        apart = piece.whole in broken
        gap += "\n" if apart else piece.gap
        intact = intact and not apart and fault is None
        if fault is None:
            between = gap if intact else "\n" if "\n" in gap else " "
            kept += [between if kept else "", piece.text]
            gap, intact = "\n" if apart else "", not apart
    removed = [Removed(piece.text, fault) for piece, fault in zip(pieces, faults, strict=True) if fault]
    return Cleaned("".join(kept), tuple(removed))


# --- flags --------------------------------------------------------------------------------------------------------

TOO_SHORT = 30
VERBOSE = 50

_COMPARISON = re.compile(r"\b(?:in)?consistent|\b(?:dis)?agree|\bmatch|\bconfirm|\bcontradict|\bsupported\b", re.I)
_ADDITIONAL = re.compile(
    r"\b(?:border|a?symmetr|opening|cyst|fissure|ridge|clod|ulcer|shiny|pattern|arbori[sz]|vessel|veil|crust|scale)"
    r"|\b(?:additional|further|other)\b",
    re.IGNORECASE,
)


def _content_flags(text: str) -> Iterator[Flag]:
    """What any answer can suffer from, whatever was asked."""
    if not text.strip():
        yield Flag.EMPTY
    faults = {_fault(sentence) for sentence in sentences(text)}
    if _repeats(text):
        faults.add(Flag.GIBBERISH_REPEAT)
    yield from (flag for flag in Flag if flag in faults)


def _named(codes: Iterable[str], text: str) -> list[str]:
    """The codes that stand in the text as words; of a mapping from codes to names, the names count as well."""
    names = codes if isinstance(codes, Mapping) else dict.fromkeys(codes, ())
    return [code for code in names if any(_stands(word, text) for word in (code, *names[code]))]


def _stands(word: str, text: str) -> bool:
    # A code is upper case, lest "mel" in a description is taken for one; a name may be written in any case.
    return bool(re.search(rf"\b{re.escape(word)}\b", text, 0 if word.isupper() else re.IGNORECASE))


def description_flags(text: str, codes: Iterable[str] = ()) -> tuple[Flag, ...]:
    """What is noticed about a second look in prose; `codes` are the class codes that it should not name."""
    raised = set(_content_flags(text))
    if text.strip():
        judged = {
            Flag.TOO_SHORT: len(text.strip()) < TOO_SHORT,
            Flag.CLASSIFICATION_LEAKAGE: bool(_named(codes, text)),
            Flag.NO_COMPARISON: not _COMPARISON.search(text),
            Flag.NO_ADDITIONAL_FINDINGS: not _ADDITIONAL.search(text),
            Flag.CLEANING_EMPTIED: not clean(text).text,
        }
        raised.update(flag for flag, true in judged.items() if true)
    return tuple(flag for flag in Flag if flag in raised)


_AROUND = (Flag.REFUSAL, Flag.THINKING_LEAK, Flag.SPECIAL_TOKEN_LEAK, Flag.GIBBERISH_REPEAT)


def closed_flags(text: str) -> tuple[Flag, ...]:
    """What is noticed around an answer that should be a word or a few; what it names is for readers to say.

    Its script and its share of letters mean nothing here: "+" is an answer.
    """
    raised = set(_content_flags(text))
    return tuple(flag for flag in _AROUND if flag in raised)
