"""A reply becomes a value only if it says so: readers never guess, and what they cannot read is None with a flag.

What is both said and denied, or left open, is no value. How a word's polarity is found is told in `polarity`.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from medserve import recovery
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.polarity import Polarity, clauses, denied, said, vocabulary
from medserve.text import (
    CLOSING,
    OPENING,
    VERBOSE,
    Removed,
    clean,
    closed_flags,
    description_flags,
    is_refusal,
    split_thinking,
)

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Reading(Generic[T_co]):
    """What a reader made of a reply: `value`, or None with at least one flag.

    `detail` says in words what failed, without quoting the reply; `removed` are sentences that prose was cleaned of.
    """

    value: T_co | None
    flags: tuple[Flag, ...] = ()
    detail: str = ""
    removed: tuple[Removed, ...] = ()

    def __post_init__(self) -> None:
        if self.value is None and not self.flags:
            raise ValueError("a reading without a value needs a flag that says why")


@dataclass(frozen=True)
class Reader(Generic[T_co]):
    """How the reply to one question is read.

    `options` are the closed answers, if there are any, so that the same question can also be scored or constrained;
    `schema` is the JSON Schema of the answer, if it is JSON.
    """

    kind: str
    parse: Callable[[str], Reading[T_co]] = field(repr=False)
    options: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None

    def read(self, text: str) -> Reading[T_co]:
        """The value of a reply. Thinking is not part of it: what stands in an unclosed block is no answer."""
        parts = split_thinking(text)
        noticed = (Flag.THINKING_LEAK,) if OPENING in text or CLOSING in text or parts.thinking else ()
        if not parts.text.strip():
            missing = Flag.TRUNCATED if parts.truncated else Flag.EMPTY
            return Reading(None, (*noticed, missing), "the reply holds no answer")
        reading = self.parse(parts.text)
        around = closed_flags(parts.text) if self.options else ()
        flags = tuple(dict.fromkeys((*noticed, *reading.flags, *around)))
        return Reading(reading.value, flags, reading.detail, reading.removed)


# --- readers of words ---------------------------------------------------------------------------------------------


def _unread(text: str, *flags: Flag, detail: str) -> Reading[Any]:
    """No value, with the reason; that the model declined is said beside it."""
    return Reading(None, (*flags, Flag.REFUSAL) if is_refusal(text) else flags, detail)


def _check_options(options: Sequence[str]) -> None:
    if not options or len(set(map(str.lower, options))) != len(options) or not all(map(str.strip, options)):
        raise ValueError(f"options must be given, not empty and different from one another: {options!r}")


def one_of(*options: str) -> Reader[str]:
    """Exactly one of the options, as "round" in "Not round but oval" is not and "oval" is.

    With "yes" or "no" among them, "There is no network" is no, and "Yes, the network is absent" a contradiction.
    "No regression, but a veil" is neither: asked for "A or B", a reply that denies one of them has not answered no.
    """
    _check_options(options)
    plain = [option for option in options if option.lower() not in {"yes", "no"}]
    known = vocabulary(dict.fromkeys(plain, ()))
    closed = {option.lower(): option for option in options if option.lower() in {"yes", "no"}}

    def parse(text: str) -> Reading[str]:
        heard = said(text, plain, known)
        verdicts = _verdicts(clauses(text, known)) if closed else set()
        if verdicts is None or heard.contradicted:
            return _unread(text, Flag.CONTRADICTION, detail="the reply contradicts itself")
        named = [*heard.those(Polarity.SAID), *(closed[word] for word in verdicts if word in closed)]
        if len(named) > 1:
            return _unread(text, Flag.CONTRADICTION, detail="the reply names more than one option")
        if not named or heard.open or heard.undecided or "open" in verdicts:
            return _unread(text, Flag.UNREADABLE, detail="the reply names no option, or leaves open which")
        return Reading(named[0])

    return Reader("one_of", parse, options)


def _verdicts(parts: Sequence[Sequence[str]]) -> set[str] | None:
    """{"yes"}, {"no"}, or nothing where neither is said; None where the reply contradicts itself.

    "no" is an answer only if all the rest is denied too: in "No regression, but a veil" it belongs to one of two signs.
    Where it is not clear whether something is left over, {"open"}.
    """
    yes = any(_affirms(clause) for clause in parts)
    no = any(_says_no(clause) for clause in parts)
    states = {_states(clause) for clause in parts}
    if (yes and no) or (yes and False in states and True not in states) or (no and True in states):
        return None
    if yes or not no:
        return {"yes"} if yes else set()
    left = [place for place, clause in enumerate(parts) if not denied(clause)]
    if left and ["BUT"] in parts and not any(_UNSURE & set(clause) for clause in parts):
        return None
    return {"open"} if left else {"no"}


_UNSURE = frozenset({"OPEN", "UNDECIDED", "YES"})


def _affirms(clause: Sequence[str]) -> bool:
    """Whether "yes" is said, and not "not yes" or "possibly yes"."""
    return "YES" in clause and not {"NOT", "DENY", "OPEN"} & set(clause[: clause.index("YES")])


def _says_no(clause: Sequence[str]) -> bool:
    """Whether a clause may answer no: by "no", or by "none seen", "neither ... nor" and "not visible" of a sign."""
    if "no" in clause:
        return True
    closed = "none" in clause or "ABSENT" in clause or clause[0] == "DENY" or clause.count("DENY") > 1
    return closed and not {"lesion", "picture", "image", "photo"} & set(clause) and denied(clause)


def _states(clause: Sequence[str]) -> bool | None:
    """Whether a clause states that something is visible, that it is not, or neither."""
    statement = clause[2:] if clause[:2] == ["no", ","] else clause
    if {"ABSENT", "DENY", "NOT", "no", "none"} & set(statement):
        return False
    return True if "THERE" in statement and not _UNSURE & set(statement) else None


def any_of(*options: str, none: str = "none") -> Reader[tuple[str, ...]]:
    """Those of the options that the reply says are there, in their declared order; () if it says that none is.

    `none` is the word by which a reply may say so; "no dots or globules" and "not visible" say it as well.
    """
    _check_options(options)
    known = vocabulary(dict.fromkeys(options, ()))
    word = re.compile(rf"\b{re.escape(none.lower())}\b")

    def parse(text: str) -> Reading[tuple[str, ...]]:
        heard = said(word.sub("none", text.lower()), options, known)
        there = heard.those(Polarity.SAID)
        if heard.contradicted or (there and heard.none and not heard.excepted):
            return _unread(text, Flag.CONTRADICTION, detail="the reply contradicts itself")
        if heard.open or heard.undecided:
            return _unread(text, Flag.UNREADABLE, detail="the reply leaves open what is there")
        if there or heard.none or heard.those(Polarity.DENIED):
            return Reading(there)
        return _unread(text, Flag.UNREADABLE, detail="the reply names no option")

    return Reader("any_of", parse, (*options, none))


def words_from(*words: str) -> Reader[tuple[str, ...]]:
    """Those of the words that the reply says, in their declared order, at least one.

    "dark brown" is brown, "blue-white" both, "grey" the same as gray; "substantial" holds no tan, and red stays red.
    """
    _check_options(words)
    known = vocabulary(dict.fromkeys(words, ()))

    def parse(text: str) -> Reading[tuple[str, ...]]:
        heard = said(text, words, known)
        there = heard.those(Polarity.SAID)
        if heard.contradicted:
            return _unread(text, Flag.CONTRADICTION, detail="the reply contradicts itself")
        if not there or heard.open or heard.undecided:
            return _unread(text, Flag.UNREADABLE, detail="the reply names none of the words, or leaves open which")
        return Reading(there)

    return Reader("words_from", parse, words)


def code_of(labels: Mapping[str, Sequence[str]]) -> Reader[str]:
    """The one code that the reply gives, by itself or by a name: labels as {"NV": ("nevus", "melanocytic nevus")}.

    None with `invalid_code` where no code is given or it is denied; with `multiple_codes` where several are.
    """
    _check_options(tuple(labels))
    known = vocabulary(labels)

    def parse(text: str) -> Reading[str]:
        heard = said(text, labels, known)
        given = heard.those(Polarity.SAID)
        open_ = [code for code, polarity in heard.polarity.items() if Polarity.OPEN in polarity]
        noticed = (Flag.VERBOSE_OUTPUT,) if len(text.strip()) > VERBOSE else ()
        if heard.contradicted:
            return _unread(text, Flag.CONTRADICTION, *noticed, detail="the reply gives a code and denies it")
        if len({*given, *open_}) > 1:
            return _unread(text, Flag.MULTIPLE_CODES, *noticed, detail="the reply names several codes")
        if not given or heard.undecided:
            return _unread(text, Flag.INVALID_CODE, *noticed, detail="the reply gives no code of the set")
        return Reading(given[0], noticed)

    return Reader("code_of", parse, tuple(labels))


def prose(codes: Collection[str] = ()) -> Reader[str]:
    """Plain text, cleaned of unfit sentences; `codes` are class codes that it should not name.

    None where nothing is left. What was taken out is in the reading's `removed`.
    """

    def parse(text: str) -> Reading[str]:
        cleaned = clean(text)
        return Reading(cleaned.text or None, description_flags(text, codes), removed=cleaned.removed)

    return Reader("prose", parse)


def plain() -> Reader[str]:
    """A sentence or two of any content, cleaned of unfit sentences; None where nothing is left."""

    def parse(text: str) -> Reading[str]:
        cleaned = clean(text)
        reasons = {gone.reason for gone in cleaned.removed}
        noticed = tuple(flag for flag in Flag if flag in reasons)
        flags = noticed if cleaned.text else (*noticed, Flag.CLEANING_EMPTIED)
        return Reading(cleaned.text or None, flags, removed=cleaned.removed)

    return Reader("plain", parse)


def opening(text: str, words: Sequence[str]) -> str | None:
    """The one of the words with which a text begins, as it stands among them; None where it begins with another."""
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    found = re.match(rf"\W*({pattern})(?!\w)", text, re.IGNORECASE)
    return next((word for word in words if found and word.lower() == found[1].lower()), None)


# --- JSON ---------------------------------------------------------------------------------------------------------


def json_of(schema: Mapping[str, Any]) -> Reader[Any]:
    """The one JSON value in the reply that fits the schema (draft 2020-12), wherever it stands; nothing is repaired.

    A value inside a broken one is not taken for the whole, so that no field gets lost; two that differ are a
    contradiction. Schemas may refer to themselves only: no address in them is ever fetched.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(f"the schema is not valid at {error.json_path}", param="schema") from None
    validator = Draft202012Validator(schema, registry=Registry())

    def parse(text: str) -> Reading[Any]:
        found, broken = recovery.values(text)
        failures = [_failure(validator, value) for value in found]
        fitting = [value for value, failure in zip(found, failures, strict=True) if not failure]
        if len({json.dumps(value, sort_keys=True) for value in fitting}) > 1:
            return _unread(text, Flag.CONTRADICTION, detail="the reply holds several different values")
        if fitting and fitting[-1] is not None and not broken:
            return Reading(fitting[-1])
        flags = (Flag.INVALID_JSON, Flag.TRUNCATED) if broken == "cut short" else (Flag.INVALID_JSON,)
        why = f"the JSON is {broken}" if broken else next(filter(None, failures), "the reply holds no JSON value")
        return _unread(text, *flags, detail=why)

    return Reader("json_of", parse, schema=schema)


def _failure(validator: Draft202012Validator, value: object) -> str:
    """Where and against which rule a value fails, without the value itself; empty if it fits."""
    try:
        error = best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError):
        return "the schema refers to something outside itself"
    return f"{error.json_path} fails {error.validator}: {error.validator_value!r}"[:300] if error else ""
