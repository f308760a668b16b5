"""A reply becomes a value only if it says so; what denies, wavers or contradicts itself is None with a flag."""

import re
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.readers import (
    Reader,
    Reading,
    any_of,
    code_of,
    json_of,
    one_of,
    opening,
    plain,
    prose,
    words_from,
)

STRUCTURES = any_of("dots", "globules", "streaks")
YES_NO = one_of("yes", "no")
SHAPE = one_of("round", "oval", "irregular")
COLOUR = words_from("white", "blue", "black", "brown", "yellow", "pink", "orange", "gray", "tan", "red", "purple")
CODE = code_of(
    {
        "MEL": ("melanoma",),
        "NV": ("nevus", "melanocytic nevus", "mole"),
        "BCC": ("basal cell carcinoma",),
        "BKL": ("benign keratosis", "seborrheic keratosis"),
    }
)
FINDINGS = {
    "type": "object",
    "properties": {"stones": {"type": "array"}, "confidence": {"type": "number"}, "note": {"type": "string"}},
    "required": ["stones"],
    "additionalProperties": False,
}
JSON = json_of(FINDINGS)


# --- several of a list

NONE_OF_THEM = """
no dots or globules | none (no streaks visible) | none | None. | **None** | No. | nothing | none visible
neither dots nor streaks | neither dots, globules nor streaks | No dots, globules, or streaks are visible.
no structures are visible | None of these structures are visible. | No vessels are visible | none of them
Dots are not visible. | dots, globules and streaks are absent | dots cannot be seen | Dots aren't visible.
I do not see any dots. | I cannot see dots or globules. | I can't see any streaks. | There are no visible dots.
without dots, globules or streaks | No evidence of dots | absence of dots and globules | The lesion lacks dots
dots (absent) | dots (not visible) | Not visible: dots, globules, streaks | dots: none, globules: none
no dots and globules | no dots, no globules | Dots? No. Globules? No. | The lesion is free of streaks.
Dots: no / Globules: no / Streaks: no | Not visible: / - dots / - globules | There isn't any dot.
no dots and globules are visible | Dots are not clearly visible | globules are missing
zero dots | 0 globules | dots: 0 | dots: 0, globules: 0, streaks: 0 | dots (0), globules (0) | dots: − | dots : -
dots (-) | Dots: - | Dots -, globules - | Globules: - (none) | dots: absent | dots - none | dots: ✗ | none seen
[ ] dots / [ ] globules | negative for dots, globules or streaks | no definite dots
"""
DOTS_ALONE = """
dots | Dots. | **dots** | - dots | A dot is visible. | only dots are visible | Yes, dots. | Dots are visible.
dots without globules | no globules but dots | Dots, no globules | dots, not globules | no globules; dots
dots are visible and globules are not | dots are visible, globules and streaks are not
Dots: yes, globules: no, streaks: no | Dots: yes / Globules: no / Streaks: no | Dots? Yes. Globules? No.
globules are absent, dots are present | globules absent, dots present | dots (present), globules (absent)
Dots rather than globules | none except dots | nothing but dots | no structures other than dots
Present: dots. Absent: globules, streaks. | Dots are visible, but no streaks | no globules, only dots
Dots are visible; no other structures. | no doubt, dots are visible | Globules are not present; dots are.
neither globules nor streaks, but dots | I see dots; I do not see globules. | dots are not absent
Visible: / - dots / Not visible: / - globules / - streaks | Dots are present whereas streaks are absent.
Which are visible: dots, globules, streaks? Dots. | None, except for dots. | dots instead of globules
dots: + | dots (+) | dots(+) | dots + | dots: present | dots: yes | dots: positive | dots: (+), globules: (-)
Dots: +, globules: - | Dots: + globules: - | dots: + and globules: - | dots (+), globules (-) | dots +, globules -
dots: ++, globules: -, streaks: 0 | Dots: +. Globules: -. | 1. Dots: + / 2. Globules: - | dots = +, globules = -
dots ✓, globules ✗ | - [x] dots / - [ ] globules | - Dots: + / - Globules: - / - Streaks: 0 | 2 dots, 0 globules
dots: yes globules: no | Dots – present, globules – absent | positive for dots, negative for globules
no evidence of globules; dots present | dots present; globules 0 %
"""
DOTS_AND_GLOBULES = """
dots and globules | dots, globules | Globules, dots | - dots / - globules | not only dots but also globules
dots, globules, no streaks | dots/globules | dots and globules but no streaks | dots, globules and no streaks
dots and globules are visible without streaks | streaks are missing; dots, globules present
dots + globules | dots: +, globules: + | Dots (+), globules (+), streaks (-) | + dots / + globules | dots & globules
"""
# "No definite dots" is how reports say that there are none; "not definitely seen" says only that it is not certain.
NOT_READABLE = """
i cannot determine this | Yes. | something else | substantial | I am not sure | no picture was provided | Other
dots or globules | either dots or globules | possible dots | dots cannot be excluded | dots may be present
no dots, globules are visible | dots, globules not visible | Which structures? dots, globules, streaks?
I cannot tell whether dots are visible | No, I cannot assess this.
dots: ? | dots (?) | dots: +/- | dots: (±) | dots: ±, globules: - | dots: +, globules: ? | Dots: +. Globules: ±.
dots +/- globules | dots-, globules+ | 0 to 2 globules | dots not definitely seen | no lesion is visible
"""
CONTRADICTORY = """
dots and no dots | none, dots | No, dots are visible | Dots are visible. Dots are absent.
"""


