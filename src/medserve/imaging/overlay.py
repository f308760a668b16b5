"""What was found is drawn on the picture it was found in: boxes and outlines, and no word that came from the files."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from medserve.images import Image
from medserve.reports import Box

MOST_SIDE = 640
"""Pixels of a figure's longer side; smaller pictures are not enlarged beyond twice their size."""
COLOURS = ((255, 196, 0), (0, 200, 255), (255, 90, 150), (120, 230, 90), (200, 150, 255), (255, 130, 40))
FONT = 14
TINT = 0.45
"""How much of a tinted place is the colour."""


def boxes(image: Image, found: Sequence[Box]) -> str:
    """The picture with boxes and their labels on it, PNG in base64; equal input gives equal text."""
    scale = _scale(image)
    picture = _enlarged(np.asarray(image.pixels), scale)
    draw = ImageDraw.Draw(picture)
    for place, box in enumerate(found):
        colour = COLOURS[place % len(COLOURS)]
        edges = (box.left * scale, box.top * scale, box.right * scale, box.bottom * scale)
        draw.rectangle(edges, outline=colour, width=2)
        _named(draw, f"{place + 1} {box.label}", (edges[0], edges[1]), picture.width, colour)
    return png(picture)


def outlined(image: Image, region: NDArray[np.bool_]) -> str:
    """The picture with a line around a region, PNG in base64.

    The region is bool [rows, columns] and covers the whole picture, in as many rows and columns as it has voxels.
    """
    scale = _scale(image)
    picture = _enlarged(np.asarray(image.pixels), scale)
    drawn = np.array(picture)
    mask = np.asarray(PIL.Image.fromarray(region).resize(picture.size, PIL.Image.Resampling.NEAREST))
    grown = ndimage.binary_dilation(mask)
    drawn[grown & ~mask] = COLOURS[0]
    return png(PIL.Image.fromarray(drawn))


def coloured(
    image: Image, places: Sequence[tuple[float, float, float, float]], colours: Sequence[tuple[int, int, int]]
) -> str:
    """The picture with each place (left, top, right, bottom, in its pixels) tinted in its colour, PNG in base64."""
    scale = _scale(image)
    picture = _enlarged(np.asarray(image.pixels), scale)
    tinted = picture.copy()
    draw = ImageDraw.Draw(tinted)
    for place, colour in zip(places, colours, strict=True):
        left, top, right, bottom = (edge * scale for edge in place)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)
    return png(PIL.Image.blend(picture, tinted, TINT))


def png(picture: PIL.Image.Image) -> str:
    """A picture as PNG in base64."""
    out = BytesIO()
    picture.save(out, "PNG", optimize=True)
    return b64encode(out.getvalue()).decode()


def _scale(image: Image) -> float:
    return min(MOST_SIDE / max(image.width, image.height), 2.0)


def _enlarged(pixels: NDArray[np.uint8], scale: float) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(pixels)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, PIL.Image.Resampling.BICUBIC)


def _named(
    draw: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], width: int, colour: tuple[int, int, int]
) -> None:
    """A label on dark ground above its box, or inside it at the picture's upper edge."""
    font = ImageFont.load_default(FONT)
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    x = max(0.0, min(corner[0], width - (right - left) - 4))
    y = corner[1] - (bottom - top) - 6
    y = corner[1] + 2 if y < 0 else y
    draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=(20, 20, 20))
    draw.text((x + 2 - left, y + 2 - top), text, colour, font)
