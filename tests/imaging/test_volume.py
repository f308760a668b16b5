"""CT and MR become what the model was trained on, pixel by pixel, and stay measurable."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Modality, Study, Volume
from medserve.imaging import dicom, volume, wire
from medserve.settings import Limits
from tests.imaging import phantoms

LIMITS = Limits()
SQUARE = (0.7, 0.7)
"""PixelSpacing that leaves pixels where they are; the phantoms' own is not square."""


def read(*files: bytes) -> Study:
    """The study in DICOM files."""
    return dicom.study(files, LIMITS)


def hounsfield(study: Study) -> Volume:
    """The study's volume, which must be in Hounsfield units."""
    assert study.volume is not None
    assert study.volume.unit == "HU"
    return study.volume


def windowed(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """One window in integers: the level whose true value is nearest, halves to the even one."""
    part = np.clip(values.astype(np.int64), low, high) - low
    whole, rest = np.divmod(part * 510, 2 * (high - low))
    twice = 2 * rest
    up = (twice > 2 * (high - low)) | ((twice == 2 * (high - low)) & (whole % 2 == 1))
    return np.asarray(whole + up, np.uint8)


def test_phantom_slices_are_exact() -> None:
    """Each slice's pixels against integer arithmetic; single precision moves none of the drawn values."""
    values = phantoms.abdomen()
    study = read(*phantoms.series(values, spacing=SQUARE))
    for image, slice_ in zip(study.images, values, strict=True):
        expected = np.dstack([windowed(slice_, low, high) for low, high in ((-1024, 1024), (-135, 215), (0, 80))])
        np.testing.assert_array_equal(expected, image.pixels)


def test_real_abdominal_slices_are_exact() -> None:
    """Three consecutive slices, read here with pydicom alone and windowed by a table built in another way."""
    files = phantoms.shared("ct-abdomen/0*.dcm")
    study = read(*files)
    scans = sorted((pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)) for data in files), key=_z)
    table = {}
    for value in range(-5000, 40000):
        levels = []
        for low, high in ((-1024, 1024), (-135, 215), (0, 80)):
            clipped = np.float32(min(max(value, low), high))
            levels.append(int(np.round((clipped - np.float32(low)) / np.float32(high - low) * np.float32(255))))
        table[value] = levels
    lut = np.array([table[value] for value in range(-5000, 40000)], np.uint8)
    for image, scan in zip(study.images, scans, strict=True):
        true = np.frombuffer(scan.PixelData, "<i2").reshape(512, 512).astype(np.int32) - 1024
        np.testing.assert_array_equal(lut[true + 5000], image.pixels)
    assert study.spacing == pytest.approx((1.0, 0.810547, 0.810547))
    assert (Concern.FEW_SLICES,) == study.concerns
    assert study.modality is Modality.CT


def _z(scan: pydicom.Dataset) -> float:
    return float(scan.ImagePositionPatient[2])


def test_pydicoms_real_slice_is_exact() -> None:
    """The CT that comes with pydicom, for machines without the others, in integer arithmetic."""
    path = get_testdata_file("CT_small.dcm", download=False)
    assert isinstance(path, str)
    (image,) = read(Path(path).read_bytes()).images
    scan = pydicom.dcmread(path)
    true = np.frombuffer(scan.PixelData, "<i2").reshape(128, 128).astype(np.int32) - 1024
    expected = np.dstack([windowed(true, low, high) for low, high in ((-1024, 1024), (-135, 215), (0, 80))])
    np.testing.assert_array_equal(expected, image.pixels)


def test_a_segmentation_beside_the_slices_is_left_out() -> None:
    """The folder of the real CT holds a DICOM SEG as well."""
    study = read(*phantoms.shared("ct-abdomen/*.dcm"))
    assert (3, True) == (len(study.images), Concern.NOT_A_PICTURE_DROPPED in study.concerns)


def test_the_model_sees_brightness_that_is_the_same_in_every_slice() -> None:
    """Defect 004-2: grey was stretched slice by slice, so 30 HU had another grey in each; here it has one colour."""
    values = phantoms.abdomen(8)
    values[3, 0, 0] = 3000  # one slice with metal
    study = read(*phantoms.series(values, spacing=SQUARE))
    colours = {tuple(image.pixels[26, 26].tolist()) for image in study.images}
    assert {(131, 120, 96)} == colours


