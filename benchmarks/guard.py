"""Crosses pictures over workflows and prints how many the guard refuses: those that are not taken, and those that are.

    python -m benchmarks.guard DATA [--unseen FOLDER ...] [--seen FOLDER ...]

DATA holds folders of real files (dermoscopy, histology, chest-xray, ct-abdomen, mr-head, wsi, dicom-odd), FOLDER
pictures that no workflow takes: `--seen` are those on which the guard's numbers were chosen, `--unseen` had no part in
that. Beside them stand drawings, and empty pictures and pages made here. CT and MR are shown as DICOM and once more as
grey PNG files, which say nothing of themselves. The model whose word is asked is the demonstration model.
"""

import argparse
import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from medserve import guard, workflows
from medserve.engines import Engine
from medserve.examination import seen_as
from medserve.imaging import intake
from medserve.imaging.intake import Wanted
from medserve.intervals import wilson
from medserve.models import Models
from medserve.reports import Domain as Findings
from medserve.settings import Limits, Settings
from medserve.workflow import Consult, Domain, Workflow
from tools.demo_model import gallery

CROSSED = ("chest-xray", "dermoscopy", "histology", "kidney-stones")
"""The workflows for which DATA holds pictures."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif"}
FIRST_DRAWING = 6_000_100
DRAWINGS = {
    "dermoscopy": "dermoscopy",
    "histology": "histology",
    "CT": "kidney-stones",
    "chest X-ray": "chest-xray",
    "other": "",
}
"""The workflow that takes each kind of drawing."""


@dataclass(frozen=True)
class Case:
    """One picture, the group it is counted in, and the workflow that takes it; "" where none does."""

    group: str
    content: bytes | Path
    taken: str = ""
    undecided: frozenset[str] = frozenset()
    """Workflows for which nobody can say whether they take it, which are left out."""


def real(data: Path) -> Iterator[Case]:
    """The files of DATA."""
    for folder, name in (("dermoscopy", "dermoscopy"), ("histology", "histology"), ("chest-xray", "chest-xray")):
        for file in _pictures(data / folder):
            yield Case(f"{folder} files", file, name)
    for file in sorted((data / "wsi").iterdir()):
        yield Case("whole slides", file, "histology")
    for file in sorted((data / "ct-abdomen").glob("0*.dcm")):
        yield Case("CT, DICOM", file, "kidney-stones")
        yield Case("CT, grey PNG", _exported(file, 1), "kidney-stones")
    for file in sorted((data / "mr-head").glob("*.dcm")):
        yield Case("MR, DICOM", file)
        yield Case("MR, grey PNG", _exported(file, 0))
    for file in sorted((data / "dicom-odd").glob("*.dcm")):  # radiographs, though of a phantom and of an animal
        yield Case("X-rays of no chest, DICOM", file, undecided=frozenset({"chest-xray"}))


def made() -> Iterator[Case]:
    """Empty pictures, empty glass and pages of text."""
    for shade in ((0, 0, 0), (128, 128, 128), (255, 255, 255), (222, 184, 150), (190, 90, 60), (230, 170, 210)):
        yield Case("one shade", _png(np.full((256, 256, 3), shade, np.uint8)))
    for seed in range(6):
        rng = np.random.default_rng([seed, 77])
        glass = np.clip(rng.normal(238, 3, (256, 256, 3)), 0, 255)
        for row, column in rng.integers(0, 250, (seed, 2)):  # as much dust as its number
            glass[row : row + 5, column : column + 5] = 120
        yield Case("empty glass", _png(glass.astype(np.uint8)))
    for place in range(6):
        yield Case("pages and screens", _page(place))


def drawn(count: int) -> Iterator[Case]:
    """Fresh drawings of every kind."""
    for kind, name in DRAWINGS.items():
        for number in range(FIRST_DRAWING, FIRST_DRAWING + count):
            picture = np.asarray(gallery.draw(kind, number, 256).image.convert("RGB"))
            yield Case(f"drawings: {kind}", _png(picture), name)


def others(folders: Sequence[Path], group: str) -> Iterator[Case]:
    """Pictures that no workflow takes."""
    for file in chain.from_iterable(map(_pictures, folders)):
        yield Case(group, file)


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _exported(file: Path, channel: int) -> bytes:
    """One channel of what is shown of a DICOM file, as a grey picture that has lost its tags."""
    study = asyncio.run(intake.read([file], Limits()))
    return _png(np.repeat(study.images[0].pixels[..., channel : channel + 1], 3, axis=2))


def _page(place: int) -> bytes:
    """Dark text on light paper, or light text on a dark screen, of three sizes."""
    dark = place % 2
    page = PIL.Image.new("RGB", (400 + 100 * place, 600), (24, 26, 30) if dark else (252, 252, 250))
    pen = PIL.ImageDraw.Draw(page)
    for row in range(20, 580, 14 + 4 * (place // 2)):
        pen.text((20, row), "Potassium 4.1 mmol/L (3.5 to 5.1)  Sodium 139", (225, 225, 225) if dark else (20, 20, 20))
    return _png(np.asarray(page))


@dataclass(frozen=True)
class Outcome:
    """What became of one picture in one workflow."""

    case: Case
    workflow: str
    found: Findings

    @property
    def refused_by(self) -> str:
        """The check that refused it; "" where it was let in."""
        failed = [check.name for check in self.found.checks if check.passed is False]
        return "" if self.found.assessable else failed[0] if failed else "?"

    @property
    def what(self) -> str:
        """Refused, let in with a doubt, or let in."""
        if self.refused_by:
            return "refused"
        return "doubted" if guard.flags(self.found) else "let in"


async def assessed(case: Case, workflow: Workflow, engine: Engine, limits: Limits) -> Outcome:
    """The picture through the door and before the guard, as a request would be."""
    study = (await intake.reading([case.content], limits, Wanted(workflow.modality, patches=8))).study
    study = seen_as(study, workflow)
    found = await guard.assess(workflow.domain or Domain(""), study, Consult(engine, study))
    return Outcome(case, workflow.name, found)


async def crossed(cases: Sequence[Case], guarded: Sequence[Workflow]) -> list[Outcome]:
    """Every picture in every workflow about which one can say whether it takes it."""
    settings = Settings()
    models = Models(settings)
    try:
        model = models.get()
        await model.ready()
        return [
            await assessed(case, workflow, model, settings.limits)
            for workflow in guarded
            for case in cases
            if workflow.name not in case.undecided
        ]
    finally:
        await models.close()


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Rows by workflow and group."""
    groups: dict[tuple[str, str, bool], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        groups[one.workflow, one.case.group, one.case.taken == one.workflow].append(one)
    yield "| workflow | pictures | taken | n | refused | let in with a doubt | let in | refused by |"
    yield "|---|---|---|---|---|---|---|---|"
    for (workflow, group, taken), those in groups.items():
        counts = Counter(one.what for one in those)
        by = ", ".join(f"{name} {n}" for name, n in Counter(o.refused_by for o in those if o.refused_by).most_common())
        yield (
            f"| {workflow} | {group} | {'yes' if taken else 'no'} | {len(those)} | {counts['refused']} | "
            f"{counts['doubted']} | {counts['let in']} | {by} |"
        )


def totals(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What is caught of what is not taken, and false alarms, of real pictures and of drawings apart."""
    yield "| | n | refused | share (95 % Wilson interval) | let in with a doubt | let in unnoticed |"
    yield "|---|---|---|---|---|---|"
    for kind, drawings in (("real pictures", False), ("drawings", True)):
        apart = [one for one in outcomes if one.case.group.startswith("drawings") == drawings]
        yield _share(
            f"not taken: {kind}", [o for o in apart if o.case.taken != o.workflow and "unseen" not in o.case.group]
        )
        yield _share(f"taken: {kind}", [o for o in apart if o.case.taken == o.workflow])
    yield _share("not taken: everyday pictures, unseen", [o for o in outcomes if "unseen" in o.case.group])


def _share(name: str, those: Sequence[Outcome]) -> str:
    if not those:
        return f"| {name} | 0 | | | | |"
    counts = Counter(one.what for one in those)
    low, high = wilson(counts["refused"], len(those))
    return (
        f"| {name} | {len(those)} | {counts['refused']} | {counts['refused'] / len(those):.3f} ({low:.3f} to "
        f"{high:.3f}) | {counts['doubted']} | {counts['let in']} |"
    )


def main(arguments: argparse.Namespace) -> None:
    cases = [*real(arguments.data), *made(), *drawn(arguments.drawings)]
    cases += [*others(arguments.seen, "everyday, seen"), *others(arguments.unseen, "everyday, unseen")]
    outcomes = asyncio.run(crossed(cases, [workflows.find(name) for name in CROSSED]))
    print("\n".join(chain(totals(outcomes), ("",), table(outcomes))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seen", type=Path, nargs="*", default=[])
    parser.add_argument("--unseen", type=Path, nargs="*", default=[])
    parser.add_argument("--drawings", type=int, default=40, help="drawings of each kind")
    main(parser.parse_args())
