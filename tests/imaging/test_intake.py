"""The promises of the one door: whatever holds the files, the same files are the same study."""

import gzip
from pathlib import Path

import pytest
from pydicom.uid import UID, generate_uid

from medserve.errors import (
    ImageError,
    ImageTooLarge,
    ImageUnreadable,
    InvalidRequest,
    MagnificationUnknown,
    NoTissue,
)
from medserve.images import Concern, Modality
from medserve.imaging import intake
from medserve.imaging.intake import Material, Wanted
from medserve.settings import Limits
from tests.hostile import samples
from tests.imaging import phantoms, pyramids

LIMITS = Limits()
pytestmark = pytest.mark.anyio


def series(count: int = 6) -> dict[str, bytes]:
    """CT slices that lie 2 mm apart, in files whose names run against their order."""
    files = {}
    for number in range(count):
        made = samples.dataset()
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number + 10}")
        made.ImagePositionPatient, made.InstanceNumber = ["0", "0", str(2 * number)], str(number + 1)
        files[f"CT/IM{count - number}"] = samples.written(made)
    return files


def laid_out(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("holder", ["files", "paths", "folder", "zip", "tar", "tar.gz"])
async def test_a_series_is_the_same_study_whatever_holds_it(holder: str, tmp_path: Path) -> None:
    """Bytes, paths, a folder and archives bring the same pictures, in anatomical order, with the same volume."""
    files = series()
    folder = laid_out(files, tmp_path)
    tar = samples.tarred(files)
    materials: dict[str, list[Material]] = {
        "files": list(files.values()),
        "paths": [folder / name for name in files],
        "folder": [folder],
        "zip": [samples.zipped(files)],
        "tar": [tar],
        "tar.gz": [gzip.compress(tar)],
    }
    study = await intake.read(materials[holder], LIMITS)

    assert (Modality.CT, 6, (2.0, 0.7, 0.7)) == (study.modality, len(study.images), study.spacing)
    assert study.volume is not None
    assert (6, 32, 32) == study.volume.values.shape
    assert study.sha256 == (await intake.read([folder], LIMITS)).sha256


async def test_a_dicomdir_brings_the_files_that_it_lists(tmp_path: Path) -> None:
    """A CD's index is as good as its folder."""
    from tests.hostile.crafted import _directory

    files = series(5)
    laid_out(files, tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(_directory([name.split("/") for name in files]))

    assert 5 == len((await intake.read([tmp_path / "DICOMDIR"], LIMITS)).images)
    assert 5 == len((await intake.read([tmp_path], LIMITS)).images)


async def test_pictures_keep_the_order_they_were_given_in() -> None:
    """The first picture sent is the first that the model sees."""
    pictures = [samples.picture("PNG"), samples.picture("JPEG", "L"), samples.picture("GIF", "P")]
    study = await intake.read(list(pictures), LIMITS, Wanted(Modality.DERMOSCOPY))

    assert ["PNG", "JPEG", "GIF"] == [image.source.format for image in study.images]
    assert Modality.DERMOSCOPY is study.modality


@pytest.mark.parametrize("as_path", [True, False], ids=["path", "bytes"])
async def test_a_slide_comes_with_patches_and_an_overview(as_path: bool, tmp_path: Path) -> None:
    """As a path or as bytes, with the magnification that was asked for; the same seed brings the same patches."""
    (tmp_path / "a.svs").write_bytes(samples.slide(side=2048))
    material = tmp_path / "a.svs" if as_path else samples.slide(side=2048)
    reading = await intake.reading([material], LIMITS, Wanted(magnification=20, patches=3, seed=5))

    assert Modality.HISTOLOGY is reading.study.modality
    assert 1 <= len(reading.study.images) <= 3
    assert {(896, 896)} == {(image.width, image.height) for image in reading.study.images}
    assert reading.overview is not None


async def test_a_slide_of_little_power_is_shown_as_it_is() -> None:
    """Where nobody asked for a magnification, the slide's own is used and said to be unusual."""
    coarse = samples.slide(side=2048).replace(b"AppMag = 20|MPP = 0.5", b"AppMag = 02|MPP = 5.0")
    study = await intake.read([coarse], LIMITS)

    assert "2x" == dict(study.facts)["patches at"]
    with pytest.raises(ImageError, match="ask for less"):
        await intake.read([coarse], LIMITS, Wanted(magnification=10))


async def test_a_slide_without_tissue_is_refused_as_such(tmp_path: Path) -> None:
    """The error's own type and code come out of the decoder's process, for a path and for bytes."""
    path = pyramids.aperio(tmp_path / "a.svs", [pyramids.glass(1000, 1000)])
    for material in (path, path.read_bytes()):
        with pytest.raises(NoTissue, match="the slide is empty") as caught:
            await intake.read([material], LIMITS)
        assert "no_tissue" == caught.value.code


async def test_a_slide_of_unknown_magnification_is_refused_as_such(tmp_path: Path) -> None:
    """The same for a slide that says neither pixel size nor objective; a caller who knows it is served."""
    path = pyramids.aperio(tmp_path / "a.svs", [pyramids.section(1000, 1000)], mpp="", power="")
    for material in (path, path.read_bytes()):
        with pytest.raises(MagnificationUnknown, match="mpp") as caught:
            await intake.read([material], LIMITS)
        assert "magnification_unknown" == caught.value.code
        assert 1 == len((await intake.read([material], LIMITS, Wanted(mpp=1.0))).images)


def dicom_slide(folder: Path) -> dict[str, bytes]:
    """A DICOM slide of two levels and a label, each in a file."""
    first, uid = pyramids.section(2000, 1000), generate_uid()
    pyramids.dicom(folder / "b.dcm", first, 0.5, uid)
    pyramids.dicom(folder / "a.dcm", pyramids.halved(first, 4), 2.0, uid)
    pyramids.dicom(folder / "c.dcm", pyramids.glass(300, 300), 2.0, uid, kind="LABEL")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("holder", ["files", "paths", "zip", "tar.gz"])
async def test_a_dicom_slide_of_several_files_is_one_slide_whatever_holds_it(holder: str, tmp_path: Path) -> None:
    """An upload, a DICOMweb answer and an archive are as good as the folder, the second time as well."""
    files = dicom_slide(tmp_path)
    materials: dict[str, list[Material]] = {
        "files": list(files.values()),
        "paths": [tmp_path / name for name in files],
        "zip": [samples.zipped(files)],
        "tar.gz": [gzip.compress(samples.tarred(files))],
    }
    wanted = Wanted(magnification=20)
    expected = await intake.reading([tmp_path], LIMITS, wanted)
    assert (2, "20x, 5x") == (len(expected.study.images), dict(expected.study.facts)["levels"])
    for _time in range(2):
        found = await intake.reading(materials[holder], LIMITS, wanted)
        assert expected.study == found.study
        assert expected.overview == found.overview


async def test_a_shorter_slide_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Files in memory are used again: what a slide left there must not reach the next one."""
    files = list(dicom_slide(tmp_path).values())
    await intake.read(files, LIMITS, Wanted(magnification=20))
    for cut in (files[1][:-400_000], files[1][: len(files[1]) // 2]):
        with pytest.raises(ImageUnreadable, match="cut short"):
            await intake.read([files[0], cut], LIMITS, Wanted(magnification=20))


async def test_two_dicom_slides_in_one_request_are_refused(tmp_path: Path) -> None:
    """Two series might be two patients."""
    files = [
        pyramids.dicom(tmp_path / name, pyramids.section(256, 256), 0.5, generate_uid()).read_bytes()
        for name in ("a", "b")
    ]
    with pytest.raises(ImageUnreadable, match="several slides"):
        await intake.read(files, LIMITS)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
async def test_pages_that_were_not_read_are_said(kind: str) -> None:
    """Of a scanned document or an animation only the first page is seen: the report must say so."""
    study = await intake.read([samples.animation(kind)], LIMITS)
    assert (1, (Concern.FRAMES_LEFT_OUT,)) == (len(study.images), study.concerns)
    assert () == (await intake.read([samples.picture(kind, "P" if kind == "GIF" else "RGB")], LIMITS)).concerns


async def test_nifti_is_read_plain_and_gzipped() -> None:
    """A volume is the same study either way."""
    plain = await intake.read([samples.nifti()], LIMITS)

    assert 6 == len(plain.images)
    assert plain.sha256 == (await intake.read([gzip.compress(samples.nifti())], LIMITS)).sha256


async def test_what_lies_beside_dicom_files_is_left_out_and_said(tmp_path: Path) -> None:
    """A viewer's programs and previews on a CD are no pictures of the study."""
    laid_out({**series(5), "README.TXT": b"start me", "preview.jpg": samples.picture("JPEG")}, tmp_path)
    study = await intake.read([tmp_path], LIMITS)

    assert 5 == len(study.images)
    assert Concern.NOT_A_PICTURE_DROPPED in study.concerns


async def test_a_file_that_was_named_is_never_left_out() -> None:
    """A request with something unreadable in it is refused as a whole."""
    with pytest.raises(ImageUnreadable, match=r"not a file that is read here; send JPEG.*DICOM.*NIfTI.*zip"):
        await intake.read([samples.picture("PNG"), b"text"], LIMITS)
    with pytest.raises(ImageUnreadable, match="several kinds"):
        await intake.read([samples.picture("PNG"), samples.dicom()], LIMITS)


async def test_a_dicomdir_alone_asks_for_its_folder() -> None:
    """What only lists files shows nothing."""
    from tests.hostile.crafted import _directory

    with pytest.raises(ImageUnreadable, match="send a zip of its whole folder"):
        await intake.read([_directory([["IM1"]])], LIMITS)


async def test_nothing_and_too_much_are_refused_before_a_decoder_is_asked() -> None:
    """Counts and sizes are checked at the door."""
    with pytest.raises(InvalidRequest, match="at least one"):
        await intake.read([], LIMITS)
    with pytest.raises(ImageTooLarge, match="more than 4 files"):
        await intake.read([b"x"] * 5, Limits(image_frames=1))
    with pytest.raises(ImageTooLarge, match="more than 4 bytes together"):
        await intake.read([b"xxxxx"], Limits(body_bytes=1))


async def test_a_pipe_or_a_missing_file_is_not_waited_for(tmp_path: Path) -> None:
    """Only plain files are opened, and no path is quoted."""
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "no devices or pipes"), ("missing", "No such file")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await intake.read([tmp_path / name], LIMITS)
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    "wrong", [{"patches": 0}, {"patches": 126}, {"magnification": float("nan")}, {"seed": -1}, {"mpp": 5000}]
)
async def test_options_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    """Each names its field."""
    with pytest.raises(InvalidRequest) as caught:
        Wanted(**wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) == caught.value.param


