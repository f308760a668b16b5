"""The pictures of a training run are the same on every machine: a number always stands for the same drawing."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.demo_model import gallery, lesion

COUNTS = {"dermoscopy": 24000, "histology": 4000, "CT": 9000, "chest X-ray": 4000, "other": 3000}
FIRST_UNSEEN = 10_000_000  # for the evaluation; lower ones are spent: some chose the plan, some measured earlier models
SIDES = (128, 128, 128, 128, 128, 128, 128, 192, 96, 160)  # drawn larger and shrunk, as a user's picture is
CHUNK = 500


@dataclass(frozen=True)
class Pool:
    """Pictures as the model sees them, with their truths and, by kind, where they stand."""

    pixels: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.uint8]  # of the lesions, which come first
    truths: list[dict[str, Any]]
    places: dict[str, range]


def draw_chunk(
    kind: str, first: int, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[dict[str, Any]]]:
    """Some consecutive drawings of a kind."""
    pixels = np.empty((count, gallery.SIDE, gallery.SIDE, 3), np.uint8)
    maps = np.zeros((count if kind == "dermoscopy" else 0, lesion.FIELDS, lesion.FIELDS, len(lesion.LAYERS)), np.uint8)
    truths = []
    for place in range(count):
        drawing = gallery.draw(kind, first + place, SIDES[(first + place) % len(SIDES)])
        pixels[place] = np.asarray(gallery.shrunk(drawing.image))
        if drawing.map is not None:
            maps[place] = np.rint(drawing.map * 255)
        truths.append({"kind": kind} | drawing.truth)
    return pixels, maps, truths


def chunks(counts: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """The work in pieces."""
    for kind, count in counts.items():
        for first in range(0, count, CHUNK):
            yield kind, first, min(CHUNK, count - first)


def draw_all(folder: Path, counts: dict[str, int] | None = None) -> None:
    """Draw every training picture into a folder; done once."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = counts or COUNTS
    total = sum(counts.values())
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (total, gallery.SIDE, gallery.SIDE, 3))
    maps, truths = [], list[dict[str, Any]]()
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        for part, layers, told in workers.map(draw_chunk, *zip(*chunks(counts), strict=True)):
            pixels[len(truths) : len(truths) + len(told)] = part
            truths += told
            maps.append(layers)
    pixels.flush()
    np.save(folder / "maps.npy", np.concatenate(maps))
    (folder / "truths.json").write_text(json.dumps(truths))


def load(folder: Path) -> Pool:
    """The pictures of a folder written by `draw_all`."""
    truths = json.loads((folder / "truths.json").read_text())
    kinds = [truth["kind"] for truth in truths]
    places = {kind: range(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) for kind in gallery.KINDS}
    pixels, maps = (np.load(folder / name, mmap_mode="r") for name in ("pixels.npy", "maps.npy"))
    return Pool(pixels, maps, truths, places)