def test_windows_apply_to_hounsfield_units_and_not_to_a_files_own_window() -> None:
    """Defect 004-2: the VOI window was applied before the rescale; a CT's own window must change nothing."""
    values = phantoms.abdomen()
    assert read(*phantoms.series(values)) == read(*phantoms.series(values, WindowCenter=40, WindowWidth=1))


def test_all_slices_stay_in_the_volume_and_85_are_sent() -> None:
    """Defect 004-3: 8 of all slices were looked at; here 85 are sent and all 120 can be measured."""
    study = read(*phantoms.series(phantoms.abdomen(120, 16 + 32)))
    assert (85, 85, 120) == (len(study.images), len(study.labels), len(hounsfield(study).values))
    assert ("SLICE 1", "SLICE 85") == (study.labels[0], study.labels[-1])
    assert Concern.SLICES_LEFT_OUT in study.concerns
    marks = [hounsfield(study).values[index, 5, 5] for index in study.slices]
    assert [round(i / 85 * 119) * 10 for i in range(1, 86)] == marks


@pytest.mark.parametrize("missing", ["RescaleSlope", "RescaleIntercept"])
def test_slope_or_intercept_alone_is_an_error(missing: str) -> None:
    """Half a rescale gives values that look like Hounsfield units and are not."""
    with pytest.raises(ImageUnreadable, match="only one of RescaleSlope and RescaleIntercept"):
        read(*phantoms.series(phantoms.abdomen(), without=(missing,)))


def test_without_any_rescale_nothing_is_called_hounsfield() -> None:
    """The slices are shown in grey over the whole range, flagged, and no threshold in HU applies."""
    values = phantoms.abdomen()
    study = read(*phantoms.series(values, spacing=SQUARE, without=("RescaleSlope", "RescaleIntercept")))
    assert study.volume is not None
    assert study.volume.unit == "none"
    assert Concern.NOT_HOUNSFIELD in study.concerns
    assert 255 == study.images[4].pixels[30, 33, 0]


PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@pytest.mark.parametrize("count", [1, 6])
def test_a_ct_that_is_not_placed_is_still_seen_through_its_windows(count: int) -> None:
    """What the values are does not depend on where they lie: a single slice or a series without geometry is in HU."""
    values = phantoms.abdomen(count)
    study = read(*phantoms.series(values, without=PLACES))
    for image, slice_ in zip(study.images, values, strict=True):
        expected = np.dstack([windowed(slice_, low, high) for low, high in ((-1024, 1024), (-135, 215), (0, 80))])
        np.testing.assert_array_equal(expected, image.pixels)
    assert ("HU", None) == (study.images[0].source.mode, study.volume)
    assert Concern.NO_GEOMETRY in study.concerns
    assert Concern.NOT_HOUNSFIELD not in study.concerns


def test_a_ct_without_place_and_rescale_is_grey_and_flagged() -> None:
    """Two things are missing and both are said."""
    study = read(*phantoms.series(phantoms.abdomen(6), without=(*PLACES, "RescaleSlope", "RescaleIntercept")))
    assert {Concern.NO_GEOMETRY, Concern.NOT_HOUNSFIELD} <= set(study.concerns)
    assert (study.images[0].pixels == study.images[0].pixels[..., :1]).all()


def test_slices_of_two_studies_never_become_one_volume() -> None:
    """Equal in all but StudyInstanceUID, at places that would interleave: one is read, and both facts are said."""
    values = phantoms.abdomen(12)
    places = phantoms.positions(12)
    first = phantoms.series(values[::2], places=places[::2], StudyInstanceUID="1.2.3.1")
    second = phantoms.series(values[1::2], places=places[1::2], StudyInstanceUID="1.2.3.2")
    study = read(*first, *second[:5])
    np.testing.assert_array_equal(values[::2], hounsfield(study).values)
    assert {Concern.SEVERAL_STUDIES, Concern.OTHER_ACQUISITION_DROPPED} <= set(study.concerns)


def test_pixels_that_are_not_square_are_resampled_before_the_windows() -> None:
    """0.5 x 2.0 mm: four times as wide; between -1000 and 1000 HU lies 0, and not the mean of two colours."""
    values = np.full((5, 32, 32), -1000, np.int16)
    values[:, :, 16:] = 1000
    study = read(*phantoms.series(values, spacing=(0.5, 2.0)))
    image = study.images[2]
    assert (32, 128) == image.pixels.shape[:2]
    assert Concern.RESAMPLED in study.concerns
    assert ("resampled to square pixels: 128 x 32",) == image.source.notes
    row = np.interp((np.arange(128) + 0.5) / 4 - 0.5, np.arange(32), values[2, 0].astype(float))
    expected = np.dstack([windowed(np.rint(row), low, high) for low, high in ((-1024, 1024), (-135, 215), (0, 80))])[0]
    assert 1 >= np.abs(expected.astype(int) - image.pixels[16].astype(int)).max()
    np.testing.assert_array_equal(values, hounsfield(study).values)
    assert (2.0, 0.5, 2.0) == study.spacing


