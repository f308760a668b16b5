"""The promises of `medserve inspect`: it says what the model would see, what to beware of, and nobody's name."""

from io import BytesIO
from pathlib import Path

import PIL.Image
import pytest

from medserve import inspection
from medserve.errors import ImageTooLarge
from medserve.images import Study
from medserve.imaging.intake import Wanted
from medserve.imaging.preprocess import VisionInput
from medserve.settings import Limits
from tests.hostile import samples

pytestmark = pytest.mark.anyio


async def test_a_picture_is_described_and_shown() -> None:
    """Format, size and tokens in words, and a sheet that opens."""
    found = await inspection.inspect([samples.picture("PNG")], Limits())
    text = inspection.as_text(found.inspection)

    assert "the model sees 1 x 896 x 896 pixels, 256 tokens" in text
    assert "PNG RGB, 96 x 80, 8 bits" in text
    assert "PNG" == PIL.Image.open(BytesIO(found.sheet)).format
    assert found.overview is None


async def test_a_volume_is_described_with_its_warnings_and_without_names() -> None:
    """Spacing, the range of HU and every concern are said; the planted name is not."""
    found = await inspection.inspect([samples.dicom()], Limits())
    text = inspection.as_text(found.inspection)

    assert "1 slices of 32 x 32" in text
    assert "values 0 to 0 HU" in text
    assert "warning: fewer than 5 slices" in text
    assert "few_slices" in [warning.name for warning in found.inspection.warnings]
    assert "PLANTED" not in text + found.inspection.model_dump_json()


async def test_pictures_that_are_alike_take_one_line() -> None:
    """Eighty-five slices do not fill a screen."""
    found = await inspection.inspect([samples.picture("PNG"), samples.picture("PNG")], Limits(), vision=VisionInput(64))

    assert "     1-2  PNG RGB, 96 x 80, 8 bits" in inspection.as_text(found.inspection)
    assert 2 == len(found.inspection.pictures)


async def test_a_slide_also_shows_where_its_patches_lie(tmp_path: Path) -> None:
    """The overview is a picture of its own."""
    found = await inspection.inspect([samples.slide(side=2048)], Limits(), Wanted(magnification=20))

    assert found.overview is not None
    assert (tmp_path / "a.png", tmp_path / "a-overview.png") == inspection.save(found, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a-overview.png") as overview:
        assert "PNG" == overview.format


async def test_the_sheet_is_made_for_those_only_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """And once."""
    made: list[VisionInput] = []

    def drawn(study: Study, vision: VisionInput) -> bytes:
        made.append(vision)
        return b"PNG"

    monkeypatch.setattr(inspection, "contact_sheet", drawn)
    found = await inspection.inspect([samples.picture("PNG")], Limits())

    assert [] == made
    assert (b"PNG", b"PNG", 1) == (found.sheet, found.sheet, len(made))


async def test_a_large_volume_given_as_a_file_is_inspected(tmp_path: Path) -> None:
    """`image_bytes` is for pictures; a volume has `file_bytes`, and a refusal names the setting to raise."""
    file = tmp_path / "scan.nii"
    file.write_bytes(samples.nifti())
    (tmp_path / "scan.dcm").write_bytes(samples.dicom())
    limits = Limits(image_bytes=500, file_bytes=10**6)

    assert 6 == len((await inspection.inspect([file], limits)).inspection.pictures)
    assert 1 == len((await inspection.inspect([tmp_path / "scan.dcm"], limits)).inspection.pictures)
    for path in (file, tmp_path / "scan.dcm"):
        with pytest.raises(ImageTooLarge, match=r"raise limits\.file_bytes"):
            await inspection.inspect([path], Limits(file_bytes=500))
    (tmp_path / "picture.png").write_bytes(samples.picture("PNG"))
    with pytest.raises(ImageTooLarge, match=r"raise limits\.image_bytes"):
        await inspection.inspect([tmp_path / "picture.png"], limits.model_copy(update={"image_bytes": 50}))


async def test_the_record_says_the_same_as_the_text() -> None:
    """What --json prints can be read back."""
    found = (await inspection.inspect([samples.nifti()], Limits())).inspection

    assert found == inspection.Inspection.model_validate_json(found.model_dump_json())
    assert 6 == len(found.pictures)
