"""A report as people read it is made once, of sections and blocks; Markdown, HTML and PDF say the very same thing.

Whatever comes from a model or a file is text here, and nothing but text: control characters and marks that turn the
direction of writing are replaced, and what a character means to a format is that format's own care.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from json import dumps
from typing import Literal
from unicodedata import category

import numpy as np
import PIL.Image

from medserve.errors import ImageError
from medserve.exports import Original
from medserve.images import Image, Study
from medserve.imaging import intake
from medserve.reports import (
    UNITS,
    Box,
    Control,
    Domain,
    Finding,
    QuotedTable,
    Report,
    calibrated_how,
    in_words,
    lacking,
)
from medserve.settings import Limits
from medserve.threads import in_thread

MOST_PICTURES = 24
"""Pictures of the study that a document shows; of more, evenly spaced ones."""
LONGEST_SIDE = 896
"""Pixels of a shown picture's longer side: as many as the model itself sees."""
MOST_FIGURES = 24
"""Figures of a report that a document shows; of the others it says that they are there."""
PNG = b"\x89PNG\r\n\x1a\n"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that make text appear in another order than it has."""


@dataclass(frozen=True)
class Words:
    """A paragraph; `tone` says whose words they are or how loud they are said."""

    text: str
    tone: Literal["plain", "quoted", "warning", "code"] = "plain"


@dataclass(frozen=True)
class Grid:
    """A table: the first row of `rows` is not the head; the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Shown:
    """A picture of a report: PNG, what it shows in words, and what stands under it."""

    png: bytes
    alternative: str
    caption: str
    width: int
    height: int


Block = Words | Grid | Shown


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report as people read it: the notice comes first, and again wherever a page ends."""

    title: str
    state: str
    notice: str
    sections: tuple[Section, ...]


async def illustrated(report: Report, original: Original) -> Document:
    """The report's document with its figures, and the study's pictures where it is at hand.

    A report may come from anywhere: its figures are decoded where all files of strangers are, and drawn anew.
    """
    figures = [await _decoded(figure.png, original.limits) for figure in report.conclusion.figures[:MOST_FIGURES]]
    return await in_thread(document, report, original.study, figures)


async def _decoded(encoded: str, limits: Limits) -> Image | None:
    """A figure's pixels; None where it is no PNG that is read here."""
    try:
        data = base64.b64decode(encoded, validate=True)
        if not data.startswith(PNG):
            return None
        return (await intake.read([data], limits)).images[0]
    except (binascii.Error, ImageError):
        return None


def document(report: Report, study: Study | None = None, figures: Sequence[Image | None] = ()) -> Document:
    """The report's document with these figures. Blocking: pictures are made smaller."""
    parts: tuple[tuple[str, Sequence[Block]], ...] = (
        ("About this report", _about(report)),
        ("Whether the pictures are what the workflow takes", _domain(report.domain)),
        ("Findings", _findings(report)),
        ("Classification", _classification(report)),
        ("Description", _description(report)),
        ("Data", _data(report)),
        ("Places", _places(report.conclusion.boxes)),
        ("Figures", _figures(report, figures)),
        ("Quoted tables", _tables(report.conclusion.tables)),
        ("Controls", _controls(report)),
        ("What to look at", _review(report)),
        ("Pictures", _pictures(study) if study is not None else ()),
    )
    return Document(
        title=clean(report.title),
        state="needs review" if report.needs_review else "complete, not reviewed",
        notice=clean(report.notice),
        sections=tuple(Section(title, tuple(blocks)) for title, blocks in parts if blocks),
    )


def clean(text: object) -> str:
    """The text without control characters and marks of direction; line breaks and tabs stay."""
    return "".join(
        REPLACEMENT
        if (one in TURNING or category(one) in {"Cc", "Cs"} or ord(one) & 0xFFFE == 0xFFFE) and one not in "\n\t"
        else one
        for one in str(text).replace("\r\n", "\n")
    )