def replies(table: str) -> list[str]:
    """The replies of a table: " | " between two, " / " for a line's end."""
    return [
        reply.strip().replace(" / ", "\n") for line in table.split("\n") for reply in line.split(" | ") if reply.strip()
    ]


@pytest.mark.parametrize("reply", replies(NONE_OF_THEM))
def test_what_is_denied_is_not_there(reply: str) -> None:
    """Defect 000-4: "no dots or globules" was read as dots and globules."""
    assert Reading(()) == STRUCTURES.read(reply)


@pytest.mark.parametrize("reply", replies(DOTS_ALONE))
def test_a_denial_reaches_no_further_than_its_clause(reply: str) -> None:
    """What is there stays there, whatever else is not."""
    assert Reading(("dots",)) == STRUCTURES.read(reply)


@pytest.mark.parametrize("reply", replies(DOTS_AND_GLOBULES))
def test_several_findings_come_in_the_declared_order(reply: str) -> None:
    """The order of the words does not matter."""
    assert Reading(("dots", "globules")) == STRUCTURES.read(reply)


@pytest.mark.parametrize("reply", replies(NOT_READABLE))
def test_what_is_left_open_is_no_value(reply: str) -> None:
    """Neither a default nor a guess: None, and the flag says why."""
    reading = STRUCTURES.read(reply)
    assert reading.value is None
    assert Flag.UNREADABLE in reading.flags


@pytest.mark.parametrize("reply", replies(CONTRADICTORY))
def test_a_thing_and_its_opposite_are_a_contradiction(reply: str) -> None:
    """A reader does not choose between two halves of a reply."""
    reading = STRUCTURES.read(reply)
    assert (None, (Flag.CONTRADICTION,)) == (reading.value, reading.flags)


# --- yes or no


@pytest.mark.parametrize(
    "reply",
    replies("""
    yes | Yes. | **Yes** | Answer: yes | The answer is yes. | YES | yes, a network is visible | Yes! | - Yes | "Yes"
    Is a network visible? Yes. | yes, no doubt | Final answer: yes | Yes, yes. | No reason to doubt. Final Answer: yes
    """),
)
def test_yes_is_yes(reply: str) -> None:
    """Markup, case and a polite sentence around it change nothing."""
    assert Reading("yes") == YES_NO.read(reply)


@pytest.mark.parametrize(
    "reply",
    replies("""
    no | No. | **No** | The answer is no | no, but the eyes | no clear network | There is no pigment network visible.
    No, I cannot see a network. | Answer: no | no network | No pigment network is visible; the eyes are blue
    Is a network visible? No. | It might be yes. Final Answer: no | No, the network is absent. | "no"
    """),
)
def test_no_is_no(reply: str) -> None:
    """Defect 000-4: "no, but the eyes" was read as yes."""
    assert Reading("no") == YES_NO.read(reply)


