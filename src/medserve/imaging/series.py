"""Of any heap of CT or MR files one volume's slices are found and put in order, and what was left out is said.

The cascade is Google's (original before derived, the largest acquisition, slices with a position, no duplicates, sorted
by position), with four changes where it would go wrong. Position, not InstanceNumber, says what is a duplicate, since
DICOM does not ask the number to be unique. Order follows the slices' normal, not z alone. An AcquisitionNumber that
differs on every slice is a counter and separates nothing. Echoes and time points are kept apart.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageUnreadable
from medserve.images import Concern
from medserve.imaging.instance import Instance, numbers

SAME_DIRECTION = np.cos(np.radians(0.5))
"""Cosine above which two slices' axes count as parallel; scanners write them with 4 to 6 digits."""

SAME_PLACE = 0.01
"""Millimetres under which two slices lie at one position."""

GAP = 1.5
"""A step this many times the usual one means that slices are missing."""

UNEVEN = 0.05
"""The part of the usual step by which steps may differ."""

FEWEST = 5
"""Slices that make a volume, by MedGemma's recipe."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a slice lies: its first voxel's centre in mm, and the steps in mm to the next row and column, [3] each."""

    position: NDArray[np.float64]
    down: NDArray[np.float64]
    across: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the slice: of axial slices towards the head, otherwise across x down.

        A file may run its rows or columns backwards, and head-first order should not turn over with them.
        """
        normal = np.cross(self.across, self.down)
        normal /= np.linalg.norm(normal)
        return -normal if is_axial(normal) and normal[2] < 0 else normal


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of one file as a candidate for a volume."""

    instance: Instance
    frame: int
    place: Place | None
    order: int
    """InstanceNumber, or the frame's index in a file of several."""

    @property
    def is_localiser(self) -> bool:
        """Whether ImageType says LOCALIZER: a scout view on which slices are planned (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.instance.image_type

    @property
    def is_derived(self) -> bool:
        """Whether ImageType says DERIVED: reformatted or computed from other pictures (PS3.3 C.7.6.1.1.2)."""
        return self.instance.image_type[:1] == ("DERIVED",)

    @property
    def series(self) -> Hashable:
        """What slices of one volume share, but for the acquisition: series, kind, size and contrast."""
        got = self.instance.dataset.get
        shared = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "EchoNumbers", "TemporalPositionIdentifier")
        steps = () if self.place is None else (self.place.down, self.place.across)
        spacing = tuple(round(float(np.linalg.norm(step)), 3) for step in steps)
        return (
            *(str(got(key, "")) for key in shared),
            self.instance.image_type,
            self.instance.rows,
            self.instance.columns,
            spacing,
        )

    @property
    def acquisition(self) -> str:
        """AcquisitionNumber as text, empty where there is none."""
        return str(self.instance.dataset.get("AcquisitionNumber") or "")


@dataclass(frozen=True, eq=False)
class Series:
    """One volume's slices in anatomical order, and what must be said about them."""

    slices: tuple[Slice, ...]
    concerns: tuple[Concern, ...]


def slices(instance: Instance) -> list[Slice]:
    """Every frame of a file as a slice, with its place where the file gives a whole one."""
    number = instance.dataset.get("InstanceNumber")
    several = instance.frames > 1
    try:
        order = int(number) if number is not None and number != "" else 0
    except (TypeError, ValueError, OverflowError):
        order = 0
    return [
        Slice(instance, frame, _place(instance, frame), frame if several else order) for frame in range(instance.frames)
    ]