def said(value: str | float | bool | tuple[str, ...]) -> str:
    """A finding's value in words."""
    return clean(in_words(value))


def with_unit(finding: Finding) -> str:
    """The value with its unit as people write it; what could not be read or measured is said to be that."""
    if finding.value is None:
        return lacking(finding)
    unit = UNITS.get(finding.unit, finding.unit)
    return f"{said(finding.value)} {clean(unit)}" if unit else said(finding.value)


def percent(share: float) -> str:
    """A probability as people write it."""
    return f"{100 * share:.1f} %"


def _about(report: Report) -> list[Block]:
    made, tokens, study = report.provenance, report.tokens, report.study
    rows = [
        ("Report", report.id),
        ("Made", report.created.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("Workflow", f"{made.workflow}, version {made.workflow_version}"),
        ("Model", f"{made.model} on {made.engine}"),
        ("Software", f"medserve {made.medserve}"),
        ("Study", f"{study.sha256[:16]}, {study.modality}, {_counted(len(study.pictures), 'picture')}"),
        ("Spacing", f"{' x '.join(f'{step:g}' for step in study.spacing)} mm" if study.spacing else ""),
        ("Work", f"{_counted(len(report.steps), 'question')}, {tokens.prompt} prompt tokens, {report.seconds:.1f} s"),
    ]
    return [Grid("", ("About", "Value"), tuple((name, clean(value)) for name, value in rows if value))]


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _domain(domain: Domain | None) -> list[Block]:
    doubts = [check for check in domain.checks if not check.passed] if domain else []
    if domain is None or (domain.assessable and not doubts):
        return []
    against = any(check.passed is False for check in doubts)
    verdict = "There is a doubt." if against else "Not all of it could be told."
    if not domain.assessable:
        verdict = "Not assessable: nothing was concluded."
    rows = tuple(
        (clean(check.name), "unknown" if check.passed is None else "no", clean(check.detail)) for check in doubts
    )
    takes = Words(clean(f"The workflow takes {domain.takes}. {verdict}"), "warning")
    return [takes, *([Grid("", ("Look", "Passed", "Detail"), rows)] if rows else [])]


def _findings(report: Report) -> list[Block]:
    rows = tuple(
        (
            clean(one.name),
            with_unit(one),
            "measured" if one.source == "measured" else "the model's words",
            ", ".join(f"{clean(label)} {percent(share)}" for label, share in (one.probabilities or {}).items()) or "-",
            ", ".join(one.flags) or "-",
        )
        for one in report.conclusion.findings
    )
    return [Grid("", ("Finding", "Value", "Source", "Probabilities", "Flags"), rows)] if rows else []


def _classification(report: Report) -> list[Block]:
    found = report.conclusion
    if found.label is None and found.probabilities is None:
        return []
    meaning = f" ({found.label_meaning})" if found.label_meaning else ""
    blocks: list[Block] = [Words(clean(f"{found.label}{meaning}") if found.label else "None was concluded.")]
    if found.probabilities:
        how = calibrated_how(found.calibrated)
        rows = tuple((clean(label), percent(share)) for label, share in found.probabilities.items())
        blocks.append(Grid(f"Probabilities ({how})", ("Label", "Probability"), rows))
    if found.label_mass is not None:
        blocks.append(Words(f"Probability that the answer is any of the labels at all: {percent(found.label_mass)}"))
    return blocks


def _description(report: Report) -> list[Block]:
    found = report.conclusion
    if not found.description and not found.removed:
        return []
    blocks: list[Block] = [
        Words("These are the model's own words:"),
        Words(clean(found.description) or "None.", "quoted"),
    ]
    rows = tuple((clean(gone.sentence), gone.reason.meaning) for gone in found.removed)
    return [*blocks, Grid("Left out", ("Sentence", "Reason"), rows)] if rows else blocks


def _data(report: Report) -> list[Block]:
    found = report.conclusion
    if found.data is None and not found.missing:
        return []
    blocks: list[Block] = [Words(clean(dumps(found.data, indent=2, ensure_ascii=False)), "code")]
    return [*blocks, Words(clean(f"Missing: {', '.join(found.missing)}"), "warning")] if found.missing else blocks


def _places(boxes: Sequence[Box]) -> list[Block]:
    rows = tuple(
        (
            clean(box.label),
            str(box.picture + 1),
            f"{box.top:g} to {box.bottom:g}",
            f"{box.left:g} to {box.right:g}",
            "measured" if box.source == "measured" else "the model's words",
        )
        for box in boxes
    )
    columns = ("Label", "Picture", "Rows", "Columns", "Source")
    return [Grid("In pixels of the picture as given", columns, rows)] if rows else []


def _figures(report: Report, drawn: Sequence[Image | None]) -> list[Block]:
    blocks: list[Block] = []
    figures = report.conclusion.figures
    for figure, image in zip_longest(figures, drawn[: len(figures)]):
        name, caption = clean(f"Figure: {figure.name}"), clean(figure.caption)
        if image is None:
            blocks.append(Words(f"{name}, not shown here: {caption}"))
        else:
            blocks.append(_shown(image, name, caption))
    return blocks


def _tables(tables: Sequence[QuotedTable]) -> list[Block]:
    blocks: list[Block] = []
    for table in tables:
        rows = tuple(tuple(map(clean, row)) for row in table.rows)
        blocks.append(Grid(clean(table.title), tuple(map(clean, table.columns)), rows))
        blocks.append(Words(clean(f"Source: {table.source}")))
        blocks.append(Words(clean(f"Limits: {table.limits}"), "warning"))
    return blocks


def _controls(report: Report) -> list[Block]:
    rows = tuple(
        (
            control.kind,
            _became(control),
            "-" if control.distance is None else f"{control.distance:.3f}",
        )
        for control in report.controls
    )
    if not rows:
        return []
    told = {
        True: Words("The answers depend on the picture."),
        False: Words("The answers do not depend on the picture.", "warning"),
    }
    verdict = [] if report.depends_on_picture is None else [told[report.depends_on_picture]]
    return [Grid("", ("Control", "Changed", "Probabilities by at most"), rows), *verdict]


def _became(control: Control) -> str:
    if control.kind == "paraphrase" and not control.reworded:
        return "no question has other words"
    return clean(", ".join(control.changed)) or "nothing"


def _review(report: Report) -> list[Block]:
    concerns = tuple((clean(one.name), clean(one.meaning)) for one in report.study.concerns)
    flags = tuple((flag.value, flag.meaning) for flag in report.flags)
    found = (("About the files", ("Concern", "Meaning"), concerns), ("About the answers", ("Flag", "Meaning"), flags))
    return [Grid(title, columns, rows) for title, columns, rows in found if rows]


def _pictures(study: Study) -> list[Block]:
    count = len(study.images)
    places = range(count) if count <= MOST_PICTURES else evenly(count, MOST_PICTURES)
    blocks: list[Block] = []
    if count > MOST_PICTURES:
        blocks.append(Words(f"{MOST_PICTURES} of {count} pictures, evenly spaced."))
    for place in places:
        label = f", {clean(study.labels[place])}" if study.labels else ""
        name = f"Picture {place + 1} of {count}{label}"
        blocks.append(_shown(study.images[place], f"{name}, as it was given", name))
    return blocks


def evenly(count: int, most: int) -> list[int]:
    """`most` places of `count`, the first and the last among them."""
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _shown(image: Image, alternative: str, caption: str) -> Shown:
    picture = PIL.Image.fromarray(np.asarray(image.pixels))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = BytesIO()
    picture.save(out, "PNG")
    return Shown(out.getvalue(), alternative, caption, picture.width, picture.height)