@pytest.mark.parametrize(
    "reply",
    replies("""
    i cannot determine this | eyes | nowhere | notable | not yes | neither yes nor no | unknown | no image was provided
    I am not sure. | no way to tell | maybe | It cannot be determined | No idea | Yes or no? | n/a | Possibly yes
    No, I cannot determine this. | none of your business
    """),
)
def test_neither_is_not_readable(reply: str) -> None:
    """Defect 000-4: "i cannot determine this" holds the letters of no, and became a melanoma."""
    reading = YES_NO.read(reply)
    assert reading.value is None
    assert Flag.UNREADABLE in reading.flags


@pytest.mark.parametrize(
    "reply",
    replies("""
    yes and no | yes/no | No. Yes. | Yes, there is no network. | Yes, the network is not visible.
    No dots but a network is visible | No, the network is clearly visible.
    """),
)
def test_both_are_a_contradiction(reply: str) -> None:
    """An answer whose sentence says the opposite is no answer."""
    reading = YES_NO.read(reply)
    assert (None, (Flag.CONTRADICTION,)) == (reading.value, reading.flags)


# The protocol asks for "X or Y": a denial of one of them is no answer while anything is left that may be there.
NEITHER_SIGN = """
no definite network | none seen | None visible. | neither | Neither is visible. | negative for regression | absent
No, none is visible. | no - not seen | no - none seen | No (none seen) | no, nothing | Not visible. | No signs are seen.
No regression or blue-white veil. | No regression; no blue-white veil. | No regression, no blue-white veil
No regression and no blue-white veil. | No evidence of regression or blue-white veil | No network, veil, or dots
Neither regression nor a blue-white veil is visible. | No: neither regression nor blue-white veil is present.
No, regression and blue-white veil are absent. | Regression is absent; veil isn't. | Absent: regression, veil.
Regression: no, veil: no | Regression: -, veil: -
There are no comedo-like openings or milia-like cysts visible. | No signs of regression are visible in this lesion.
No. Neither comedo-like openings nor milia-like cysts are seen. | Based on the image, no network is visible.
No; the lesion is brown. | No. The lesion is dark brown. | No, this lesion does not show any of these.
"""
ONE_SIGN_AND_NOT_THE_OTHER = """
No regression but blue-white veil. | No milia-like cysts, but comedo-like openings. | No regression; blue-white veil +
No regression except a blue-white veil | No regression, however blue-white veil | No regression although a veil is seen
No, only a blue-white veil | No evidence of regression; blue-white veil present | Blue-white veil is seen, no regression
Regression: yes, veil: no | No regression (blue-white veil present) | veil: +, regression: no | regression -, veil +
Positive for blue-white veil, negative for regression | Regression: no / Blue-white veil: yes | Veil: no regression: yes
milia-like cysts: 0, comedo-like openings: present | There is no regression, but there is a veil
Yes, a veil but no regression | Blue-white veil but no regression | No regression. There are comedo-like openings.
No milia-like cysts, yet several comedo-like openings | No regression apart from a small veil
regression: no; veil: 1+ | No clear regression though some white scar-like areas. | Veil yes, regression no
"""
ONE_SIGN_DENIED_THE_OTHER_OPEN = """
No regression, blue-white veil | No regression; blue-white veil | No regression. Blue-white veil. | Regression 0, veil 1
Blue-white veil without regression | blue-white veil, no regression | No regression with blue-white veil
No regression and blue-white veil | No regression + blue-white veil | No regression (blue-white veil)
No I see a blue-white veil | No there is a blue-white veil | No regression: blue-white veil | regression, veil absent
No regression - blue-white veil | No regression, possible blue-white veil | Regression no, veil
No regression; blue-white veil cannot be excluded | Regression: -, veil: +/- | Regression: no, veil: ?
No regression; the veil is extensive | No regression; the lesion has a blue-white veil | Regression absent and veil
Regression: none; veil: mild | network not definitely seen | positive for blue-white veil | No less than two cysts
not absent | never mind | none of your concern | - [ ] regression / - [x] veil | The lesion is not visible.
There is no lesion in the image. | I do not have enough information.
"""