def _place(instance: Instance, frame: int) -> Place | None:
    position = numbers(
        instance.value("ImagePositionPatient", "PlanePositionSequence", frame), 3, "ImagePositionPatient"
    )
    axes = numbers(
        instance.value("ImageOrientationPatient", "PlaneOrientationSequence", frame), 6, "ImageOrientationPatient"
    )
    spacing = numbers(instance.value("PixelSpacing", "PixelMeasuresSequence", frame), 2, "PixelSpacing")
    if position is None or axes is None or spacing is None:
        return None
    row, column = np.array(axes[:3]), np.array(axes[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(spacing) <= 0 or max(spacing) > 1000 or max(map(abs, position)) > 1e6:
        raise ImageUnreadable("the file declares a pixel spacing or a position that no scanner has", param="image")
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(row @ column) > 0.01:
        raise ImageUnreadable(
            "the file's ImageOrientationPatient is not two unit vectors at right angles", param="image"
        )
    # PixelSpacing is (between rows, between columns): down first (PS3.3 10.7.1.3).
    return Place(np.array(position), column / lengths[1] * spacing[0], row / lengths[0] * spacing[1])


def volume(candidates: Sequence[Slice]) -> Series:
    """The slices of one volume among the candidates, in order: axial ones from feet to head.

    Raises ImageUnreadable where only localisers are left. Without positions the order is InstanceNumber's.
    """
    concerns: list[Concern] = []
    kept = _without(candidates, lambda one: one.is_localiser, Concern.LOCALISER_DROPPED, concerns)
    if kept[0].is_localiser:
        raise ImageUnreadable("only a localiser (scout view) was sent; send the slices of the series", param="image")
    kept = _without(kept, lambda one: one.is_derived, Concern.DERIVED_DROPPED, concerns)
    kept = _without(kept, lambda one: one.place is None, Concern.NO_GEOMETRY, concerns)
    kept = _largest_acquisition(kept, concerns)
    if kept[0].place is None:
        return Series(tuple(sorted(kept, key=lambda one: one.order)), _few(kept, [*concerns, Concern.NO_GEOMETRY]))
    kept = _most_frequent(kept, _directions(kept), Concern.MIXED_ORIENTATION, concerns)
    kept = _ascending(kept, concerns)
    _judge(kept, concerns)
    return Series(tuple(kept), _few(kept, concerns))


def _few(kept: Sequence[Slice], concerns: Iterable[Concern]) -> tuple[Concern, ...]:
    found = [*concerns, Concern.FEW_SLICES] if len(kept) < FEWEST else concerns
    return tuple(dict.fromkeys(found))


def _without(
    candidates: Sequence[Slice], unwanted: Callable[[Slice], bool], concern: Concern, concerns: list[Concern]
) -> list[Slice]:
    """The candidates that are not unwanted, or all of them if none would be left."""
    wanted = [one for one in candidates if not unwanted(one)]
    if wanted and len(wanted) < len(candidates):
        concerns.append(concern)
    return wanted or list(candidates)


def _largest_acquisition(candidates: Sequence[Slice], concerns: list[Concern]) -> list[Slice]:
    kept = _most_frequent(candidates, [one.series for one in candidates], Concern.OTHER_ACQUISITION_DROPPED, concerns)
    counts = Counter(one.acquisition for one in kept)
    if max(counts.values()) == 1:
        return kept
    return _most_frequent(kept, [one.acquisition for one in kept], Concern.OTHER_ACQUISITION_DROPPED, concerns)


def _most_frequent(
    candidates: Sequence[Slice], keys: Sequence[Hashable], concern: Concern, concerns: list[Concern]
) -> list[Slice]:
    """The candidates of the most frequent key; of equally frequent ones that with the lowest order."""
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for one, key in zip(candidates, keys, strict=True):
        groups[key].append(one)
    if len(groups) > 1:
        concerns.append(concern)
    return max(groups.values(), key=lambda group: (len(group), -min(one.order for one in group)))


def _directions(candidates: Sequence[Slice]) -> list[int]:
    """For each slice the index of the first one whose axes are parallel to its own."""
    found: list[tuple[Any, ...]] = []
    keys = []
    for one in candidates:
        assert one.place is not None  # noqa: S101 - the caller has dropped the others; this tells the type checker
        axes = one.place.across / np.linalg.norm(one.place.across), one.place.down / np.linalg.norm(one.place.down)
        for index, other in enumerate(found):
            if axes[0] @ other[0] > SAME_DIRECTION and axes[1] @ other[1] > SAME_DIRECTION:
                keys.append(index)
                break
        else:
            keys.append(len(found))
            found.append(axes)
    return keys


def _ascending(candidates: Sequence[Slice], concerns: list[Concern]) -> list[Slice]:
    """Sorted along the normal; of slices at one position the first by order stays."""
    normal = _normal(candidates)
    placed = sorted(candidates, key=lambda one: (_depth(one, normal), one.order))
    kept = placed[:1]
    for one in placed[1:]:
        if _depth(one, normal) - _depth(kept[-1], normal) > SAME_PLACE:
            kept.append(one)
        elif one.order < kept[-1].order:
            kept[-1] = one
    if len(kept) < len(placed):
        concerns.append(Concern.DUPLICATE_DROPPED)
    return kept


def _normal(candidates: Sequence[Slice]) -> NDArray[np.float64]:
    place = candidates[0].place
    assert place is not None  # noqa: S101 - as above
    return place.normal


def _depth(one: Slice, normal: NDArray[np.float64]) -> float:
    assert one.place is not None  # noqa: S101 - as above
    return float(one.place.position @ normal)


def _judge(kept: Sequence[Slice], concerns: list[Concern]) -> None:
    place = kept[0].place
    assert place is not None  # noqa: S101 - as above
    concerns += judged(np.array([_depth(one, place.normal) for one in kept]), place.down, place.across)


def judged(depths: NDArray[np.float64], down: Any, across: Any) -> list[Concern]:
    """What there is to say about slices at these depths (mm, ascending) with these steps to the next row and column."""
    concerns = []
    steps = np.diff(depths)
    if len(steps) > 1:
        usual = float(np.median(steps))
        if (steps >= GAP * usual).any():
            concerns.append(Concern.GAP)
        if (np.abs(steps - usual) > UNEVEN * usual).any():
            concerns.append(Concern.UNEVEN_SPACING)
    if not is_axial(np.cross(across, down)):
        concerns.append(Concern.NOT_AXIAL)
    elif not (across[0] > abs(across[1]) and down[1] > abs(down[0])):
        concerns.append(Concern.TURNED)
    return concerns


def is_axial(normal: NDArray[np.float64]) -> bool:
    """Whether the head-feet part of a normal is its largest: slices tilted by less than about 45 degrees."""
    return bool(abs(normal[2]) >= np.abs(normal).max())
