"""Pixels that are longer one way than the other become square, so that what is round in the patient looks round.

The finer of the two spacings is kept and the other one filled in between, with Pillow's bilinear filter, as in the
model's own training. Values are resampled before they are windowed, since a window cuts off what an average needs.
"""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medserve.errors import ImageUnreadable

TOLERANCE = 0.01
"""Part by which height and width of a pixel may differ and count as equal: a picture of 896 pixels is off by 9."""

LONGEST = 2048
"""Pixels that a side may grow to; a picture that is larger already stays as large."""

MOST = 100.0
"""Times that a pixel may be longer than wide. Slices of 10 mm and pixels of 0.2 mm, seen from the side, make 50."""


def size(rows: int, columns: int, spacing: tuple[float, float] | None) -> tuple[int, int]:
    """(rows, columns) with square pixels for a picture whose pixels are `spacing` (high, wide), in any unit.

    The same ones where they are square already or nothing is known. Raises ImageUnreadable beyond `MOST`.
    """
    if spacing is None or abs(spacing[0] / spacing[1] - 1) <= TOLERANCE:
        return rows, columns
    down, across = spacing
    if max(spacing) / min(spacing) > MOST:
        raise ImageUnreadable(
            f"the file declares pixels that are {max(spacing) / min(spacing):.0f} times longer than wide", param="image"
        )
    side = max(min(spacing), max(rows * down, columns * across) / max(LONGEST, rows, columns))
    return max(1, round(rows * down / side)), max(1, round(columns * across / side))


def note(rows: int, columns: int) -> str:
    """What a picture's notes say of it."""
    return f"resampled to square pixels: {columns} x {rows}"


def values(plane: NDArray[np.int16] | NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """A slice's measured values [any, any] as float32 [rows, columns]."""
    picture = PIL.Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize((columns, rows), PIL.Image.Resampling.BILINEAR))


def colours(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """A picture uint8 [any, any, 3] as uint8 [rows, columns, 3]."""
    picture = PIL.Image.fromarray(pixels)
    return np.asarray(picture.resize((columns, rows), PIL.Image.Resampling.BILINEAR))