@pytest.mark.parametrize("reply", replies(NEITHER_SIGN))
def test_no_is_said_of_all_that_was_asked_for(reply: str) -> None:
    """All that such a reply names is denied, and nothing is left over."""
    assert Reading("no") == YES_NO.read(reply)


@pytest.mark.parametrize("reply", replies(ONE_SIGN_AND_NOT_THE_OTHER))
def test_a_sign_is_not_lost_behind_the_denial_of_another(reply: str) -> None:
    """A reply such as "No regression but blue-white veil" was read as no, and the veil was lost."""
    reading = YES_NO.read(reply)
    assert (None, (Flag.CONTRADICTION,)) == (reading.value, reading.flags)


@pytest.mark.parametrize("reply", replies(ONE_SIGN_DENIED_THE_OTHER_OPEN))
def test_a_sign_that_may_be_there_is_not_denied(reply: str) -> None:
    """What is only named, or left open, beside a denial keeps the answer from being no."""
    reading = YES_NO.read(reply)
    assert reading.value is None
    assert Flag.UNREADABLE in reading.flags


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("Grade 0", "0"), ("0", "0"), ("Grade: 0.", "0"), ("not 0 but 1", "1"), ("0.5", None), ("0 or 1", None)],
)
def test_a_nought_that_is_an_option_denies_nothing(reply: str, expected: str | None) -> None:
    """A grade of 0 is a grade."""
    assert expected == one_of("0", "1", "2").read(reply).value


# --- one of a list


@pytest.mark.parametrize(
    "reply",
    replies("""
    oval | Oval. | not round but oval | not round, but oval | not round, oval | The lesion is not round; it is oval.
    oval rather than round | oval, not round | far from round: oval | Shape: oval | oval (not irregular)
    most likely oval | neither round nor irregular but oval | Is it round, oval or irregular? Oval.
    oval instead of round | The shape isn't irregular but oval
    """),
)
def test_the_option_that_is_affirmed_is_the_answer(reply: str) -> None:
    """Options that are only named to be denied do not count."""
    assert Reading("oval") == SHAPE.read(reply)


@pytest.mark.parametrize(
    ("reply", "flag"),
    [
        ("round to oval", Flag.CONTRADICTION),
        ("round and irregular", Flag.CONTRADICTION),
        ("It is round. It is not round.", Flag.CONTRADICTION),
        ("round or oval", Flag.UNREADABLE),
        ("possibly round", Flag.UNREADABLE),
        ("not round", Flag.UNREADABLE),
        ("non-irregular", Flag.UNREADABLE),
        ("surrounding", Flag.UNREADABLE),
        ("regular", Flag.UNREADABLE),
        ("round?", Flag.UNREADABLE),
        ("I'm sorry, I cannot help with that.", Flag.REFUSAL),
        ("", Flag.EMPTY),
        ("   ", Flag.EMPTY),
        ("<unused94>thought\nIt is oval", Flag.TRUNCATED),
    ],
)
def test_what_names_no_single_option_has_no_value(reply: str, flag: Flag) -> None:
    """None, and at least the flag that fits."""
    reading = SHAPE.read(reply)
    assert reading.value is None
    assert flag in reading.flags


def test_thinking_is_not_read() -> None:
    """An option that was only thought of is no answer, and the leak is noticed."""
    expected = Reading("oval", (Flag.THINKING_LEAK,))
    assert expected == SHAPE.read("<unused94>thought\nround or irregular<unused95>oval")


@pytest.mark.parametrize(
    ("options", "reply", "expected"),
    [
        (("present", "absent"), "The sign is absent.", "absent"),
        (("present", "absent"), "not present", None),
        (("yes", "no", "unsure"), "I am unsure", "unsure"),
        (("yes", "no", "unsure"), "No.", "no"),
        (("improved", "stable", "worsened"), "It is stable, not worsened.", "stable"),
        (("0", "1", "2"), "Grade 1", "1"),
        (("NONE", "SOME"), "none", "NONE"),
    ],
)
def test_options_may_be_words_that_mark_negation(options: tuple[str, ...], reply: str, expected: str | None) -> None:
    """An option is an option, even if it is "absent" or "unsure"; it comes back as it was declared."""
    assert expected == one_of(*options).read(reply).value


