"""Square pixels show true proportions, and neither values nor memory run away on the way."""

import numpy as np
import pytest

from medserve.errors import ImageUnreadable
from medserve.imaging import square


@pytest.mark.parametrize(
    ("spacing", "size"),
    [
        (None, (100, 200)),
        ((0.7, 0.7), (100, 200)),
        ((1.0, 1.0099), (100, 200)),
        ((2.0, 1.0), (200, 200)),
        ((0.5, 2.0), (100, 800)),
        ((1.0, 90.0), (11, 2048)),
    ],
)
def test_the_finer_spacing_is_kept_up_to_a_longest_side(
    spacing: tuple[float, float] | None, size: tuple[int, int]
) -> None:
    """100 x 200 pixels of this height and width; within 1 % they stay as they are."""
    assert size == square.size(100, 200, spacing)


def test_no_device_has_lines_for_pixels() -> None:
    """More than 100 to 1 is a mistake of the file."""
    with pytest.raises(ImageUnreadable, match="101 times"):
        square.size(100, 200, (1.0, 101.0))


def test_values_stay_measurements() -> None:
    """Whole numbers and fractions are filled in between in floating point, within their own range."""
    plane = np.array([[-1000, 1000]] * 2, np.int16)
    assert [-1000, -500, 500, 1000] == square.values(plane, 2, 4)[0].tolist()
