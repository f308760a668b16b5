"""Measures a workflow with the demonstration model: on drawings that it has never seen, and on real files.

    python -m benchmarks.workflows NAME [--count 200] [--data DATA]

NAME is one of the workflows below. Drawings are numbered from 6,000,000 on; none of these had a part in the training.
DATA holds folders of real files (histology, chest-xray, dicom-odd, ct-abdomen, wsi): of them no accuracy is claimed,
only what was reported.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medserve.engines import Engine
from medserve.examination import examine
from medserve.flags import Flag
from medserve.imaging import intake
from medserve.imaging.intake import Material, Wanted
from medserve.intervals import wilson
from medserve.models import Models
from medserve.reports import Report
from medserve.settings import Settings
from medserve.workflows import find
from medserve.workflows.histology import verdict
from tests.workflows import kidneys, slides
from tests.workflows.kidneys import Ball
from tools.demo_model import accounts, gallery

FIRST = 6_000_000
SERIES, SLIDES = 40, 20
"""Series and slides that are drawn; each of them has several pictures."""
SETTINGS = Settings()

Row = tuple[str, str]


def share(right: Sequence[bool]) -> str:
    """So many of so many, with the interval of the share."""
    n, count = len(right), sum(right)
    low, high = wilson(count, n)
    return f"{count} of {n} ({count / n:.3f}; 95 % Wilson interval {low:.3f} to {high:.3f})"


def commonest(truths: Sequence[object]) -> str:
    """What saying the commonest truth every time would bring."""
    count = Counter(truths).most_common(1)[0][1]
    return f"{count} of {len(truths)} ({count / len(truths):.3f})"


async def examined(name: str, engine: Engine, materials: Sequence[Material], **options: Any) -> Report:
    """A report of files, through the door as a request's."""
    workflow = find(name)
    study = await intake.read(materials, SETTINGS.limits, Wanted(workflow.modality))
    return await examine(workflow, study, engine, options=options)


async def drawn(
    name: str, kind: str, count: int, engine: Engine, **options: Any
) -> list[tuple[dict[str, Any], Report]]:
    """What is true of so many drawings of a kind, and the report of each."""
    found = []
    for number in range(FIRST, FIRST + count):
        drawing = gallery.draw(kind, number)
        file = BytesIO()
        drawing.image.save(file, "PNG")
        found.append((drawing.truth, await examined(name, engine, [file.getvalue()], **options)))
    return found


def labelled(found: Sequence[tuple[bool, Report]]) -> Iterator[Row]:
    """How often the label is the truth, of all and apart."""
    truths = ["yes" if truth else "no" for truth, _report in found]
    said = [report.conclusion.label for _truth, report in found]
    right = [truth == label for truth, label in zip(truths, said, strict=True)]
    yield "label is the truth", share(right)
    for word in ("yes", "no"):
        yield (
            f"of those that are {word}",
            share([one for one, truth in zip(right, truths, strict=True) if truth == word]),
        )
    yield "always saying the commonest truth", commonest(truths)
    yield "without a label", str(said.count(None))
    yield "not assessable", str(sum(Flag.NOT_ASSESSABLE in report.flags for _truth, report in found))
    yield "vision encodes a report", ", ".join(map(str, sorted({report.tokens.encodes for _truth, report in found})))


# --- histology -----------------------------------------------------------------------------------------------------


async def histology(count: int, engine: Engine) -> list[Row]:
    """Tiles, and slides of six patches each."""
    tiles = await drawn("histology", "histology", count, engine)
    rows = [(f"tiles: {name}", value) for name, value in labelled([(t["malignant"], r) for t, r in tiles])]
    return rows + await _slides(engine)


async def _slides(engine: Engine) -> list[Row]:
    rng = np.random.default_rng(FIRST)
    patches, labels, encodes = list[bool](), list[bool](), set[int]()
    for number in range(SLIDES):
        kinds = (rng.random((2, 3)) < rng.choice([0.0, 0.5])).tolist()
        with TemporaryDirectory() as folder:
            made = await examined("histology", engine, [slides.slide(Path(folder), kinds, FIRST + 1000 * number)])
        data: Any = made.conclusion.data
        truths = ["yes" if kind else "no" for kind in np.ravel(kinds)]
        patches += [truth == said for truth, said in zip(truths, data["patches"], strict=True)]
        labels.append(made.conclusion.label == ("yes" if any(np.ravel(kinds)) else "no"))
        encodes.add(made.tokens.encodes)
    return [
        ("slides: patch's answer is the truth", share(patches)),
        ("slides: label is the truth (any patch malignant)", share(labels)),
        ("slides: vision encodes a slide of 6 patches", ", ".join(map(str, sorted(encodes)))),
    ]


