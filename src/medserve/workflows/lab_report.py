"""A page of laboratory results becomes JSON: the model copies what is printed, and code reads the copy.

The model is asked for texts alone, exactly as they are printed. Numbers, limits, UCUM codes and what lies outside its
range are made from them by rule (`medserve.laboratory`), beside the printed texts and never in their place. What is not
printed, or cannot be read, is null and listed as missing. Nobody's name is asked for, and the result has no place for
one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from pydantic import Field, field_validator

from medserve import laboratory
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.images import Image, Modality, Study
from medserve.laboratory import Mark, Number, Position, Sign
from medserve.readers import json_of
from medserve.recovery import recover
from medserve.reports import Check, Conclusion, Finding
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow, once

FIELDS = ("name", "value", "unit", "range", "flag")
COPY = (
    "This page shows laboratory results. Copy every result, in the order of the page, into a JSON list of objects: "
    '[{"name": "...", "value": "...", "unit": "...", "range": "...", "flag": "..."}]. '
    "name is the test, value its result, unit its unit, range its reference range, flag the mark for high or low. "
    "Copy each text exactly as it is printed; do not convert and do not calculate. Write null for what is not printed "
    "or cannot be read. Copy nothing about persons, and answer with the JSON list only."
)
MOST_ROWS = 200
"""Results on one page; close print has a hundred."""
_TEXT = {"type": ["string", "null"], "maxLength": 200}
ROW: dict[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(FIELDS, _TEXT),
        "value": {"type": ["string", "number", "null"], "maxLength": 200},
    },
    "required": list(FIELDS),
    "additionalProperties": False,
}
ROWS: dict[str, Any] = {"type": "array", "maxItems": MOST_ROWS, "items": ROW}
PERSONAL = frozenset(
    [
        "patient",
        "patient name",
        "name",
        "surname",
        "first name",
        "last name",
        "patient id",
        "id",
        "mrn",
        "case number",
        "date of birth",
        "dob",
        "birth date",
        "birthdate",
        "age",
        "sex",
        "gender",
        "address",
        "phone",
        "insurance",
        "insurance number",
        "social security number",
        "ssn",
        "physician",
        "doctor",
        "ordering physician",
        "referred by",
        "requested by",
        "ward",
        "accession number",
        "barcode",
    ]
)
"""Names of what stands in the head of a page and is no result: should the model copy it, it is dropped."""
MOST_PAGES = 16
LONGEST_COPY = 4000
"""Tokens of a page's copy where nobody says how many."""


class LabOptions(Options):
    """What a caller may choose about a laboratory page."""

    pages: tuple[int, ...] = Field((), max_length=MOST_PAGES, description="which pages are read, from 1; all of them")
    max_tokens: int | None = Field(
        None, ge=1, le=8192, description="tokens for one page, a result takes about 40; 4000, or half of the context"
    )

    @field_validator("pages")
    @classmethod
    def _counted(cls, pages: tuple[int, ...]) -> tuple[int, ...]:
        if any(page < 1 for page in pages) or len(set(pages)) != len(pages):
            raise ValueError("pages are counted from 1, and each is named once")
        return pages


async def run(study: Study, consult: Consult, options: LabOptions) -> Conclusion:
    """One question a page; what was copied from each is read by rule."""
    pages = options.pages or tuple(range(1, len(study.images) + 1))
    if max(pages) > len(study.images):
        raise InvalidRequest(
            f"page {max(pages)} was asked for and there are {len(study.images)}", param="options.pages"
        )
    most = options.max_tokens or min(LONGEST_COPY, consult.room)
    questions = [
        Question(f"Page {page}", COPY, json_of(ROWS), most, pictures=(page - 1,), constrain=True) for page in pages
    ]
    copied = await consult.ask_all(questions)
    return concluded(list(zip(pages, copied, strict=True)))


def concluded(copied: Sequence[tuple[int, Answer[Any]]]) -> Conclusion:
    """The results of all pages as one list, and what is missing in it."""
    results: list[dict[str, Any] | None] = []
    missing: list[str] = []
    flags = [flag for _page, answer in copied for flag in answer.flags]
    for page, answer in copied:
        rows, whole = _rows(answer)
        found = _page(page, rows)
        missing += [f"/{len(results) + place}{field}" for place, one in enumerate(found) for field in _missing(one)]
        results += found
        if not whole and (not found or found[-1] is not None):
            missing.append(f"/{len(results)}")  # what the rest of this page would have begun with
            results.append(None)
        flags += _contradicted(found)
    if missing:
        flags.append(Flag.INCOMPLETE)
    finding = _outside(results, f"Page {copied[0][0]}")
    return Conclusion(findings=(finding,), data=results, missing=tuple(missing), flags=once(flags))


def _outside(results: Sequence[dict[str, Any] | None], step: str) -> Finding:
    """The results outside their range; that there is none is said only where each was held against one."""
    outside = tuple(_told(one) for one in results if one and one["position"] in {Position.BELOW, Position.ABOVE})
    known = all(map(_is_held, results))
    return Finding(
        name="Outside the printed range",
        value=outside if outside or (results and known) else None,
        step=step,
        flags=() if known else (Flag.INCOMPLETE,),
    )


def _is_held(result: dict[str, Any] | None) -> bool:
    """Whether it is known of a result where it lies: by its limits, or as the very word that it should be."""
    if result is None or result["value"] is None:
        return False
    wanted = result["printed"]["range"]
    return result["position"] is not None or str(result["value"]).casefold() == (wanted or "").casefold()


