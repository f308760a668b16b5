"""A series becomes one volume of true values and the pictures of it that MedGemma was trained to see.

CT is measured in Hounsfield units by RescaleSlope and RescaleIntercept and nothing else, and seen through three
windows. MR is stretched from the least to the greatest value of the whole acquisition. At most 85 slices are sent, each
followed by its label; all of them stay in the volume, for measuring.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Image, Modality, Source, Study, Volume
from medserve.imaging import series, square, windows
from medserve.imaging.instance import Instance, numbers, texts
from medserve.imaging.series import Series, Slice
from medserve.settings import Limits

VOXELS = 300_000_000
"""Voxels of a volume that are read: 600 MB as int16, 1144 slices of 512 x 512."""

LARGEST_MATRIX = 512
"""Rows and columns of the slices that the model was trained on."""

Values = NDArray[np.int16] | NDArray[np.float32]


def check_voxels(slices: int, rows: int, columns: int, limits: Limits) -> None:
    """Refuse a volume that is too large before any memory is taken for it; raises ImageTooLarge."""
    if slices > limits.image_frames or slices * rows * columns > VOXELS or rows * columns > limits.image_pixels:
        raise ImageTooLarge(
            f"the volume has {slices} slices of {columns} x {rows}; at most {limits.image_frames} slices and {VOXELS} "
            "voxels are read: send a part of the series",
            param="image",
        )


def of_series(found: Series, modality: Modality, limits: Limits) -> Study:
    """The study of a CT or MR series: pictures with labels, and the volume if the files say where the slices lie.

    Raises ImageUnreadable for a CT with one of RescaleSlope and RescaleIntercept only, and ImageTooLarge.
    """
    first = found.slices[0].instance
    check_voxels(len(found.slices), first.rows, first.columns, limits)
    rescales = [_rescale(one, modality) for one in found.slices]
    concerns = list(found.concerns)
    hounsfield = modality is Modality.CT and all(pair is not None for pair in rescales) and _is_hounsfield(found.slices)
    if modality is Modality.CT and not hounsfield:
        concerns.append(Concern.NOT_HOUNSFIELD)
    if modality is Modality.MR and len(set(rescales)) == 1:
        # The same factor on all slices changes nothing in a stretch; the published arithmetic is on stored values.
        rescales = [None] * len(rescales)
    values = _values(found.slices, rescales)
    space = _volume(found.slices, values, hounsfield=hounsfield)
    return study(
        values,
        space,
        modality,
        concerns,
        hounsfield=hounsfield,
        pixel=first.spacing(found.slices[0].frame),
        inverted=first.is_inverted,
        bits=first.bits,
    )


def study(
    values: Values,
    volume: Volume | None,
    modality: Modality,
    concerns: Sequence[Concern],
    *,
    hounsfield: bool = False,
    pixel: tuple[float, float] | None = None,
    inverted: bool = False,
    bits: int = 16,
    format_name: str = "DICOM",
) -> Study:
    """Pictures, labels and concerns of a volume's values [slices, rows, columns].

    Where there is no `volume` to tell, `hounsfield` says whether they are HU, and `pixel` how high and wide one is.
    Pictures have square pixels; the volume stays as it was measured.
    """
    in_hu = volume.unit == "HU" if volume is not None else hounsfield
    pixel = volume.spacing[1:] if volume is not None else pixel
    concerns = list(concerns)
    low, high = float(values.min()), float(values.max())
    if low == high:
        concerns.append(Concern.NO_CONTRAST)
    if max(values.shape[1:]) > LARGEST_MATRIX:
        concerns.append(Concern.LARGE_MATRIX)
    indices = windows.chosen(len(values))
    if len(indices) < len(values):
        concerns.append(Concern.SLICES_LEFT_OUT)
    rows, columns = square.size(values.shape[1], values.shape[2], pixel)
    is_square = (rows, columns) == values.shape[1:]
    if not is_square:
        concerns.append(Concern.RESAMPLED)
    notes = () if is_square else (square.note(rows, columns),)
    source = Source(format_name, "HU" if in_hu else "grey", values.shape[2], values.shape[1], bits, len(values), notes)
    images = []
    for index in indices:
        plane = values[index] if is_square else square.values(values[index], rows, columns)
        pixels = windows.three_windows(plane) if in_hu else _grey(plane, low, high, inverted)
        images.append(Image(pixels, source))
    return Study(
        images=tuple(images),
        modality=modality,
        labels=windows.labels(len(images)),
        spacing=volume.spacing if volume is not None and len(values) > 1 else None,
        concerns=tuple(dict.fromkeys(concerns)),
        volume=volume,
        slices=indices,
    )


def _grey(values: Values, low: float, high: float, inverted: bool) -> NDArray[np.uint8]:
    grey = windows.stretched(values, low, high)
    return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)


def _rescale(one: Slice, modality: Modality) -> tuple[float, float] | None:
    """(slope, intercept) of a slice, or None without them; one of the two alone is an error in CT."""
    group = "PixelValueTransformationSequence"
    slope = numbers(one.instance.value("RescaleSlope", group, one.frame), 1, "RescaleSlope")
    intercept = numbers(one.instance.value("RescaleIntercept", group, one.frame), 1, "RescaleIntercept")
    if (slope is None) != (intercept is None) and modality is Modality.CT:
        raise ImageUnreadable(
            "the CT has only one of RescaleSlope and RescaleIntercept, so its values are not Hounsfield units; "
            "export the series again",
            param="image",
        )
    if slope is None or intercept is None:
        return None
    if slope[0] == 0:
        raise ImageUnreadable("the file's RescaleSlope is 0: every voxel would be the same", param="image")
    return slope[0], intercept[0]


def _is_hounsfield(slices: Sequence[Slice]) -> bool:
    """Whether RescaleType says HU or nothing; without it a CT's values are HU (PS3.3 C.8.2.1.1.2)."""
    group = "PixelValueTransformationSequence"
    return all(texts(one.instance.value("RescaleType", group, one.frame))[:1] in ((), ("",), ("HU",)) for one in slices)


