"""Slides made of drawings, patch by patch, as files that the slide reader opens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.imaging import pyramids
from tools.demo_model import colon

PATCH = 896
GLASS = None
"""A place without tissue."""


def drawn(kinds: Sequence[Sequence[bool | None]], seed: int = 6_200_000) -> NDArray[np.uint8]:
    """Rows of patches of 896 x 896 pixels, each malignant, normal, or glass."""
    rows = [
        np.concatenate([_patch(kind, seed + 100 * row + place) for place, kind in enumerate(those)], axis=1)
        for row, those in enumerate(kinds)
    ]
    return np.concatenate(rows, axis=0)


def slide(folder: Path, kinds: Sequence[Sequence[bool | None]], seed: int = 6_200_000) -> Path:
    """An SVS of these patches, 1 micrometre a pixel."""
    return pyramids.aperio(folder / "slide.svs", [drawn(kinds, seed)], mpp=1.0, power=10)


def _patch(kind: bool | None, number: int) -> NDArray[np.uint8]:
    if kind is None:
        return pyramids.glass(PATCH, PATCH)
    return np.asarray(colon.draw(number, PATCH, kind).image)