def _rows(answer: Answer[Any]) -> tuple[list[Any], bool]:
    """What was copied from a page, row by row, and whether that is all: of a list that breaks off, its whole rows."""
    if answer.value is not None:
        return answer.value, True
    found = recover(answer.text)
    rows = found.value if not found.error else found.partial
    return (rows, not found.error) if isinstance(rows, list) else ([], False)


_FITS = Draft202012Validator(ROW)


def _page(page: int, rows: Sequence[Any]) -> list[dict[str, Any] | None]:
    """The results in a page's rows, in their order; None for a row that is none, and nothing for persons."""
    copied = [_texts(row) if _FITS.is_valid(row) else None for row in rows]
    sign = laboratory.decimal_sign(text for row in copied if row for text in (row["value"], row["range"]) if text)
    return [row and _result(page, row, sign) for row in copied if row is None or not _personal(row)]


def _texts(row: dict[str, Any]) -> dict[str, str | None]:
    """A row's texts without blanks around them; an empty one is none, and a number is what was printed of it."""
    return {name: str(row[name]).strip() or None if row[name] is not None else None for name in FIELDS}


def _personal(row: dict[str, str | None]) -> bool:
    return (row["name"] or "").strip(" :.#").lower() in PERSONAL


def _result(page: int, row: dict[str, str | None], sign: Sign | None) -> dict[str, Any]:
    """One result: what the rules read, and under `printed` what it was read from."""
    read = laboratory.result(row["value"], sign) if row["value"] else None
    limits = laboratory.limits(row["range"], sign, row["unit"] or "") if row["range"] else None
    number = read if isinstance(read, Number) else None
    position = laboratory.position(number, limits) if number and limits else None
    return {
        "page": page,
        "name": row["name"],
        "value": number.value if number else read,
        "comparator": number.comparator or None if number else None,
        "unit": laboratory.unit(row["unit"]) if row["unit"] else None,
        "low": limits.low if limits else None,
        "high": limits.high if limits else None,
        "position": position,
        "flag": laboratory.mark(row["flag"]) if row["flag"] else None,
        "printed": {name: row[name] for name in FIELDS[1:]},
    }


def _missing(result: dict[str, Any] | None) -> Iterator[str]:
    """Where a result has null for want of print or of a rule; words need no unit and no limits."""
    if result is None:
        yield ""
        return
    printed = result["printed"]
    counted = isinstance(result["value"], float) or result["value"] is None
    for name in ("name", "value"):
        if result[name] is None:
            yield f"/{name}"
    if result["unit"] is None and (counted or printed["unit"]):
        yield "/unit"
    if result["low"] is None and result["high"] is None and (counted or _is_range(printed["range"])):
        yield from ("/low", "/high")
    if result["flag"] is None and printed["flag"]:
        yield "/flag"


def _is_range(text: str | None) -> bool:
    """Whether a text would have limits in it; "negative" is what a result in words should be."""
    return text is not None and any(character.isdecimal() for character in text)


def _contradicted(results: Sequence[dict[str, Any] | None]) -> list[Flag]:
    """Whether a printed mark and the printed range disagree about any result of a page."""
    found = [result for result in results if result is not None]
    marked = any(result["flag"] in {Mark.HIGH, Mark.LOW, Mark.ABNORMAL} for result in found)
    unread = [result for result in found if result["printed"]["flag"] and result["flag"] is None]
    held = [result for result in found if result["position"] is not None and result not in unread]
    wrong = any(laboratory.disagree(one["flag"], one["position"], marked=marked) for one in held)
    return [Flag.MARK_DISAGREEMENT] if wrong else []


def _told(result: dict[str, Any]) -> str:
    return f"{result['name'] or 'a test without a name'} ({result['position']})"


# --- what is a page ---------------------------------------------------------------------------------------------------

BRIGHT = 128
"""Of 255, what paper has at least in every colour, in a photograph too."""
COLOURLESS = 48
"""Levels by which the colours of paper differ at most under yellow light."""
PAPER = 0.6
"""Share of paper that a page has, whatever is printed on it."""
ONE_SHADE = 0.5
"""Share of one shade, of 32, that a scanned or drawn page has; a photographed one may have a shadow on it."""


def paper(study: Study) -> Check:
    """Whether every picture is mostly bright and without colours, as a printed page is.

    So is pale skin. Where there is not one shade in most of it, that it is paper cannot be told.
    """
    seen = [_seen(image) for image in study.images]
    name, least = "paper", min(share for share, _shade in seen)
    if least < PAPER:
        return Check(name=name, passed=False, detail=f"{least:.0%} of a picture is as bright as paper: it is no page")
    if min(shade for _share, shade in seen) < ONE_SHADE:
        return Check(name=name, passed=None, detail="bright as paper, and as other things are")
    return Check(name=name, passed=True, detail="as it should be")


def _seen(image: Image) -> tuple[float, float]:
    """The shares of a picture that may be paper, and that the commonest shade of it has."""
    pixels = image.pixels[::4, ::4].astype(np.int16)
    low, high = pixels.min(axis=2), pixels.max(axis=2)
    bright = (low >= BRIGHT) & (high - low <= COLOURLESS)
    shades = np.bincount(low[bright] // 8, minlength=32)
    return float(bright.mean()), float(shades.max() / bright.size)


workflow = Workflow(
    name="lab-report",
    title="Laboratory results",
    summary="A page of laboratory results, as a picture or a PDF, as JSON: names, values, UCUM units and ranges.",
    modality=Modality.OTHER,
    run=run,
    options=LabOptions,
    max_images=MOST_PAGES,
    domain=Domain(
        takes="pages of printed laboratory results, as pictures or as one PDF",
        modalities=frozenset({Modality.OTHER, Modality.PHOTOGRAPH}),
        looks=(paper,),
        kind="other",
    ),
)