def test_pixels_that_are_nearly_square_stay_where_they_are() -> None:
    """Under 1 % nothing is resampled, and nothing is said."""
    study = read(*phantoms.series(phantoms.abdomen(), spacing=(0.7, 0.704)))
    assert (48, 48, ()) == (study.images[0].width, study.images[0].height, study.images[0].source.notes)
    assert Concern.RESAMPLED not in study.concerns


def test_another_rescale_type_is_not_hounsfield() -> None:
    """RescaleType US means "unspecified" (PS3.3 C.11.1.1.2)."""
    assert Concern.NOT_HOUNSFIELD in read(*phantoms.series(phantoms.abdomen(), RescaleType="US")).concerns
    assert Concern.NOT_HOUNSFIELD not in read(*phantoms.series(phantoms.abdomen(), RescaleType="HU")).concerns


def test_a_slope_in_fractions_keeps_fractions() -> None:
    """Stored 2001 with slope 0.5 and intercept -1000 is 0.5 HU; the volume is float32."""
    stored = np.full((16, 16), 2001, np.uint16)
    files = [
        phantoms.dicom(
            stored,
            RescaleSlope=0.5,
            RescaleIntercept=-1000,
            ImagePositionPatient=[0, 0, z],
            ImageOrientationPatient=list(phantoms.AXIAL),
            PixelSpacing=[1, 1],
        )
        for z in range(5)
    ]
    assert {0.5} == set(hounsfield(read(*files)).values.ravel().tolist())


def test_values_beyond_16_bits_do_not_wrap_round() -> None:
    """65535 - 1024 is 64511 HU and not -1025."""
    stored = np.full((16, 16), 65535, np.uint16)
    study = read(phantoms.dicom(stored, RescaleSlope=1, RescaleIntercept=-1024))
    assert [255, 255, 255] == study.images[0].pixels[0, 0].tolist()
    assert 64511 == volume.rescaled(stored, 1.0, -1024.0).max()


def test_a_multi_frame_ct_is_the_same_volume() -> None:
    """Enhanced CT keeps position, spacing and rescale in functional groups; frames may be in any order."""
    values = phantoms.abdomen(6)
    study = read(enhanced(values, order=[3, 0, 5, 1, 4, 2]))
    np.testing.assert_array_equal(values, hounsfield(study).values)
    assert study.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert read(*phantoms.series(values)).images == study.images


def enhanced(values: np.ndarray, order: list[int]) -> bytes:
    """An Enhanced CT file with these frames in this order."""
    places = phantoms.positions(len(values))
    frames, shared_group = [], pydicom.Dataset()
    for index in order:
        frame, plane = pydicom.Dataset(), pydicom.Dataset()
        plane.ImagePositionPatient = places[index]
        frame.PlanePositionSequence = [plane]
        frames.append(frame)
    measures, orientation, rescale = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 9.9
    orientation.ImageOrientationPatient = list(phantoms.AXIAL)
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared_group.PixelMeasuresSequence = [measures]
    shared_group.PlaneOrientationSequence = [orientation]
    shared_group.PixelValueTransformationSequence = [rescale]
    return phantoms.dicom(
        (values[order] + 1024).astype(np.uint16),
        sop_class="1.2.840.10008.5.1.4.1.1.2.1",
        NumberOfFrames=len(values),
        SharedFunctionalGroupsSequence=[shared_group],
        PerFrameFunctionalGroupsSequence=frames,
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    )


def mr(values: np.ndarray, **tags: Any) -> list[bytes]:
    """An MR series of uint16 slices."""
    return [
        phantoms.dicom(
            one,
            sop_class=phantoms.MR,
            modality="MR",
            ImagePositionPatient=place,
            ImageOrientationPatient=list(phantoms.AXIAL),
            PixelSpacing=[1, 1],
            **tags,
        )
        for one, place in zip(values, phantoms.positions(len(values)), strict=True)
    ]


