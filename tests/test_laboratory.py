"""What laboratories print: numbers with their signs, ranges, marks and units, and what is nobody's to guess."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as some
from lark.exceptions import UnexpectedInput
from ucumvert import get_ucum_parser

from medserve.laboratory import (
    UNITS,
    Comparator,
    Limits,
    Mark,
    Number,
    Position,
    Sign,
    decimal_sign,
    disagree,
    limits,
    mark,
    number,
    position,
    result,
    unit,
)

# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sign", "expected"),
    [
        ("13.5", None, 13.5),
        ("13,5", None, 13.5),
        ("140", None, 140),
        ("0.005", None, 0.005),
        ("1,234.5", None, 1234.5),
        ("1.234,5", None, 1234.5),
        ("1,234,567", None, 1234567),
        ("150 000", None, 150000),
        ("1'250", None, 1250),
        ("1 250,5", None, 1250.5),
        ("-2.5", None, -2.5),
        ("\u22122,5", None, -2.5),
        ("1,234", ".", 1234),
        ("1,234", ",", 1.234),
        ("1.020", ".", 1.02),
        ("4.500", ",", 4500),
        ("12345.678", None, 12345.678),
    ],
)
def test_a_number_is_read_as_it_is_printed(text: str, sign: Sign | None, expected: float) -> None:
    """With the point or the comma, and with what parts thousands."""
    assert expected == number(text, sign)


@pytest.mark.parametrize("text", ["1,234", "4.500", "12.345"])
def test_a_sign_that_may_mean_two_things_is_not_guessed(text: str) -> None:
    """4.500 white cells a microlitre in Berlin are 4.5 in Boston."""
    assert number(text, None) is None


@pytest.mark.parametrize(
    "text", ["", ".", "5.", "1.2.3", "12,34,567", "1,23.4.5", "15 00", "13.5 H", "x", "1e5", "NaN", "٣"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    """Nothing is repaired."""
    assert number(text, ".") is None


@given(some.decimals(-9999, 9999, places=2, allow_nan=False))
def test_every_decimal_is_read_with_either_sign(value: object) -> None:
    """Two places show which sign parts them."""
    assert float(str(value)) == number(str(value), None) == number(str(value).replace(".", ","), None)


@given(some.text(alphabet="0123456789.,-+ '<>=HLab", max_size=12), some.sampled_from([None, ".", ","]))
def test_whatever_is_printed_nothing_is_raised(text: str, sign: Sign | None) -> None:
    """And a number that is read has just the digits that were printed."""
    read = number(text, sign)
    limits(text, sign)
    result(text, sign)
    if read is not None:
        printed = re.sub(r"\D", "", text).lstrip("0")
        assert printed.startswith(re.sub(r"\D", "", f"{abs(read):.10f}".rstrip("0")).lstrip("0"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["13,5", "1.234"], ","),
        (["13.5", "1,234", "3.5 - 5.1"], "."),
        (["0,123"], ","),
        (["13.5", "13,5"], None),
        (["140", "1,234", "1.234"], None),
        (["1,234,567"], None),
        (["< 0.5"], "."),
        ([], None),
    ],
)
def test_the_page_shows_what_parts_its_decimals(texts: list[str], expected: Sign | None) -> None:
    """Or it does not, or it shows both."""
    assert expected == decimal_sign(texts)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5.4", Number(5.4)),
        ("<0.01", Number(0.01, "<")),
        ("\u2265 90", Number(90, ">=")),
        ("> 1,500.0", Number(1500, ">")),
        ("negative", "negative"),
        ("1:160", "1:160"),
        ("2+", "2+"),
        ("+++", "+++"),
        ("0 - 2", "0 - 2"),
        ("A Rh positive", "A Rh positive"),
    ],
)
def test_a_result_is_a_number_a_bound_or_words(text: str, expected: Number | str) -> None:
    """Titres, grades and counts in a field are words."""
    assert expected == result(text, None)


@pytest.mark.parametrize("text", ["", "13.5 H", "13.5 g/dL", "< x", "<", "1,234", "12/80", "5.4*"])
def test_what_looks_like_a_number_and_is_none_is_not_read(text: str) -> None:
    """It would otherwise pass as a result in words."""
    assert result(text, None) is None


# --- reference ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5 - 5.1", Limits(3.5, 5.1)),
        ("3.5-5.1", Limits(3.5, 5.1)),
        ("(13,5\u201317,5)", Limits(13.5, 17.5)),
        ("[4.5 to 11.0]", Limits(4.5, 11.0)),
        ("4 bis 10", Limits(4, 10)),
        ("-2.0 - 3.0", Limits(-2, 3)),
        ("-3 - -1", Limits(-3, -1)),
        ("-3--1", Limits(-3, -1)),
        ("< 5.0", Limits(None, 5.0, strict=True)),
        ("\u2264 5.0", Limits(None, 5.0)),
        ("up to 40", Limits(None, 40)),
        ("> 60", Limits(60, None, strict=True)),
        (">=60", Limits(60, None)),
        ("135 - 145 mmol/L", Limits(135, 145)),
    ],
)
def test_a_printed_range_has_its_limits(text: str, expected: Limits) -> None:
    """In the ways that laboratories print them."""
    assert expected == limits(text, None, "mmol/L")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "negative",
        "M: 13-17 F: 12-15",
        "5.1 - 3.5",
        "3-5-7",
        "see comment",
        "4.5 - 11.0 K/uL",
        "1,000 - 2,000",
        "-",
        "3.5 -",
    ],
)
def test_a_range_that_takes_a_choice_has_no_limits(text: str) -> None:
    """Whose range it is, and in which unit, nobody guesses."""
    assert limits(text, None, "mmol/L") is None


NUMBERS = some.integers(-20, 20).map(float)
COMPARATORS = some.sampled_from(["", "<", "<=", ">", ">="])


def possible(read: Number) -> list[float]:
    """Values, on a grid finer than all limits, that a result may stand for."""
    grid = [step / 4 for step in range(-160, 161)]
    holds = {"": float.__eq__, "<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}
    return [value for value in grid if holds[read.comparator](value, read.value)]


@given(NUMBERS, COMPARATORS, some.none() | NUMBERS, some.none() | NUMBERS, some.booleans())
def test_a_position_holds_for_every_value_that_a_result_may_stand_for(
    value: float, comparator: Comparator, low: float | None, high: float | None, strict: bool
) -> None:
    """Told is what is certain, and all of it."""
    if low is not None and high is not None and low + 1 >= high:
        return
    read, range_ = Number(value, comparator), Limits(low, high, strict)

    def where(one: float) -> Position:
        if low is not None and (one < low or (strict and one == low)):
            return Position.BELOW
        return Position.ABOVE if high is not None and (one > high or (strict and one == high)) else Position.WITHIN

    places = {where(one) for one in possible(read)}

    assert position(read, range_) == (places.pop() if len(places) == 1 else None)


# --- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H", Mark.HIGH),
        ("(L)", Mark.LOW),
        ("\u2193", Mark.LOW),
        ("*", Mark.ABNORMAL),
        ("Normal", Mark.NORMAL),
        ("+", Mark.HIGH),
    ],
)
def test_a_mark_says_high_low_abnormal_or_normal(text: str, expected: Mark) -> None:
    """In the ways that laboratories print it."""
    assert expected is mark(text)


@pytest.mark.parametrize("text", ["", "X", "see below", "C"])
def test_a_mark_that_is_not_known_says_nothing(text: str) -> None:
    """It is not taken for normal."""
    assert mark(text) is None


@pytest.mark.parametrize(
    ("printed", "found", "marked", "expected"),
    [
        (Mark.HIGH, Position.ABOVE, True, False),
        (Mark.HIGH, Position.WITHIN, True, True),
        (Mark.LOW, Position.ABOVE, True, True),
        (Mark.ABNORMAL, Position.BELOW, True, False),
        (Mark.ABNORMAL, Position.WITHIN, True, True),
        (Mark.NORMAL, Position.BELOW, True, True),
        (None, Position.BELOW, True, True),
        (None, Position.BELOW, False, False),
        (None, Position.WITHIN, True, False),
    ],
)
def test_a_mark_is_held_against_the_range(printed: Mark | None, found: Position, marked: bool, expected: bool) -> None:
    """No mark means something only where the page marks others."""
    assert expected is disagree(printed, found, marked=marked)


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g/dL", "g/dL"),
        ("g/dl", "g/dL"),
        ("G/DL", "g/dL"),
        ("\u00b5mol/l", "umol/L"),
        ("\u03bcg/mL", "ug/mL"),
        ("mcg/dL", "ug/dL"),
        ("mmol / L", "mmol/L"),
        ("mEq/L", "meq/L"),
        ("10^3/\u00b5L", "10*3/uL"),
        ("x10E9/L", "10*9/L"),
        ("\u00d710\u2079/L", "10*9/L"),
        ("10*12/L", "10*12/L"),
        ("K/uL", "10*3/uL"),
        ("M/uL", "10*6/uL"),
        ("T/L", "10*12/L"),
        ("Gpt/l", "10*9/L"),
        ("U/L", "U/L"),
        ("IU/L", "[IU]/L"),
        ("mIU/L", "m[IU]/L"),
        ("\u00b5IU/mL", "u[IU]/mL"),
        ("%", "%"),
        ("fL", "fL"),
        ("mm/h", "mm/h"),
        ("mL/min/1.73 m\u00b2", "mL/min/{1.73_m2}"),
        ("/HPF", "/[HPF]"),
    ],
)
def test_a_printed_unit_has_its_code(text: str, expected: str) -> None:
    """K/uL is no kelvin, and T/L no tesla."""
    assert expected == unit(text)


@pytest.mark.parametrize("text", ["", "G/L", "m/uL", "units", "mg/dLL", "10^5/L", "g", "Kelvin", "mg/dL or mmol/L"])
def test_a_unit_that_is_not_known_or_may_mean_two_has_no_code(text: str) -> None:
    """G/L is giga a litre on one page and gram a litre, in capitals, on another."""
    assert unit(text) is None


def test_every_code_is_ucum() -> None:
    """As an independent parser of UCUM's grammar reads it."""
    parser = get_ucum_parser()
    for code in sorted(set(UNITS.values())):
        parser.parse(code)


def test_the_parser_refuses_what_is_no_ucum() -> None:
    """So that the test before this one can fail."""
    parser = get_ucum_parser()
    for code in ("IU/L", "mEq/L", "mmHg", "sec", "mcg/dL"):
        with pytest.raises(UnexpectedInput):
            parser.parse(code)
