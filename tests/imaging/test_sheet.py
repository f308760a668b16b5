"""The promises of the contact sheet: it shows what the model gets, and nothing that the model does not."""

from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from medserve.images import Image, Source, Study
from medserve.imaging.preprocess import VisionInput, resized
from medserve.imaging.sheet import MARGIN, contact_sheet
from tests.hostile import samples
from tests.pictures import picture


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(BytesIO(data))


def test_one_picture_is_shown_pixel_for_pixel_as_the_model_gets_it() -> None:
    """Padded, resized, and not touched again."""
    image = Image(samples.drawing(120, 50), Source("PNG", "RGB", 120, 50))
    vision = VisionInput(64)
    sheet = np.asarray(opened(contact_sheet(Study((image,)), vision)))

    assert np.array_equal(resized(image, vision), sheet[MARGIN : MARGIN + 64, MARGIN : MARGIN + 64])


@pytest.mark.parametrize("count", [1, 2, 5, 30, 85, 128])
def test_every_picture_has_its_place_and_the_sheet_stays_small(count: int) -> None:
    """The middle of each place has its picture's shade, row by row; a full series fits on a screen."""
    shades = [40 + number for number in range(count)]
    sheet = opened(contact_sheet(Study(tuple(picture(shade) for shade in shades)), VisionInput(896)))

    assert max(sheet.size) <= 3000
    found = {pixel for _number, pixel in sheet.getcolors(2**16) or ()}
    assert {(shade, shade, shade) for shade in shades} <= found


def test_equal_studies_give_equal_sheets() -> None:
    """A sheet can be compared by its bytes."""
    study = Study((picture(), picture(3)), labels=("SLICE 1", "SLICE 2"))

    assert contact_sheet(study, VisionInput(32)) == contact_sheet(study, VisionInput(32))
