"""Laboratory pages: the model copies, code reads, and nothing that is not printed comes to be in the result."""

import json
from typing import Any

import fpdf
import numpy as np
import pytest

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Concern, Image, Modality, Source, Study
from medserve.imaging import intake, raster
from medserve.imaging.intake import Wanted
from medserve.reports import Report, as_text
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.lab_report import FIELDS, ROWS
from tests.golden_reports import keep, kept, steady
from tests.imaging import phantoms

GOLDEN = "lab-report"
DRAWING = DEMO / "drawings" / "page.png"
PAGE = raster.decode(DRAWING.read_bytes(), Limits())
KIND = "other"


def row(
    name: str | None, value: object, unit: str | None = None, range_: str | None = None, flag: str | None = None
) -> Any:
    return dict(zip(FIELDS, (name, value, unit, range_, flag), strict=True))


HAEMOGLOBIN = row("Haemoglobin", "11.2", "g/dL", "13.5 - 17.5", "L")
LEUCOCYTES = row("Leucocytes", "6.4", "10^3/\u00b5L", "4.0 - 10.0")
PLATELETS = row("Platelets", "1,050", "K/uL", "150 - 400", "HH")
CRP = row("CRP", "<0.3", "mg/L", "< 5.0")
NITRITE = row("Nitrite (urine)", "negative", None, "negative")
PAGES = [HAEMOGLOBIN, LEUCOCYTES, PLATELETS, CRP, NITRITE]


def copied(*rows: Any) -> str:
    return json.dumps(rows, ensure_ascii=False)


async def report(*replies: str | Reply, pages: int = 1, **options: Any) -> Report:
    """A report on drawn pages, made of these copies."""
    return await examine(find("lab-report"), Study((PAGE,) * pages), Scripted((KIND, *replies)), options=options)


async def results(*rows: Any) -> tuple[list[Any], Report]:
    made = await report(copied(*rows))
    assert isinstance(made.conclusion.data, list)
    return made.conclusion.data, made


def names(made: Report) -> list[Any]:
    """The results' names, None for a row that is none."""
    assert isinstance(made.conclusion.data, list)
    return [one["name"] if isinstance(one, dict) else None for one in made.conclusion.data]


async def golden() -> Any:
    """The whole report on a drawn page as JSON, without what differs from run to run."""
    study = await intake.read([DRAWING.read_bytes()], Limits(), Wanted(Modality.OTHER))
    made = await examine(find("lab-report"), study, Scripted((KIND, copied(*PAGES))))
    return steady(made)


async def test_the_golden_report() -> None:
    """The whole report on a page, prompts included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_lab_report
    """
    assert kept(GOLDEN) == await golden()


# --- what becomes of a copy ------------------------------------------------------------------------------------------


async def test_a_result_has_its_number_its_code_and_its_limits() -> None:
    """And where it lies, which code finds out, beside every text as it was printed."""
    (found,), made = await results(HAEMOGLOBIN)

    assert found == {
        "page": 1,
        "name": "Haemoglobin",
        "value": 11.2,
        "comparator": None,
        "unit": "g/dL",
        "low": 13.5,
        "high": 17.5,
        "position": "below",
        "flag": "low",
        "printed": {"value": "11.2", "unit": "g/dL", "range": "13.5 - 17.5", "flag": "L"},
    }
    assert ((), ()) == (made.conclusion.missing, made.flags)
    assert ("Haemoglobin (below)",) == made.conclusion.findings[0].value


async def test_a_bound_stays_a_bound() -> None:
    """Below 0.3 is no 0.3."""
    (found,), _made = await results(CRP)

    assert (0.3, "<", "within", None, 5.0) == tuple(
        found[name] for name in ("value", "comparator", "position", "low", "high")
    )


async def test_a_result_in_words_needs_neither_unit_nor_limits() -> None:
    """Nothing of it is missing."""
    (found,), made = await results(NITRITE)

    assert ("negative", None, None) == (found["value"], found["unit"], found["position"])
    assert () == made.conclusion.missing