def _values(slices: Sequence[Slice], rescales: Sequence[tuple[float, float] | None]) -> Values:
    """The slices' rescaled values, [slices, rows, columns]: int16 if all are whole numbers in its range, else float32.

    Single precision holds every whole number up to 16 million, and the recipe's windows work in it.
    """
    shape = (len(slices), slices[0].instance.rows, slices[0].instance.columns)
    measured = ((index, rescaled(stored, *(rescales[index] or (1.0, 0.0)))) for index, stored in _decoded(slices))
    return gathered(measured, shape)


def gathered(slices: Iterable[tuple[int, Values]], shape: tuple[int, int, int]) -> Values:
    """(index, values of that slice) put together, [slices, rows, columns]: int16 as long as all slices are."""
    values: Values = np.zeros(shape, np.int16)
    for index, one in slices:
        if values.dtype == np.int16 and one.dtype != np.int16:
            values = values.astype(np.float32)
        values[index] = one
    return values


def _decoded(slices: Sequence[Slice]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """(index of the slice, its stored values) for each slice, every file's frames in one go."""
    by_file = sorted(range(len(slices)), key=lambda index: (id(slices[index].instance), slices[index].frame))
    for _file, group in groupby(by_file, key=lambda index: id(slices[index].instance)):
        indices = list(group)
        instance: Instance = slices[indices[0]].instance
        yield from zip(indices, instance.stored([slices[index].frame for index in indices]), strict=True)


def rescaled(stored: NDArray[np.generic], slope: float, intercept: float) -> Values:
    """stored * slope + intercept of any shape, as int16 where that is exact and as float32 elsewhere."""
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer() and abs(slope) <= 32768:
        low, high = int(stored.min()) * int(slope), int(stored.max()) * int(slope)
        low, high = min(low, high) + int(intercept), max(low, high) + int(intercept)
        if low >= -32768 and high <= 32767:
            # int64 cannot overflow here: 32 bits stored, 16 of slope, and the result has 16.
            return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):
        measured = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if not np.isfinite(measured).all():
        raise ImageUnreadable("the rescaled values are too large to be measurements", param="image")
    return measured


def _volume(slices: Sequence[Slice], values: Values, *, hounsfield: bool) -> Volume | None:
    """The voxels with their places; None where a slice does not say where it lies."""
    places = [one.place for one in slices if one.place is not None]
    if len(places) < len(slices):
        return None
    return Volume(
        values,
        np.array([place.position for place in places]),
        _step(places[0].down),
        _step(places[0].across),
        "HU" if hounsfield else "none",
    )


def _step(step: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(step[0]), float(step[1]), float(step[2])


def judged(volume: Volume) -> list[Concern]:
    """What there is to say about a volume's geometry: gaps, uneven steps, too few slices, another view than axial."""
    found = series.judged(volume.depths, np.array(volume.down), np.array(volume.across))
    return [*found, Concern.FEW_SLICES] if len(volume.values) < series.FEWEST else found