@pytest.mark.parametrize("options", [(), ("a", "A"), ("", "b"), ("+", "-")])
def test_impossible_options_are_refused(options: tuple[str, ...]) -> None:
    """A reader is valid once it is built."""
    with pytest.raises(ValueError, match="option"):
        one_of(*options)


# --- words


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("dark brown", ("brown",)),
        ("light brown and dark brown", ("brown",)),
        ("brown, no red", ("brown",)),
        ("brown without red or blue", ("brown",)),
        ("blue-white", ("white", "blue")),
        ("blue-white veil", ("white", "blue")),
        ("reddish-brown", ("brown", "red")),
        ("Brown and red; no blue", ("brown", "red")),
        ("red", ("red",)),
        ("Purple.", ("purple",)),
        ("grey", ("gray",)),
        ("dark greyish", ("gray",)),
        ("tan, brown", ("brown", "tan")),
        ("- black / - brown".replace(" / ", "\n"), ("black", "brown")),
    ],
)
def test_colours_are_read_as_they_are_said(reply: str, expected: tuple[str, ...]) -> None:
    """Defects 000-4 and 000-6: red and purple were turned into brown."""
    assert Reading(expected) == COLOUR.read(reply)


@pytest.mark.parametrize("reply", ["substantial darkness", "colourless", "no red", "tanned", "bored", "unknown"])
def test_no_colour_is_no_value(reply: str) -> None:
    """Defects 000-4 and 000-6: "substantial" was read as tan, and silence as brown."""
    reading = COLOUR.read(reply)
    assert (None, (Flag.UNREADABLE,)) == (reading.value, reading.flags)


# --- codes


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("NV", "NV"),
        ("nv.", "NV"),
        ("**NV**", "NV"),
        ("MELANOCYTIC NEVUS", "NV"),
        ("melanocytic naevus", "NV"),
        ("NV (melanocytic nevus)", "NV"),
        ("NV, NOT MEL", "NV"),
        ("not MEL but NV", "NV"),
        ("NV rather than MEL", "NV"),
        ("NV - no melanoma", "NV"),
        ("MEL is unlikely; NV", "NV"),
        ("NV, unlikely to be MEL", "NV"),
        ("BASAL CELL CARCINOMA", "BCC"),
        ("SEBORRHEIC KERATOSIS", "BKL"),
        ("seborrhoeic keratoses", "BKL"),
        ("Melanoma", "MEL"),
    ],
)
def test_a_code_or_its_name_is_the_code(reply: str, expected: str) -> None:
    """Defect 000-4: "MELANOCYTIC NEVUS" and "NV, NOT MEL" were read as melanoma."""
    assert Reading(expected) == CODE.read(reply)


@pytest.mark.parametrize(
    ("reply", "flag"),
    [
        ("NOT BCC", Flag.INVALID_CODE),
        ("INVALID INPUT", Flag.INVALID_CODE),
        ("camel", Flag.INVALID_CODE),
        ("possibly MEL", Flag.INVALID_CODE),
        ("I'm sorry, I cannot provide a diagnosis.", Flag.REFUSAL),
        ("MEL NV", Flag.MULTIPLE_CODES),
        ("NV or MEL", Flag.MULTIPLE_CODES),
        ("NV, rule out MEL", Flag.MULTIPLE_CODES),
        ("NV. Not NV.", Flag.CONTRADICTION),
    ],
)
def test_no_code_is_never_a_benign_one(reply: str, flag: Flag) -> None:
    """Defect 000-3: what could not be read became NV; now it is None with a flag."""
    reading = CODE.read(reply)
    assert reading.value is None
    assert flag in reading.flags