async def test_nothing_is_converted() -> None:
    """A number has the unit that it was printed with, whatever others on the page have."""
    found, _made = await results(row("Glucose", "99", "mg/dL", "70 - 99"), row("Glucose", "5.5", "mmol/L", "3.9 - 5.5"))

    assert [(99, "mg/dL"), (5.5, "mmol/L")] == [(one["value"], one["unit"]) for one in found]


async def test_the_page_shows_how_its_numbers_are_written() -> None:
    """4.500 is four and a half thousand where another number has a decimal comma, and nobody's guess alone."""
    german, _made = await results(
        row("Leukozyten", "4.500", "/\u00b5l", "4.000 - 10.000"), row("Hb", "13,5", "g/dl", "12 - 16")
    )
    (alone,), made = await results(row("Leukozyten", "4.500", "/\u00b5l", "4.000 - 10.000"))

    assert (4500, 4000, 10000, "/uL") == tuple(german[0][name] for name in ("value", "low", "high", "unit"))
    assert (None, None, None) == (alone["value"], alone["low"], alone["high"])
    assert ("/0/value", "/0/low", "/0/high") == made.conclusion.missing


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (row("Sodium", None, "mmol/L", "135 - 145"), ["/0/value"]),
        (row("Sodium", "140", None, "135 - 145"), ["/0/unit"]),
        (row("Sodium", "140", "G/L", "135 - 145"), ["/0/unit"]),
        (row("Sodium", "140", "mmol/L", None), ["/0/low", "/0/high"]),
        (row("Sodium", "140", "mmol/L", "M: 1-2 F: 3-4"), ["/0/low", "/0/high"]),
        (row("Sodium", "14O", "mmol/L", "135 - 145"), ["/0/value"]),
        (row(None, "140", "mmol/L", "135 - 145"), ["/0/name"]),
        (row("Sodium", "140", "mmol/L", "135 - 145", "?"), ["/0/flag"]),
    ],
)
async def test_what_is_not_printed_or_not_read_is_null_and_missing(given: Any, missing: list[str]) -> None:
    """By its place in the data, with a flag, and with no value in its stead."""
    (found,), made = await results(given)

    assert missing == list(made.conclusion.missing)
    assert all(found[place.rpartition("/")[2]] is None for place in missing)
    assert Flag.INCOMPLETE in made.flags
    assert made.needs_review


@pytest.mark.parametrize(
    ("rows", "raised"),
    [
        ([row("K", "6.1", "mmol/L", "3.5 - 5.1", "H")], False),
        ([row("K", "6.1", "mmol/L", "3.5 - 5.1", "L")], True),
        ([row("K", "4.1", "mmol/L", "3.5 - 5.1", "H")], True),
        ([row("K", "6.1", "mmol/L", "3.5 - 5.1")], False),
        ([row("K", "6.1", "mmol/L", "3.5 - 5.1"), row("Na", "150", "mmol/L", "135 - 145", "H")], True),
        ([row("K", "4.1", "mmol/L", "3.5 - 5.1"), row("Na", "150", "mmol/L", "135 - 145", "H")], False),
    ],
)
async def test_a_mark_is_held_against_the_range(rows: list[Any], raised: bool) -> None:
    """Where they disagree, one of them was misread, or the laboratory erred: a person has to look."""
    _found, made = await results(*rows)

    assert raised is (Flag.MARK_DISAGREEMENT in made.flags)


async def test_an_empty_page_has_no_results() -> None:
    """That is an answer, and nothing is missing in it; but nothing was held against a range either."""
    found, made = await results()

    assert ([], (), ()) == (found, made.conclusion.missing, made.flags)
    assert made.conclusion.findings[0].value is None


