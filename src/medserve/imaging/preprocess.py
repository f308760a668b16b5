"""What the model sees is what its training saw: padded with black to a centred square, never squashed, then resized.

MedGemma's notebooks pad with zeros before the processor resizes (CXR notebooks and serving container); the resize is
Pillow's own, with its antialiasing, on 8-bit RGB, as in Hugging Face's processor for Gemma 3 on Pillow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medserve.errors import ImageError
from medserve.images import Image

FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
BLOCK = 4_000_000
"""Padded pixels that are held at once while a picture is made narrower."""


@dataclass(frozen=True)
class VisionInput:
    """What a model's vision part takes: a square of `size` pixels a side, made with Pillow's filter `resample`."""

    size: int
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 8192:
            raise ImageError(f"size must lie between 1 and 8192 pixels, not {self.size!r}", param="size")


@dataclass(frozen=True)
class Padding:
    """Where a picture lies in its square: pixels of black on the left and on top, and the square's side."""

    left: int
    top: int
    side: int

    def restore(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (y0, x0, y1, x1) in thousandths of the square, as the model gives it, in pixels of the picture.

        A box in the padding lies outside the picture and comes back negative or beyond its size; it is not moved.
        """
        y0, x0, y1, x1 = (edge * self.side / 1000 for edge in box)
        return y0 - self.top, x0 - self.left, y1 - self.top, x1 - self.left


def padding(width: int, height: int) -> Padding:
    """How a picture of width x height pixels lies in the middle; of an odd rest the right or bottom gets one more."""
    side = max(width, height)
    return Padding((side - width) // 2, (side - height) // 2, side)


def square(image: Image) -> tuple[NDArray[np.uint8], Padding]:
    """The picture in the middle of a black square, uint8 [side, side, 3], and where it lies in it."""
    place = padding(image.width, image.height)
    pixels = np.zeros((place.side, place.side, 3), np.uint8)
    pixels[place.top : place.top + image.height, place.left : place.left + image.width] = image.pixels
    return pixels, place


def resized(image: Image, vision: VisionInput) -> NDArray[np.uint8]:
    """The padded picture as the model takes it, uint8 [size, size, 3].

    Equal to Pillow's resize of `square(image)`, bit for bit, without ever holding that square: Pillow works across
    first and then down, so rows may be padded and narrowed a block at a time. A strip of 100000 x 8 pixels, whose
    square has 10 thousand million, costs no more than another picture.
    """
    kernel = FILTERS[vision.resample]
    place = padding(image.width, image.height)
    tall = np.zeros((place.side, vision.size, 3), np.uint8)
    for top, rows in _blocks(image, place):
        narrow = PIL.Image.fromarray(rows).resize((vision.size, len(rows)), kernel)
        tall[top : top + len(rows)] = np.asarray(narrow)
    return np.asarray(PIL.Image.fromarray(tall).resize((vision.size, vision.size), kernel))


def _blocks(image: Image, place: Padding) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Rows of the square that hold picture, padded on both sides: (first row, uint8 [rows, side, 3])."""
    step = max(1, BLOCK // place.side)
    right = place.side - place.left - image.width
    for start in range(0, image.height, step):
        rows = image.pixels[start : start + step]
        yield place.top + start, np.pad(rows, ((0, 0), (place.left, right), (0, 0)))


def prepare(image: Image, vision: VisionInput) -> bytes:
    """The picture as a PNG file of exactly size x size pixels, ready for an engine; equal pictures give equal bytes."""
    out = BytesIO()
    PIL.Image.fromarray(resized(image, vision)).save(out, "PNG", compress_level=1)
    return out.getvalue()