# --- chest films ----------------------------------------------------------------------------------------------------


async def chest_xray(count: int, engine: Engine) -> list[Row]:
    """The closed question about the heart; the demonstration model was taught neither boxes nor comparisons."""
    found = await drawn("chest-xray", "chest X-ray", count, engine)
    truths = ["yes" if truth["enlarged"] else "no" for truth, _report in found]
    said = [next((one.value for one in report.conclusion.findings), None) for _truth, report in found]
    right = [truth == answer for truth, answer in zip(truths, said, strict=True)]
    return [
        ("heart enlarged: answer is the truth", share(right)),
        *(
            (
                f"of those that are {word}",
                share([one for one, truth in zip(right, truths, strict=True) if truth == word]),
            )
            for word in ("yes", "no")
        ),
        ("always saying the commonest truth", commonest(truths)),
        ("without an answer", str(said.count(None))),
        ("not assessable", str(sum(Flag.NOT_ASSESSABLE in report.flags for _truth, report in found))),
        ("vision encodes a report", ", ".join(map(str, sorted({report.tokens.encodes for _truth, report in found})))),
    ]


# --- analyses as JSON -----------------------------------------------------------------------------------------------


async def radiology(count: int, engine: Engine) -> list[Row]:
    """The attributes of drawings as JSON, in the one wording of such an instruction that the model was taught."""
    rows: list[Row] = []
    whole: list[bool] = []
    for kind in ("dermoscopy", "histology", "CT", "chest X-ray"):
        found = await drawn("radiology", kind, count // 4, engine, instruction="Answer as JSON.", max_tokens=400)
        pairs = [(accounts.fields(kind, truth), report.conclusion.data) for truth, report in found]
        whole += [data == wanted for wanted, data in pairs]
        right = [
            isinstance(data, dict) and data.get(key) == word for wanted, data in pairs for key, word in wanted.items()
        ]
        always = [Counter(wanted[key] for wanted, _data in pairs).most_common(1)[0][1] for key in pairs[0][0]]
        rows.append((f"{kind}: fields that are the truth", share(right)))
        rows.append((f"{kind}: always saying the commonest truth of each field", f"{sum(always)} of {len(right)}"))
    return [("answers that are right in every field", share(whole)), *rows]


# --- kidney stones -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A series that was drawn, and what came of it."""

    side: str
    stone: Ball | None
    report: Report

    def measured(self, name: str) -> Any:
        """What was measured of the first stone, None where none was."""
        found = {one.name: one.value for one in self.report.conclusion.findings if one.source == "measured"}
        return found.get(f"Stone 1: {name}")


async def kidney_stones(count: int, engine: Engine) -> list[Row]:
    """Single pictures, and series of nine slices with a round stone in one kidney or none."""
    pictures = await drawn("kidney-stones", "CT", count, engine)
    rows = [(f"pictures: {name}", value) for name, value in labelled([(t["stone"], r) for t, r in pictures])]
    sides = [
        _side(report) == truth["side"]
        for truth, report in pictures
        if truth["stone"] and report.conclusion.label == "yes"
    ]
    rows.append(("pictures: side, where a stone is there and seen", share(sides)))
    return rows + _of_series([await _series(number, engine) for number in range(SERIES)])


def _side(report: Report) -> object:
    return next((one.value for one in report.conclusion.findings if one.name.startswith("Side")), None)


async def _series(number: int, engine: Engine) -> Drawn:
    rng = np.random.default_rng([FIRST, number])
    side, seed = ("left", "right", "none")[number % 3], FIRST + 10_000 + number
    stone = None
    if side != "none":
        row, column = kidneys.inside(side, seed)
        stone = Ball((4 + rng.uniform(-0.5, 0.5), row, column), rng.uniform(12, 19), round(rng.uniform(450, 1200)))
    files = kidneys.series(kidneys.abdomen(9, [stone] if stone else [], seed))
    return Drawn(side, stone, await examined("kidney-stones", engine, files))


def _of_series(found: Sequence[Drawn]) -> list[Row]:
    rows = [
        (f"series: {name}", value) for name, value in labelled([(one.stone is not None, one.report) for one in found])
    ]
    measured = [one for one in found if one.stone and one.measured("side")]
    off = [abs(one.measured("largest diameter") - one.stone.diameter) for one in measured if one.stone]
    bright = [abs(one.measured("greatest attenuation") - one.stone.units) for one in measured if one.stone]
    disagree = [Flag.MEASUREMENT_DISAGREEMENT in one.report.flags for one in found]
    return [
        *rows,
        ("series: measured side is the truth", share([one.measured("side") == one.side for one in measured])),
        ("series: diameter off by, mm", f"{np.mean(off):.2f} in the mean, {max(off):.2f} at most"),
        ("series: greatest HU off by", f"{max(bright):.1f} at most"),
        ("series: flagged measurement_disagreement", share(disagree)),
    ]


# --- real files ----------------------------------------------------------------------------------------------------


async def real_histology(data: Path, engine: Engine) -> list[Row]:
    """The tiles, each by itself, and the slides."""
    files = sorted(file for file in (data / "histology").iterdir() if file.suffix in {".jpg", ".tif"})
    rows = [_told(file.name, await examined("histology", engine, [file])) for file in files]
    return rows + [
        _told(file.name, await examined("histology", engine, [file])) for file in sorted((data / "wsi").iterdir())
    ]


async def real_stones(data: Path, engine: Engine) -> list[Row]:
    """The slices as one series."""
    made = await examined("kidney-stones", engine, sorted((data / "ct-abdomen").glob("0*.dcm")))
    return [_told("ct-abdomen, 3 slices", made)]


async def real_chest(data: Path, engine: Engine) -> list[Row]:
    """The films, and the odd radiographs, each by itself; and the two films as if one were the prior one."""
    films = sorted((data / "chest-xray").glob("*.png"))
    files = [*films, *sorted((data / "dicom-odd").glob("*.dcm"))]
    rows = [_told(file.name, await examined("chest-xray", engine, [file])) for file in files]
    return [*rows, _told("both films, compared", await examined("chest-xray", engine, films))]


def _told(name: str, made: Report) -> Row:
    said: Any = made.conclusion.data or {}
    answers = f"; patches: {dict(Counter(said['patches']))}" if "patches" in said else ""
    failed = [check.name for check in made.domain.checks if check.passed is False] if made.domain else []
    words = f"label {made.conclusion.label}"
    if made.provenance.workflow == "histology":
        words = str(verdict(made.conclusion))
    elif made.provenance.workflow == "chest-xray":
        words = ", ".join(f"{one.name}: {one.value}" for one in made.conclusion.findings) or "no finding"
    against = f"; against it: {', '.join(failed)}" if failed else ""
    concerns = ", ".join(one.name for one in made.study.concerns) or "none"
    return name, f"{words}{answers}{against}; flags: {', '.join(made.flags)}; concerns: {concerns}"


MEASURES: dict[str, Callable[[int, Engine], Awaitable[list[Row]]]] = {
    "chest-xray": chest_xray,
    "histology": histology,
    "kidney-stones": kidney_stones,
    "radiology": radiology,
}
REAL: dict[str, Callable[[Path, Engine], Awaitable[list[Row]]]] = {
    "chest-xray": real_chest,
    "histology": real_histology,
    "kidney-stones": real_stones,
}


async def measure(name: str, count: int, data: Path | None) -> list[Row]:
    """The rows of one workflow."""
    models = Models(SETTINGS)
    try:
        rows = await MEASURES[name](count, models.get()) if count else []
        return rows + (await REAL[name](data, models.get()) if data and name in REAL else [])
    finally:
        await models.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MEASURES))
    parser.add_argument("--count", type=int, default=200, help="drawings of single pictures")
    parser.add_argument("--data", type=Path, default=None)
    chosen = parser.parse_args()
    print("| | |\n|---|---|")
    for row in asyncio.run(measure(chosen.name, chosen.count, chosen.data)):
        print(f"| {row[0]} | {row[1]} |")
