"""A contact sheet shows every picture of a study exactly as the model's vision part gets it, in the order it gets them.

Each is squared, padded and resized by `medserve.imaging.preprocess`, the same function that engines use, and only then
made small for the sheet. Under each stands its number and its label; nothing else, and no word from the files.
"""

import math
from io import BytesIO

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from medserve.images import Image, Study
from medserve.imaging.preprocess import VisionInput, resized

MARGIN = 8
CAPTION = 20
SIDES = ((1, 896), (4, 448), (24, 224))
"""Up to so many pictures, each is shown so many pixels wide; of more pictures each has SMALLEST."""
SMALLEST = 160
BACKGROUND, INK = (32, 32, 32), (235, 235, 235)


def contact_sheet(study: Study, vision: VisionInput) -> bytes:
    """The sheet as a PNG file; equal studies give equal bytes."""
    count = len(study.images)
    side = min(next((side for most, side in SIDES if count <= most), SMALLEST), vision.size)
    columns = _columns(count)
    width, height = side + MARGIN, side + CAPTION + MARGIN
    rows = math.ceil(count / columns)
    sheet = PIL.Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for place, image in enumerate(study.images):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * width, MARGIN + row * height
        sheet.paste(_small(image, vision, side), (left, top))
        draw.text((left, top + side + 3), _caption(study, place), INK, ImageFont.load_default(14))
    return _png(sheet)


def picture(image: Image) -> bytes:
    """A picture's own pixels as a PNG file."""
    return _png(PIL.Image.fromarray(np.asarray(image.pixels)))


def _columns(count: int) -> int:
    """A sheet somewhat wider than high, as screens are."""
    return max(1, min(count, round(math.sqrt(count * 1.6))))


def _small(image: Image, vision: VisionInput, side: int) -> PIL.Image.Image:
    seen = PIL.Image.fromarray(resized(image, vision))
    return seen if side == vision.size else seen.resize((side, side), PIL.Image.Resampling.BOX)


def _caption(study: Study, place: int) -> str:
    return f"{place + 1}  {study.labels[place]}" if study.labels else str(place + 1)


def _png(picture: PIL.Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
