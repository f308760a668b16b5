"""Millimetres and Hounsfield units in a report are measured here, from voxels and their positions, never guessed.

Every length comes from where voxels lie in the patient, so unequal spacing, tilted slices and gaps are right by
construction; a declared SliceThickness is never used. A voxel fills its slice's share of the scan: half the way to each
neighbour, and as far outwards at the ends.

Two diameters are given, because voxels blur what they show. `diameter` is the largest distance between outer corners
of the voxels: exact for what the voxels fill, and too long for a smooth body by up to two voxel diagonals.
`edge_diameter` places the surface between voxels, where the value is half-way (or at any `level`), as a reader's
calliper does. On drawn round stones of 3 to 10 mm it is right to 0.1 mm with voxels of 0.5 mm and to 0.15 mm with 1 x
0.8 x 0.8 mm; with slices 2.5 mm apart it may be 0.6 mm too long (a stone of 3 mm: 1.6 mm), and with 5 mm none can tell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from medserve.errors import ImageError
from medserve.images import Volume

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

TOUCHING = np.ones((3, 3, 3), np.bool_)
"""Voxels that share a face, an edge or a corner belong together: thin stones and vessels run diagonally."""

_MANY = 200
"""Points above which only those on the convex hull are compared."""


@dataclass(frozen=True)
class Statistics:
    """What the voxels of a region hold, in the volume's unit: mean, standard deviation (n - 1), range, and how many."""

    mean: float
    deviation: float
    least: float
    greatest: float
    voxels: int


@dataclass(frozen=True)
class Candidate:
    """One connected group of bright voxels: where it is, how bright and how large."""

    centre: tuple[float, float, float]
    """(slice, row, column) of its centre of gravity, counted from 0."""
    centre_mm: tuple[float, float, float]
    """The same place in DICOM's patient axes, in mm towards the left, the back and the head."""
    statistics: Statistics
    diameter_mm: float
    """Between outer corners of its voxels; an upper bound."""
    edge_diameter_mm: float
    """Between its edges, half-way from its brightest value to its surroundings."""
    volume_mm3: float | None
    """None where a single slice gives no depth."""
    box: tuple[slice, slice, slice]
    """The least box of slices, rows and columns that holds it."""
    mask: Mask = field(compare=False, repr=False)
    """Which of the box's voxels belong to it, bool of the box's shape."""


def points(volume: Volume, voxels: NDArray[np.float64]) -> Points:
    """Where (slice, row, column) indices, float64 [n, 3], lie in mm, [n, 3]; fractions lie between voxel centres.

    Slices are interpolated between the positions of their neighbours, and continued beyond the first and last.
    """
    slices = voxels[:, 0]
    origins = np.stack([_along(volume.positions[:, axis], slices) for axis in range(3)], axis=1)
    return np.asarray(origins + voxels[:, 1:2] * np.array(volume.down) + voxels[:, 2:3] * np.array(volume.across))


