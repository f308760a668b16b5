"""Drawn abdomens with stones of known place, size and HU, in slices that look as the demonstration model knows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tests.imaging import phantoms
from tools.demo_model import kidney

SIDE = 256
PIXEL = 1.0
BETWEEN = 3.0
UNIT = SIDE / 64
"""Pixels of a unit of the drawings, so millimetres too."""
CORNER = (-128.0, -128.0, 50.0)
FINE = 4
"""Points along each edge of a voxel from which the part of it that a ball fills is counted."""


@dataclass(frozen=True)
class Ball:
    """A round stone: centre as (slice, row, column), diameter in mm, HU."""

    centre: tuple[float, float, float]
    diameter: float
    units: float


@dataclass(frozen=True)
class Block:
    """A stone with straight edges, all of whose voxels are full: slices, rows, columns, HU."""

    box: tuple[slice, slice, slice]
    units: float


def inside(side: str, seed: int = 6_100_000) -> tuple[float, float]:
    """Row and column in the kidney of this side of the drawing number `seed`, where the drawing would put a stone."""
    stone = kidney.scan(seed, SIDE, side).stone
    assert stone is not None
    return stone.y * UNIT - 0.5, stone.x * UNIT - 0.5


def abdomen(slices: int, stones: Sequence[Ball | Block] = (), seed: int = 6_100_000) -> NDArray[np.int16]:
    """So many slices of the drawing number `seed` with these stones in them, told apart by a mark: HU, int16."""
    values = np.repeat(_empty(seed)[None], slices, axis=0).astype(np.float32)
    for stone in stones:
        if isinstance(stone, Block):
            values[stone.box] = stone.units
        else:
            share = _filled(stone, values.shape)
            values = values * (1 - share) + stone.units * share
    values[:, 1:9, 1:9] = phantoms.AIR + 8 * np.arange(slices)[:, None, None]
    return np.rint(values).astype(np.int16)


@cache
def _empty(seed: int) -> NDArray[np.float32]:
    """One slice of the drawing number `seed` without a stone."""
    return np.asarray(kidney.scan(seed, SIDE, "none").hounsfield, np.float32)


def series(values: NDArray[np.int16], orientation: Sequence[float] = phantoms.AXIAL, **tags: object) -> list[bytes]:
    """The slices as DICOM files of 1 x 1 mm, 3 mm apart, with a SliceThickness that lies."""
    places = phantoms.positions(len(values), BETWEEN, CORNER, orientation)
    return phantoms.series(values, places=places, spacing=(PIXEL, PIXEL), orientation=orientation, **tags)


def _filled(ball: Ball, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The part of each voxel that lies in the ball, by counting points."""
    offsets = (np.arange(FINE) + 0.5) / FINE - 0.5
    axes = [
        ((np.arange(count)[:, None] + offsets - middle) * step).ravel()
        for count, middle, step in zip(shape, ball.centre, (BETWEEN, PIXEL, PIXEL), strict=True)
    ]
    share = np.zeros(shape, np.float32)
    near = [np.flatnonzero(np.abs(axis) <= ball.diameter) for axis in axes]
    first = [int(at.min()) // FINE for at in near]
    last = [int(at.max()) // FINE + 1 for at in near]
    cut = [axis[FINE * a : FINE * b] for axis, a, b in zip(axes, first, last, strict=True)]
    full = cut[0][:, None, None] ** 2 + cut[1][:, None] ** 2 + cut[2] ** 2 <= (ball.diameter / 2) ** 2
    sizes = [n for a, b in zip(first, last, strict=True) for n in (b - a, FINE)]
    share[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = full.reshape(sizes).mean(axis=(1, 3, 5))
    return share