def test_a_long_answer_with_one_code_is_read_and_flagged() -> None:
    """Verbosity is noticed and costs nothing."""
    assert Reading("NV", (Flag.VERBOSE_OUTPUT,)) == CODE.read(
        "The observations taken together fit best with the class NV."
    )


AROUND = [
    (Flag.REFUSAL, "I'm sorry, as an AI I am unable to diagnose."),
    (Flag.THINKING_LEAK, "<think>hm</think>"),
    (Flag.SPECIAL_TOKEN_LEAK, "<end_of_turn>"),
    (Flag.GIBBERISH_REPEAT, "The the the the the the"),
]


@pytest.mark.parametrize(("flag", "noise"), AROUND)
@pytest.mark.parametrize(
    ("reader", "reply"),
    [(CODE, "NV"), (YES_NO, "yes"), (STRUCTURES, "dots"), (COLOUR, "brown")],
    ids=lambda one: str(one),
)
def test_what_stands_around_a_closed_answer_is_flagged(reader: Reader[Any], reply: str, flag: Flag, noise: str) -> None:
    """An answer that can be read is read, and somebody has to look at what else was said."""
    assert () == reader.read(reply).flags
    assert flag in reader.read(f"{reply}. {noise}").flags


# --- prose


def test_prose_is_cleaned_and_says_what_went() -> None:
    """The value holds no unfit sentence, and the reading holds it."""
    reading = prose().read("The shape is consistent. I cannot provide a diagnosis. The border is sharp.")
    assert "The shape is consistent. The border is sharp." == reading.value
    assert (Flag.REFUSAL,) == reading.flags
    assert ["I cannot provide a diagnosis."] == [gone.sentence for gone in reading.removed]


def test_prose_of_refusals_alone_is_no_value() -> None:
    """An apology is not a description."""
    reading = prose().read("I'm sorry, I cannot help.")
    assert reading.value is None
    assert {Flag.REFUSAL, Flag.CLEANING_EMPTIED} <= set(reading.flags)


# --- JSON


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"stones":[]}', {"stones": []}),
        (
            'Here is the result: {"stones":[{"size_mm":4}],"confidence":0.35,"note":"x"}',
            {"stones": [{"size_mm": 4}], "confidence": 0.35, "note": "x"},
        ),
        ('{"stones":[],"confidence":0.9} This is not a diagnosis.', {"stones": [], "confidence": 0.9}),
        ('```json\n{"stones":[],"confidence":0.2}', {"stones": [], "confidence": 0.2}),
        ('```\n{"stones":[]}\n```', {"stones": []}),
        ('As [1] says:\n```json\n{"stones":[]}\n```\nDone.', {"stones": []}),
        ('{"stones":[]} and again {"stones": []}', {"stones": []}),
        ('{"stones":[],"note":"a } and a ] in a string"}', {"stones": [], "note": "a } and a ] in a string"}),
    ],
)
def test_json_is_found_whole_wherever_it_stands(reply: str, expected: Any) -> None:
    """Defect 004-1: with any word around it, fields got lost and a confidence of 0.8 was invented."""
    assert Reading(expected) == JSON.read(reply)


def test_json_in_the_thinking_is_not_the_answer() -> None:
    """Defect 004-1: thinking was searched as well."""
    reading = JSON.read('<unused94>thought\n{"stones":[1]}<unused95>{"stones":[]}')
    assert ({"stones": []}, (Flag.THINKING_LEAK,)) == (reading.value, reading.flags)


