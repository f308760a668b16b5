"""What is shown has every kind of picture that a fault could hide in, and is read through the usual doors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medserve.errors import InvalidRequest
from medserve.imaging import intake
from medserve.imaging.preprocess import VisionInput
from medserve.settings import Limits
from medserve.verification import causes, pictures
from tests.imaging import phantoms


@pytest.mark.parametrize("count", [6, 24])
async def test_the_package_s_own_pictures_show_every_known_fault(count: int) -> None:
    """However few are asked for: kinds take turns."""
    found = await pictures.bundled(count)

    assert count == len(found.pictures)
    assert len({shown.image.sha256 for shown in found.pictures}) == count
    for fault in causes.FAULTS:
        assert causes.plant(fault, found.pictures, VisionInput(64)), fault.name


async def test_a_drawn_slice_arrives_with_the_very_values_that_were_drawn() -> None:
    """Through DICOM's slope and intercept and the decoder's process."""
    found = await pictures.slices(Limits())

    assert pictures.SLICES == len(found)
    for shown, drawn in zip(found, pictures.drawn(), strict=True):
        assert shown.values is not None
        assert np.array_equal(drawn, shown.values)


async def test_the_chart_s_own_colours_are_those_that_the_doors_make() -> None:
    """Of sixteen bits and of Hounsfield units the arithmetic is written twice, and comes to the same."""
    for one in pictures.chart():
        image = (await intake.read([one.file], Limits())).images[0]
        if one.colours is not None:
            assert np.array_equal(one.colours, image.pixels), one.kind


async def test_a_folder_s_pictures_are_read_and_what_is_none_is_counted(tmp_path: Path) -> None:
    """Pictures, DICOM files, and a text among them."""
    Pillow.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("no picture")
    (tmp_path / "c.dcm").write_bytes(phantoms.series(phantoms.abdomen())[0])

    found = await pictures.given(tmp_path, 10, Limits())

    assert (2, 1) == (len(found.pictures), found.refused)
    assert found.pictures[1].values is None or found.pictures[1].values.dtype in (np.int16, np.float32)


async def test_no_more_pictures_are_read_than_are_wanted(tmp_path: Path) -> None:
    """What lies behind them is not even opened."""
    for number in range(3):
        Pillow.new("RGB", (60, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")

    found = await pictures.given(tmp_path, 2, Limits())

    assert 2 == len(found.pictures)


async def test_a_picture_that_lies_there_twice_is_shown_once(tmp_path: Path) -> None:
    """Copies would make agreement look certain that nobody has seen."""
    for number in range(6):
        Pillow.new("RGB", (60, 40), "red").save(tmp_path / f"{number}.png")

    found = await pictures.given(tmp_path, 24, Limits())

    assert (1, 0) == (len(found.pictures), found.refused)


async def test_a_folder_without_a_picture_is_refused_without_a_name(tmp_path: Path) -> None:
    """A name of a file may be a patient's."""
    (tmp_path / "Mustermann.txt").write_text("no picture")

    with pytest.raises(InvalidRequest, match="none of the 1 files") as refused:
        await pictures.given(tmp_path, 10, Limits())

    assert "pictures" == refused.value.param
    assert "Mustermann" not in refused.value.message


async def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """With the option's name."""
    with pytest.raises(InvalidRequest, match="--pictures names no folder"):
        await pictures.given(tmp_path / "nowhere", 10, Limits())
