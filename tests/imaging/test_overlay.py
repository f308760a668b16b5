"""What is drawn lies where it was found, and nothing else of the picture changes."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from medserve.imaging import overlay
from tests import pictures

LINE, RED = (255, 196, 0), (200, 0, 0)


def opened(png: str) -> NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(BytesIO(b64decode(png))).convert("RGB"))


def is_line(drawn: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((drawn == LINE).all(axis=2))


def test_a_region_has_a_line_around_it() -> None:
    """At twice the size: just outside of the region, which itself stays as it was."""
    region = np.zeros((64, 64), np.bool_)
    region[20:30, 40:44] = True
    line = is_line(opened(overlay.outlined(pictures.picture(), region)))

    rows, columns = np.nonzero(line)
    assert (39, 60, 79, 88) == (rows.min(), rows.max(), columns.min(), columns.max())
    assert not line[40:60, 80:88].any()
    assert 2 * (20 + 8) == line.sum()


@pytest.mark.parametrize("edge", [(slice(0, 4), slice(0, 64)), (slice(0, 64), slice(60, 64))])
def test_a_line_at_the_border_does_not_come_out_on_the_other_side(edge: tuple[slice, slice]) -> None:
    """What reaches the border is open there."""
    region = np.zeros((64, 64), np.bool_)
    region[edge] = True
    line = is_line(opened(overlay.outlined(pictures.picture(), region)))

    assert 128 == line.sum()
    assert not line[100:, :].any() or not line[:, :28].any()


def test_a_region_may_have_other_rows_than_the_picture() -> None:
    """Voxels that are not square are shown square: the region covers the picture all the same."""
    region = np.zeros((32, 64), np.bool_)
    region[10:15, 40:44] = True
    rows, _columns = np.nonzero(is_line(opened(overlay.outlined(pictures.picture(), region))))

    assert (39, 60) == (rows.min(), rows.max())


def test_places_are_tinted_and_the_rest_is_not() -> None:
    """A place that goes on beyond the border ends there."""
    drawn = opened(overlay.coloured(pictures.picture(100), [(0, 0, 32, 32), (32, 48, 80, 80)], [RED, RED]))

    assert (128, 128, 3) == drawn.shape
    tinted = (drawn != 100).any(axis=2)
    assert tinted[:64, :64].all()
    assert tinted[96:, 64:].all()
    assert 64 * 64 + 32 * 64 == tinted.sum()


def test_large_pictures_become_small_figures() -> None:
    """A figure travels inside a report: 640 pixels of its longer side at most."""
    drawn = opened(overlay.coloured(pictures.picture(100, 2000, 1000), [], []))

    assert (320, 640, 3) == drawn.shape
