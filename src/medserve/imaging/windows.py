"""Scanner values become the 8 bits that MedGemma was trained on, by the published arithmetic, to the last bit.

CT and the choice of slices follow Google's notebook `high_dimensional_ct_hugging_face` (Apache-2.0), MR its serving
container's `_process_buffered_mri_volume`. Google's serving code has another green window for CT (+135..+215, the
centre 175 and width 80 of `_MEDGEMMA_1_CT_DEFAULT_WINDOW`) than its notebook and its model card; ours is the
notebook's. How other pictures are windowed is DICOM's own text: PS3.3 C.11.2.1.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageUnreadable

CT_WINDOWS = ((-1024, 1024), (-135, 215), (0, 80))
"""Hounsfield units from black to full in red (everything), green (soft tissue) and blue (brain)."""

MOST_SLICES = 85
"""Slices of a volume that the model takes: 85 pictures of 256 tokens are 21,760."""


def three_windows(hounsfield: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Hounsfield units of any shape [...] as uint8 [..., 3]: red, green and blue are three windows of the same voxel.

    Each is clipped, scaled to 0..255 in single precision in the notebook's order of operations, and rounded to the
    nearest integer, halves to the even one (`numpy.round`). Of int16 every possible value is computed once.
    """
    if hounsfield.dtype == np.int16:
        return _table()[hounsfield.view(np.uint16)]
    return _windowed(hounsfield.astype(np.float32))


@cache
def _table() -> NDArray[np.uint8]:
    """The colour of each int16, at the index of the same bits read as uint16: uint8 [65536, 3]."""
    return _windowed(np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float32))


def _windowed(hounsfield: NDArray[np.float32]) -> NDArray[np.uint8]:
    colours = np.empty((*hounsfield.shape, 3), np.uint8)
    for channel, (low, high) in enumerate(CT_WINDOWS):
        scaled = np.clip(hounsfield, low, high)
        scaled -= low
        scaled /= high - low
        scaled *= 255.0
        colours[..., channel] = np.round(scaled)
    return colours


def stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values of any shape as uint8 of the same shape: `low` and below is 0, `high` and above 255, rounded between.

    Where nothing lies between (`low` equals `high`), all is 255, as in Google's serving code for MR.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageUnreadable("the picture holds values that are not numbers", param="image")
    if high <= low:
        return np.full(values.shape, 255, np.uint8)
    scaled = values.astype(np.float64)
    np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled /= high - low
    scaled *= 255
    return np.round(scaled, out=scaled).astype(np.uint8)


def chosen(slices: int, most: int = MOST_SLICES) -> tuple[int, ...]:
    """Which of a volume's slices are sent, counted from 0: all, or `most` of them by the notebook's formula.

    idx = round(i / most * (slices - 1)) for i = 1..most. It counts from 1, so the last slice is always chosen and the
    first never. Python rounds halves to even, others up: with 85 there is no half, because i (slices - 1) / 85 is one
    only if an odd number, 85 (2 k + 1), is even.
    """
    if slices <= most:
        return tuple(range(slices))
    return tuple(round(i / most * (slices - 1)) for i in range(1, most + 1))


def labels(images: int) -> tuple[str, ...]:
    """The text after each picture: SLICE 1, SLICE 2, ... numbers of the pictures as sent, not of the scanner."""
    return tuple(f"SLICE {number}" for number in range(1, images + 1))


def linear(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float64]:
    """DICOM's LINEAR window, the default: 0 to 1 over `width` whole grey values (PS3.3 C.11.2.1.2.1)."""
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values.astype(np.float64) - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def linear_exact(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float64]:
    """DICOM's LINEAR_EXACT window: 0 to 1 from centre - width / 2 to centre + width / 2 (PS3.3 C.11.2.1.3.2)."""
    return np.clip((values.astype(np.float64) - centre) / width + 0.5, 0, 1)


def sigmoid(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float64]:
    """DICOM's SIGMOID window: 1 / (1 + exp(-4 (x - centre) / width)) (PS3.3 C.11.2.1.3.1)."""
    # exp overflows beyond 709; at 500 the curve has long met 0.
    return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values.astype(np.float64) - centre) / width, -500, 500))))


FUNCTIONS: dict[str, Callable[[NDArray[Any], float, float], NDArray[np.float64]]] = {
    "LINEAR": linear,
    "LINEAR_EXACT": linear_exact,
    "SIGMOID": sigmoid,
}


def windowed(values: NDArray[Any], centre: float, width: float, function: str = "LINEAR") -> NDArray[np.uint8]:
    """Values of any shape as uint8 of the same shape, through the window that a file asks for.

    Raises ImageUnreadable for a function that DICOM does not define, and for a width that it forbids: under 1 for
    LINEAR, 0 or less for the others.
    """
    if function not in FUNCTIONS:
        raise ImageUnreadable(
            "the file asks for a window function other than LINEAR, LINEAR_EXACT, SIGMOID", param="image"
        )
    if not (np.isfinite(centre) and np.isfinite(width)) or width < (1 if function == "LINEAR" else 1e-9):
        raise ImageUnreadable(f"the file asks for a window of centre {centre:g} and width {width:g}", param="image")
    return np.round(FUNCTIONS[function](values, centre, width) * 255).astype(np.uint8)