@pytest.mark.parametrize(
    ("rows", "value", "flags"),
    [
        ([LEUCOCYTES, NITRITE], (), ()),
        ([LEUCOCYTES, row("Nitrite (urine)", "positive", None, "negative")], None, (Flag.INCOMPLETE,)),
        ([LEUCOCYTES, row("Sodium", "140", "mmol/L")], None, (Flag.INCOMPLETE,)),
        ([HAEMOGLOBIN, row("Sodium", "140", "mmol/L")], ("Haemoglobin (below)",), (Flag.INCOMPLETE,)),
        ([LEUCOCYTES, "no row"], None, (Flag.INCOMPLETE,)),
    ],
    ids=["all within", "another word", "no range", "one outside, one unknown", "no row"],
)
async def test_that_nothing_is_outside_is_said_only_where_all_was_compared(
    rows: list[Any], value: Any, flags: tuple[Flag, ...]
) -> None:
    """Silence about a result whose range was not read is no good news."""
    (_found, made) = await results(*rows)

    assert (value, flags) == (made.conclusion.findings[0].value, made.conclusion.findings[0].flags)


# --- copies that break off, and others -------------------------------------------------------------------------------


async def test_of_a_copy_that_breaks_off_the_whole_rows_are_given() -> None:
    """And the place of the first one that is not is missing."""
    made = await report(copied(HAEMOGLOBIN, LEUCOCYTES)[:-40])

    assert isinstance(made.conclusion.data, list)
    assert ["Haemoglobin", None] == names(made)
    assert "/1" in made.conclusion.missing
    assert {Flag.INVALID_JSON, Flag.TRUNCATED, Flag.INCOMPLETE} <= set(made.flags)


@pytest.mark.parametrize("reply", ["I cannot read this page.", "", '{"results": []}', "[[]]", '["Sodium 140"]'])
async def test_what_is_no_copy_gives_no_result(reply: str) -> None:
    """A page that was not read is not a page without results."""
    made = await report(reply)

    assert [None] == made.conclusion.data or made.conclusion.data == [None, None]
    assert "/0" in made.conclusion.missing
    assert made.conclusion.findings[0].value is None
    assert Flag.INCOMPLETE in made.flags


async def test_a_row_that_does_not_fit_is_null_and_the_others_stand() -> None:
    """Its place is kept, so that the pointers mean what they say."""
    made = await report(copied(HAEMOGLOBIN, {"name": "Sodium"}, LEUCOCYTES))

    assert isinstance(made.conclusion.data, list)
    assert ["Haemoglobin", None, "Leucocytes"] == names(made)
    assert "/1" in made.conclusion.missing
    assert Flag.INVALID_JSON in made.flags


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_each_page_is_one_question_about_itself() -> None:
    """The results of all come in one list, each with its page."""
    made = await report(copied(HAEMOGLOBIN), copied(LEUCOCYTES, CRP), pages=2)

    assert isinstance(made.conclusion.data, list)
    assert [1, 2, 2] == [one["page"] for one in made.conclusion.data if isinstance(one, dict)]
    assert ["Page 1", "Page 2"] == [step.name for step in made.steps[1:]]
    assert [1, 1, 1] == [len(step.images) for step in made.steps]


async def test_pages_are_chosen() -> None:
    """By their number, from 1."""
    made = await chosen(3, [3])

    assert ["Page 3"] == [step.name for step in made.steps[1:]]
    assert isinstance(made.conclusion.data, list)
    assert [3] == [one["page"] for one in made.conclusion.data if isinstance(one, dict)]


async def chosen(count: int, pages: list[int]) -> Report:
    engine = Scripted((KIND, copied(LEUCOCYTES)))
    return await examine(find("lab-report"), Study((PAGE,) * count), engine, options={"pages": pages})


@pytest.mark.parametrize("pages", [[4], [0], [-1], [1, 1]])
async def test_a_page_that_there_is_not_is_refused(pages: list[int]) -> None:
    """With the field's name."""
    with pytest.raises(InvalidRequest) as caught:
        await chosen(3, pages)

    assert "options.pages" == caught.value.param


def document() -> bytes:
    """Two pages of results, with a name in the head of each."""
    made = fpdf.FPDF()
    made.set_font("helvetica", size=11)
    for _page in range(2):
        made.add_page()
        made.multi_cell(0, 8, "PLANTED^NAME\n" + "Haemoglobin    11.2 g/dL    13.5 - 17.5    L\n" * 20)
    return bytes(made.output())