def test_mr_is_stretched_over_the_whole_acquisition() -> None:
    """The published steps for MR in exact integers: one range for all slices, the same value in all channels."""
    values = np.random.default_rng(3).integers(17, 1391, (6, 20, 24)).astype(np.uint16)
    low, high = 17, 1390  # an odd difference: no value lies half-way between two levels
    values[0, 0, :2] = low, high
    study = read(*mr(values))
    for image, slice_ in zip(study.images, values, strict=True):
        whole, rest = np.divmod((slice_.astype(np.int64) - low) * 255, high - low)
        expected = (whole + (2 * rest > high - low)).astype(np.uint8)
        np.testing.assert_array_equal(np.dstack([expected] * 3), image.pixels)
    assert study.modality is Modality.MR
    assert () == study.concerns


def test_real_mr_slices_are_exact() -> None:
    """Six slices of an axial T1 series against Pillow's own linear mapping, computed from numbers read by pydicom."""
    files = phantoms.shared("mr-head/*.dcm")
    study = read(*files)
    scans = sorted((pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)) for data in files), key=_z)
    stored = [np.frombuffer(scan.PixelData, "<u2").reshape(512, 512) for scan in scans]
    low, high = min(int(one.min()) for one in stored), max(int(one.max()) for one in stored)
    table = [round((value - low) * 255 / (high - low)) if value > low else 0 for value in range(high + 1)]
    for image, one in zip(study.images, stored, strict=True):
        np.testing.assert_array_equal(np.array(table, np.uint8)[one], image.pixels[..., 0])
    assert study.spacing == pytest.approx((15.0, 0.41015625, 0.41015625))


def test_the_same_mr_rescale_on_all_slices_changes_nothing() -> None:
    """A stretch undoes it; the published arithmetic works on stored values."""
    values = np.random.default_rng(4).integers(0, 4000, (5, 16, 16)).astype(np.uint16)
    assert read(*mr(values)).images == read(*mr(values, RescaleSlope=0.37, RescaleIntercept=11)).images


def test_an_empty_mr_is_flagged() -> None:
    """Where all values are equal the published steps give white, and the study says that there is nothing to see."""
    study = read(*mr(np.full((5, 16, 16), 7, np.uint16)))
    assert (Concern.NO_CONTRAST,) == study.concerns
    assert 255 == study.images[0].pixels.min()


def test_an_inverted_mr_is_turned_over() -> None:
    """MONOCHROME1: the lowest value is white."""
    values = np.random.default_rng(5).integers(0, 4000, (5, 16, 16)).astype(np.uint16)
    plain, inverted = read(*mr(values)), read(*mr(values, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(255 - plain.images[2].pixels, inverted.images[2].pixels)


def test_too_many_voxels_are_refused_before_any_is_decoded() -> None:
    """A header of 1000 slices of 8000 x 8000 costs no memory."""
    with pytest.raises(ImageTooLarge):
        volume.check_voxels(1000, 8000, 8000, LIMITS)
    with pytest.raises(ImageTooLarge):
        dicom.study(phantoms.series(phantoms.abdomen()), Limits(image_frames=11))


def test_modalities_are_not_mixed() -> None:
    """A CT and an MR are two examinations."""
    with pytest.raises(ImageUnreadable, match="several modalities"):
        read(*phantoms.series(phantoms.abdomen(5)), *mr(np.ones((5, 48, 48), np.uint16)))


def test_a_study_survives_the_way_between_processes() -> None:
    """Decoding runs in a child process: what comes over the wire is the same study."""
    study = read(*phantoms.series(phantoms.abdomen()))
    message = wire.packed(study)
    back = wire.unpacked(Study, message.text, np.frombuffer(b"".join(message.pieces()), np.uint8))
    assert study == back
    np.testing.assert_array_equal(hounsfield(study).values, hounsfield(back).values)
    np.testing.assert_array_equal(hounsfield(study).positions, hounsfield(back).positions)


def test_uids_differ_and_the_content_hash_does_not() -> None:
    """Two exports of the same scan are the same pictures."""
    values = phantoms.abdomen(5)
    first, second = (read(*phantoms.series(values, SeriesInstanceUID=generate_uid())) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.facts != second.facts


def test_pillow_sees_what_we_see() -> None:
    """The pixels are an ordinary RGB picture: rows down, columns across."""
    study = read(*phantoms.series(phantoms.abdomen(), spacing=SQUARE))
    picture = Pillow.fromarray(study.images[4].pixels)
    assert (240, 255, 255) == picture.getpixel((33, 30))
