"""Pictures that tests draw themselves, where a real one would add nothing."""

from functools import cache

import numpy as np

from medserve.images import Image, Source, Study
from medserve.imaging import raster
from medserve.settings import DEMO, Limits


def picture(shade: int = 120, width: int = 64, height: int = 64) -> Image:
    """A plain picture of one shade."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    return Image(pixels, Source("PNG", "RGB", width, height))


def study(*shades: int) -> Study:
    """A study of plain pictures."""
    return Study(tuple(picture(shade) for shade in shades or (120,)))


@cache
def drawn(name: str) -> Study:
    """A drawing that ships with the demonstration model, such as "lesion-mel" or "colon-normal"."""
    return Study((raster.decode((DEMO / "drawings" / f"{name}.png").read_bytes(), Limits()),))