@pytest.mark.parametrize(
    ("reply", "flag", "detail"),
    [
        ("There are no stones.", Flag.INVALID_JSON, "no JSON"),
        ('[{"size_mm":4}]', Flag.INVALID_JSON, r"\$ fails type"),
        ('{"confidence":0.8}', Flag.INVALID_JSON, "required"),
        ('{"stones":"two"}', Flag.INVALID_JSON, r"\$\.stones fails type"),
        ('{"stones":[],"extra":1}', Flag.INVALID_JSON, "additionalProperties"),
        ('{"stones":[{"size_mm":4}', Flag.TRUNCATED, "cut short"),
        ('{"stones":[{"stones":[]}', Flag.TRUNCATED, "cut short"),
        ('{"stones":[],}', Flag.INVALID_JSON, "not well formed"),
        ("{'stones':[]}", Flag.INVALID_JSON, "not well formed"),
        ("{stones: []}", Flag.INVALID_JSON, "not well formed"),
        ('{"stones":[],"confidence":NaN}', Flag.INVALID_JSON, "not well formed"),
        ('{"stones":[],"confidence":1e999}', Flag.INVALID_JSON, "not well formed"),
        ('{"stones":[1],"stones":[]}', Flag.INVALID_JSON, "not well formed"),
        ('{"stones":[1]} or {"stones":[2]}', Flag.CONTRADICTION, "several"),
        ("[" * 100_000, Flag.INVALID_JSON, "cut short"),
    ],
)
def test_what_is_no_json_of_the_schema_is_refused_with_the_place(reply: str, flag: Flag, detail: str) -> None:
    """Nothing is repaired, completed or taken out of something broken."""
    reading = JSON.read(reply)
    assert reading.value is None
    assert flag in reading.flags
    assert re.search(detail, reading.detail)


def test_the_reason_quotes_nothing_of_the_reply() -> None:
    """What a model says about a patient stays out of messages."""
    assert "Jane" not in JSON.read('{"stones":"Jane Doe"}').detail


def test_a_schema_that_is_none_is_refused() -> None:
    """The caller can mend it."""
    with pytest.raises(InvalidRequest, match="schema is not valid"):
        json_of({"type": "nonsense"})


def test_a_schema_never_reaches_out() -> None:
    """An address in a schema is not fetched; such a schema fits nothing."""
    reading = json_of({"$ref": "http://127.0.0.1:9/schema"}).read("{}")
    assert (None, (Flag.INVALID_JSON,)) == (reading.value, reading.flags)
    assert "outside" in reading.detail


# --- every reader


READERS: list[Reader[Any]] = [STRUCTURES, YES_NO, SHAPE, COLOUR, CODE, prose(("NV",)), plain(), JSON, json_of({})]
WORDS = st.sampled_from(
    [
        "no",
        "not",
        "dots",
        "yes",
        "none",
        ",",
        ".",
        "and",
        "or",
        "but",
        "are",
        "visible",
        "absent",
        "(",
        ")",
        ":",
        "\n",
        "- ",
        "?",
        "oval",
        "round",
        "NV",
        "MEL",
        "red",
        "{",
        "}",
        "[",
        '"stones":[]',
        "cannot",
        "see",
        "neither",
        "nor",
        "I'm sorry",
        "only",
        "<unused94>",
        "<unused95>",
        "non-",
        "1",
        "n't",
        "possibly",
        " ",
    ]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=25).map(" ".join))
def test_any_reply_has_a_value_or_a_flag(reply: str) -> None:
    """No reply breaks a reader, and no silence goes unexplained."""
    for reader in READERS:
        reading = reader.read(reply)
        assert reading.value is not None or reading.flags


@pytest.mark.parametrize(
    "piece",
    [
        "not ",
        "no dots ",
        "or dots ",
        "i cannot ",
        "? ",
        "a",
        "(no ",
        '{"a":',
        "[",
        "no, ",
        " ",
        "a - ",
        "a: - ",
        "(+) ",
        "=",
        "[ ] a\n",
        "0 ",
    ],
)
def test_reading_takes_time_in_proportion_to_the_reply(piece: str) -> None:
    """A reply that repeats itself to the last token is read in seconds at most on a slow machine."""
    reply = (piece * 100_000)[:100_000]
    begin = process_time()
    for reader in (STRUCTURES, YES_NO, CODE, JSON):
        reader.read(reply)
    assert process_time() - begin < 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. The glands are crowded.", "yes"),
        ("**NO**, they are round.", "no"),
        ("Nothing is seen.", None),
        ("Well, yes.", None),
        ("", None),
        ("no change at all", "no change"),
    ],
)
def test_a_text_opens_with_one_of_the_words_or_with_none(text: str, expected: str | None) -> None:
    """A whole word, whatever its case and the marks before it; the longer one where two fit."""
    assert expected == opening(text, ("yes", "no", "no change"))