async def test_no_planted_name_is_anywhere_in_a_study() -> None:
    """Patient tags end in the decoder."""
    study = await intake.read(list(series(5).values()), LIMITS)

    assert "PLANTED" not in repr(study)


SHOWN = {
    "chest-xray": Modality.OTHER,
    "ct-abdomen": Modality.CT,
    "dermoscopy": Modality.OTHER,
    "dicom-odd": Modality.XRAY,
    "histology": Modality.OTHER,
    "mr-head": Modality.MR,
    "wsi": Modality.HISTOLOGY,
}
"""What the real files beside the repository say of their making; pictures say nothing."""

SAID = {
    "jpeg-baseline-cr.dcm": {Concern.LOSSY_COMPRESSED},
    "multiframe_camelyon_challenge_image.dcm": {Concern.UNUSUAL_MAGNIFICATION, Concern.SMALLER_THAN_PATCH},
}
SIZES = {"mr-head": (512, 512), "ct-abdomen": (512, 512), "wsi": (896, 896), "monochrome1-dx.dcm": (211, 169)}


@pytest.mark.parametrize("folder", list(SHOWN))
async def test_the_real_files_open_and_look_right(folder: str) -> None:
    """Every one of them: how it was made, what is to be said of it, its size, and that there is something to see."""
    files = [path for path in sorted((phantoms.SHARED / folder).glob("*.*")) if path.suffix not in (".txt", ".csv")]
    if not files:
        pytest.skip(f"../shared/data/{folder} is not here: real files that may not be shipped")
    for path in files:
        if path.name == "liver_seg.dcm":  # a segmentation only explains another picture
            with pytest.raises(ImageUnreadable, match="holds no picture"):
                await intake.read([path], LIMITS)
            continue
        study = await intake.read([path], LIMITS, Wanted(magnification=0.345 if "camelyon" in path.name else 0))
        usual = {Concern.FEW_SLICES} if folder in ("ct-abdomen", "mr-head") else set()
        assert (SHOWN[folder], SAID.get(path.name, usual)) == (study.modality, set(study.concerns)), path.name
        image = study.images[0]
        assert SIZES.get(path.name, SIZES.get(folder, (image.width, image.height))) == (image.width, image.height)
        assert 8 < image.pixels.std() < 90, path.name
        assert 100 < int(image.pixels.max()) - int(image.pixels.min()), path.name
