"""Runs the dermoscopy workflow over labelled photographs and prints what came of it, beside the constant answer.

    python -m benchmarks.photographs FOLDER        a folder with pictures and labels.csv (columns image, label)

The demonstration model knows drawings only, so this shows that every picture ends in a report, and how little its
answers mean.
"""

import argparse
import asyncio
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medserve.examination import examine
from medserve.imaging import intake
from medserve.intervals import wilson
from medserve.models import Models
from medserve.reports import Report
from medserve.settings import Settings
from medserve.workflows import find


async def examined(files: Sequence[Path]) -> list[Report]:
    """A report of every file, in order; whatever cannot be examined ends the run with its error."""
    settings = Settings()
    models = Models(settings)
    workflow = find("dermoscopy")
    try:
        return [await examine(workflow, await intake.read([file], settings.limits), models.get()) for file in files]
    finally:
        await models.close()


def summary(reports: Sequence[Report], labels: Sequence[str]) -> Mapping[str, str]:
    """What the page about real photographs says, by its rows."""
    said = [report.conclusion.label for report in reports]
    right, n = sum(map(str.__eq__, labels, map(str, said))), len(labels)
    low, high = wilson(right, n)
    commonest = Counter(labels).most_common(1)[0][1]
    melanomas = [one for one, label in zip(said, labels, strict=True) if label == "MEL"]
    return {
        "pictures that ended in a report": f"{n} of {n}",
        "reports that ask for review": str(sum(report.needs_review for report in reports)),
        "flags": ", ".join(f"{flag} {count}" for flag, count in Counter(_flags(reports)).most_common()),
        "vision encodes a report": ", ".join(map(str, sorted({report.tokens.encodes for report in reports}))),
        "seconds in the workflow, all reports": f"{sum(report.seconds for report in reports):.1f}",
        "classes said": ", ".join(f"{label} {count}" for label, count in Counter(said).most_common()),
        "agreement with the labels": f"{right} of {n} ({right / n:.3f}; 95 % Wilson interval {low:.3f} to {high:.3f})",
        "always saying the commonest label": f"{commonest} of {n} ({commonest / n:.3f})",
        "melanomas called MEL": f"{melanomas.count('MEL')} of {len(melanomas)}",
    }


def _flags(reports: Sequence[Report]) -> list[str]:
    return [str(flag) for report in reports for flag in report.flags]


def main(folder: Path) -> None:
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    reports = asyncio.run(examined([folder / row["image"] for row in rows]))
    print("| | |\n|---|---|")
    for name, value in summary(reports, [row["label"] for row in rows]).items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