def _along(knots: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(knots) == 1:
        return np.full(at.shape, knots[0])
    lower = np.clip(np.floor(at).astype(np.intp), 0, len(knots) - 2)
    return np.asarray(knots[lower] + (at - lower) * (knots[lower + 1] - knots[lower]))


def distance(volume: Volume, a: Sequence[float], b: Sequence[float]) -> float:
    """Millimetres between two places given as (slice, row, column), through space."""
    ends = points(volume, np.array((a, b), np.float64))
    return float(np.linalg.norm(ends[1] - ends[0]))


def ball(volume: Volume, centre: Sequence[float], radius: float) -> Mask:
    """The voxels whose centres lie within `radius` mm of a place (slice, row, column), bool [slices, rows, columns]."""
    middle = points(volume, np.array([centre], np.float64))[0]
    inside = np.zeros(volume.values.shape, np.bool_)
    rows, columns = volume.values.shape[1:]
    down, across = np.array(volume.down), np.array(volume.across)
    plane = np.arange(rows)[:, None, None] * down + np.arange(columns)[:, None] * across
    near = np.abs((volume.positions - middle) @ volume.normal) <= radius
    for index in np.flatnonzero(near):
        inside[index] = ((plane + volume.positions[index] - middle) ** 2).sum(axis=2) <= radius**2
    return inside


def statistics(volume: Volume, region: Mask) -> Statistics:
    """What the voxels of a region (bool, the volume's shape) hold; raises ImageError where it has none."""
    _check(volume, region)
    held = volume.values[region].astype(np.float64)
    deviation = float(held.std(ddof=1)) if len(held) > 1 else 0.0
    return Statistics(float(held.mean()), deviation, float(held.min()), float(held.max()), len(held))


def thicknesses(volume: Volume) -> NDArray[np.float64]:
    """Millimetres along the normal that each slice stands for, [slices]; raises ImageError for a single slice."""
    depths = volume.depths
    if len(depths) < 2:
        raise ImageError("one slice has no depth: its volume cannot be measured", param="image")
    steps = np.diff(depths)
    return np.asarray((np.append(steps[0], steps) + np.append(steps, steps[-1])) / 2)


def volume_mm3(volume: Volume, region: Mask) -> float:
    """Cubic millimetres that a region's voxels fill; raises ImageError for a single slice or an empty region."""
    _check(volume, region)
    area = float(np.linalg.norm(np.cross(volume.down, volume.across)))
    return float(region.sum(axis=(1, 2)) @ thicknesses(volume)) * area


def diameter(volume: Volume, region: Mask) -> float:
    """The largest distance in mm between outer corners of a region's voxels; within the plane for a single slice."""
    _check(volume, region)
    ends = _row_ends(region)
    corners = [ends + offset for offset in product(_halves(volume), (-0.5, 0.5), (-0.5, 0.5))]
    return _widest(points(volume, np.concatenate(corners)))


def edge_diameter(volume: Volume, region: Mask, level: float | None = None) -> float:
    """The largest distance in mm between places on a region's surface where the value passes `level`.

    Without a level it is half-way between the region's greatest value and the median of the voxels that surround it.
    Places are found between neighbours along each axis, by linear interpolation. Where no neighbour lies under the
    level, or the region is the whole volume, there is no edge and the answer is that of `diameter`.
    """
    _check(volume, region)
    box = _around(region)
    inside, values = region[box], volume.values[box].astype(np.float64)
    around = ndimage.binary_dilation(inside, TOUCHING) & ~inside
    if not around.any():
        return diameter(volume, region)
    if level is None:
        level = (float(values[inside].max()) + float(np.median(values[around]))) / 2
    # The body is what lies over the level and hangs together with the region, not only what a threshold found of it.
    body = (values > level) & (inside | around)
    found = list(_crossings(values, body, level))
    if not found:
        return diameter(volume, region)
    start = np.array([part.start for part in box], np.float64)
    return _widest(points(volume, np.concatenate(found) + start))


def _crossings(values: NDArray[np.float64], body: Mask, level: float) -> Iterator[Points]:
    """Where the value passes the level between a voxel of the body and a neighbour outside it, as indices [n, 3]."""
    for axis in range(3):
        for step in (1, -1):
            inner, outer = _neighbours(axis, step)
            edge = body[inner] & ~body[outer] & (values[outer] < level)
            at = np.argwhere(edge).astype(np.float64)
            high, low = values[inner][edge], values[outer][edge]
            at[:, axis] += (step < 0) + step * (high - level) / (high - low)
            if len(at):
                yield at


def _neighbours(axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of an array that pair each voxel with the next one along an axis, in the direction of `step`."""
    first = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
    second = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
    return (first, second) if step > 0 else (second, first)


def candidates(
    volume: Volume,
    above: float,
    *,
    smallest_mm3: float = 0.0,
    longest_mm: float = np.inf,
    within: Mask | None = None,
    most: int = 100,
) -> tuple[Candidate, ...]:
    """Connected groups of voxels over a threshold in HU, the largest first, at most `most` of them.

    `within` limits the search to a region; groups with a larger extent along an axis than `longest_mm` are passed over
    unmeasured. Raises ImageError where the values are not Hounsfield units.
    """
    if volume.unit != "HU":
        raise ImageError("a threshold in HU needs a CT in Hounsfield units, and these values are not", param="image")
    bright = volume.values > above
    if within is not None:
        _check(volume, within)
        bright &= within
    labels, _count = ndimage.label(bright, TOUCHING)
    boxes = ndimage.find_objects(labels)
    sizes = np.bincount(labels[bright])[1:]
    deep = thicknesses(volume) if len(volume.values) > 1 else np.zeros(1)
    largest_voxel = float(deep.max() * np.linalg.norm(np.cross(volume.down, volume.across)))
    found = list[Candidate]()
    for index in np.argsort(-sizes, kind="stable"):
        if len(found) >= most or (largest_voxel and sizes[index] * largest_voxel < smallest_mm3):
            break
        if max(_extents(volume, boxes[index], deep)) > longest_mm:
            continue
        one = _candidate(_cut(volume, boxes[index]), labels[boxes[index]] == index + 1)
        if one.volume_mm3 is None or one.volume_mm3 >= smallest_mm3:
            found.append(one)
    return tuple(found)


def _extents(volume: Volume, box: tuple[slice, ...], deep: NDArray[np.float64]) -> tuple[float, float, float]:
    """How long a box is along the slices, the rows and the columns, in mm; `deep` is what each slice stands for."""
    _between, down, across = volume.spacing
    return float(deep[box[0]].sum()), (box[1].stop - box[1].start) * down, (box[2].stop - box[2].start) * across


@dataclass(frozen=True)
class _Part:
    """A box cut out of a volume with a margin round the `least` one, so that small things cost a small array."""

    volume: Volume
    box: tuple[slice, slice, slice]
    least: tuple[slice, slice, slice]
    thicknesses: NDArray[np.float64] | None


def _cut(volume: Volume, box: tuple[slice, ...]) -> _Part:
    grown = _grown(box, volume.values.shape)
    across, down = np.array(volume.across), np.array(volume.down)
    origins = volume.positions[grown[0]] + grown[1].start * down + grown[2].start * across
    part = Volume(volume.values[grown].copy(), origins.copy(), volume.down, volume.across, volume.unit)
    deep = thicknesses(volume)[grown[0]] if len(volume.values) > 1 else None
    return _Part(part, grown, (box[0], box[1], box[2]), deep)


def _candidate(part: _Part, mask: Mask) -> Candidate:
    """What is measured of the group that `mask` marks in the part's least box."""
    inside = np.zeros(part.volume.values.shape, np.bool_)
    inside[tuple(_within(one, whole) for one, whole in zip(part.least, part.box, strict=True))] = mask
    where = np.argwhere(inside).astype(np.float64).mean(axis=0)
    middle = points(part.volume, where[None])[0]
    centre = where + [cut.start for cut in part.box]
    area = float(np.linalg.norm(np.cross(part.volume.down, part.volume.across)))
    filled = None if part.thicknesses is None else float(inside.sum(axis=(1, 2)) @ part.thicknesses) * area
    return Candidate(
        (float(centre[0]), float(centre[1]), float(centre[2])),
        (float(middle[0]), float(middle[1]), float(middle[2])),
        statistics(part.volume, inside),
        diameter(part.volume, inside),
        edge_diameter(part.volume, inside),
        filled,
        part.least,
        mask,
    )


def _within(one: slice, whole: slice) -> slice:
    """A slice counted from where another begins."""
    return slice(one.start - whole.start, one.stop - whole.start)


def _check(volume: Volume, region: Mask) -> None:
    if region.shape != volume.values.shape or region.dtype != np.bool_:
        raise ImageError("a region must be bool and of the volume's shape", param="region")
    if not region.any():
        raise ImageError("the region holds no voxel", param="region")


def _around(region: Mask) -> tuple[slice, slice, slice]:
    return _grown(ndimage.find_objects(region.astype(np.uint8))[0], region.shape)


def _grown(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """A box with two more voxels on every side where there are any."""
    grown = [slice(max(0, cut.start - 2), min(size, cut.stop + 2)) for cut, size in zip(box, shape, strict=True)]
    return grown[0], grown[1], grown[2]


def _row_ends(region: Mask) -> Points:
    """Indices [n, 3] of the first and last voxel of each row: the largest distance is between two such ends."""
    rows = np.argwhere(region.any(axis=2))
    lines = region[rows[:, 0], rows[:, 1]]
    first = lines.argmax(axis=1)
    last = lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack((rows, first)), np.column_stack((rows, last))]).astype(np.float64)


def _halves(volume: Volume) -> tuple[float, ...]:
    """Half a slice up and down, as fractions of the way to the neighbours; nothing where there is one slice."""
    return (-0.5, 0.5) if len(volume.values) > 1 else (0.0,)


def _widest(found: Points) -> float:
    """The largest distance between any two of the points [n, 3]."""
    if len(found) > _MANY:
        try:
            found = found[ConvexHull(found).vertices]
        except QhullError:  # all in one plane: compare them all, they are few
            found = np.unique(found, axis=0)
    widest = 0.0
    for start in range(0, len(found), 256):
        apart = found[start : start + 256, None] - found[None]
        widest = max(widest, float((apart**2).sum(axis=2).max()))
    return float(np.sqrt(widest))
