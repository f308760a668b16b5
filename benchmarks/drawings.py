"""Writes drawings and what is true of them as a folder that `medserve evaluate` takes.

    python -m benchmarks.drawings dermoscopy FOLDER --count 200
    medserve evaluate dermoscopy FOLDER

Drawings are numbered; those from 6,000,000 on had no part in the demonstration model's training. With --others, there
are as many of each other kind, whose truth is the kind: a workflow should answer none of them.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from tools.demo_model import gallery

FIRST = 6_000_000
SIDE = 256
WORKFLOWS = {"dermoscopy": "dermoscopy", "histology": "histology", "chest-xray": "chest X-ray", "kidney-stones": "CT"}


def truth(kind: str, told: dict[str, Any]) -> str:
    """What an evaluation holds against the answer: the class, or whether that which is asked about is there."""
    if kind == "dermoscopy":
        return str(told["class"])
    there = {"histology": "malignant", "chest X-ray": "enlarged", "CT": "stone"}[kind]
    return "yes" if told[there] else "no"


def write(workflow: str, folder: Path, count: int, others: int = 0, first: int = FIRST) -> Path:
    """The drawings as PNG, and labels.csv beside them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = WORKFLOWS[workflow]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "kind"))
        for kind in gallery.KINDS:
            for number in range(first, first + (count if kind == own else others)):
                drawn = gallery.draw(kind, number, SIDE)
                name = f"{kind.replace(' ', '-').lower()}-{number}"
                drawn.image.save(folder / f"{name}.png")
                table.writerow((name, truth(kind, drawn.truth) if kind == own else kind, kind))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", choices=sorted(WORKFLOWS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--first", type=int, default=FIRST)
    chosen = parser.parse_args()
    write(chosen.workflow, chosen.folder, chosen.count, chosen.others, chosen.first)