async def test_a_pdf_is_read_page_by_page() -> None:
    """Its pages go in by the one door; that a name may stand on them is said."""
    study = await intake.read([document()], Limits(), Wanted(Modality.OTHER))
    made = await examine(find("lab-report"), study, Scripted((KIND, copied(HAEMOGLOBIN), copied(LEUCOCYTES))))

    assert isinstance(made.conclusion.data, list)
    assert 2 == len(made.conclusion.data)
    assert [Concern.BURNED_IN_TEXT.value] == [one.name for one in made.study.concerns]
    assert "PLANTED" not in made.model_dump_json()


# --- persons ---------------------------------------------------------------------------------------------------------


async def test_nobody_is_asked_for() -> None:
    """And the schema that binds the answer has no place for anybody."""
    engine = Scripted((KIND, copied()))
    await examine(find("lab-report"), Study((PAGE,)), engine)
    asked = engine.history[-1]

    assert "Copy nothing about persons" in str(asked.messages[-1].parts[-1])
    assert ROWS == asked.schema
    assert ROWS["items"]["additionalProperties"] is False
    assert set(FIELDS) == set(ROWS["items"]["properties"])


@pytest.mark.parametrize("name", ["Patient", "Patient name:", "Date of birth", "DOB", "MRN", "Sex"])
async def test_what_was_copied_of_a_person_is_dropped(name: str) -> None:
    """It is in no result, no finding and no place that is missing. The step keeps the answer word for word."""
    found, made = await results(row(name, "PLANTED"), HAEMOGLOBIN)

    assert ["Haemoglobin"] == [one["name"] for one in found]
    assert "PLANTED" not in made.conclusion.model_dump_json()
    assert "PLANTED" not in as_text(made)


# --- what is no page -------------------------------------------------------------------------------------------------


def refused(made: Report) -> str:
    assert made.domain is not None
    assert ((Flag.NOT_ASSESSABLE,), None) == (made.conclusion.flags, made.conclusion.data)
    return "; ".join(check.detail for check in made.domain.checks if check.passed is False)


@pytest.mark.parametrize("name", ["cat", "lesion-mel", "colon-normal", "kidney-left", "chest-normal"])
async def test_what_is_no_page_is_refused_with_the_reason(name: str) -> None:
    """No model is asked what it sees."""
    picture = raster.decode((DEMO / "drawings" / f"{name}.png").read_bytes(), Limits())
    engine = Scripted((KIND, copied(HAEMOGLOBIN)))

    assert "it is no page" in refused(await examine(find("lab-report"), Study((picture,)), engine))
    assert not engine.history


async def test_a_ct_is_refused_by_what_it_says() -> None:
    """Files that say how they were made are believed."""
    slices = await intake.read([phantoms.series(phantoms.abdomen())[0]], Limits())

    assert "stated to be CT" in refused(await examine(find("lab-report"), slices, Scripted(("other",))))


async def test_of_a_bright_picture_without_one_shade_the_model_decides() -> None:
    """A page photographed in a shadow is like pale skin to a histogram."""
    slope = np.linspace(140, 250, 300).astype(np.uint8)
    pixels = np.repeat(np.repeat(slope[None, :, None], 300, axis=0), 3, axis=2)
    image = Image(pixels, Source("PNG", "RGB", 300, 300))
    skin = Reply(
        "dermoscopy",
        label_logprobs={"dermoscopy": -0.01, "histology": -9.0, "CT": -9.0, "chest X-ray": -9.0, "other": -6.0},
    )
    page = Reply(
        "other", label_logprobs={"dermoscopy": -6.0, "histology": -9.0, "CT": -9.0, "chest X-ray": -9.0, "other": -0.01}
    )

    assert "dermoscopy" in refused(
        await examine(find("lab-report"), Study((image,)), Scripted((skin, copied(HAEMOGLOBIN))))
    )
    made = await examine(find("lab-report"), Study((image,)), Scripted((page, copied(HAEMOGLOBIN))))
    assert made.conclusion.data


if __name__ == "__main__":
    keep(GOLDEN, golden())
