"""A scan as NIfTI is the same study as the scan as DICOM, whatever way its axes run."""

import gzip
import time
from contextlib import suppress
from itertools import permutations
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Modality, Study, Volume
from medserve.imaging import dicom, nifti
from medserve.settings import Limits
from tests.imaging import phantoms

LIMITS = Limits()
Nifti1: Any = nibabel.Nifti1Image
Nifti2: Any = nibabel.Nifti2Image
VALUES = phantoms.abdomen()
SQUARE = (0.7, 0.7)
"""Steps to the next row and column that leave pixels where they are; the phantoms' own are not square."""


def read(data: bytes, modality: Modality | None = None) -> Study:
    """The study in a NIfTI file."""
    return nifti.study(data, LIMITS, modality)


def space(study: Study) -> Volume:
    """The study's volume, which must be there."""
    assert study.volume is not None
    return study.volume


@pytest.mark.parametrize("order", list(permutations((2, 1, 0))))
@pytest.mark.parametrize("flips", ["", "i", "j", "k", "ij", "ijk"])
def test_any_orientation_shows_what_dicom_shows(order: tuple[int, int, int], flips: str) -> None:
    """The patient's right on the image's left and the front on top, for all orders and directions of axes."""
    as_dicom = dicom.study(phantoms.series(VALUES), LIMITS)
    as_nifti = read(phantoms.nifti(VALUES, order=order, flips=flips))
    for expected, got in zip(as_dicom.images, as_nifti.images, strict=True):
        np.testing.assert_array_equal(expected.pixels, got.pixels)
    np.testing.assert_array_equal(space(as_dicom).values, space(as_nifti).values)
    np.testing.assert_allclose(space(as_dicom).positions, space(as_nifti).positions, atol=1e-4)
    np.testing.assert_allclose(space(as_dicom).down, space(as_nifti).down, atol=1e-5)
    np.testing.assert_allclose(space(as_dicom).across, space(as_nifti).across, atol=1e-5)
    assert (as_dicom.labels, as_dicom.modality) == (as_nifti.labels, as_nifti.modality)
    assert {*as_dicom.concerns, Concern.HOUNSFIELD_ASSUMED} == set(as_nifti.concerns)


def test_the_patients_right_is_on_the_images_left() -> None:
    """Said once without DICOM: a voxel far to the right and front in world coordinates is at the top left."""
    voxels = np.full((20, 20, 5), -1000, np.int16)
    voxels[17, 18, :] = 500  # canonical axes: towards right, front, head
    study = read(bytes(Nifti1(voxels, np.eye(4)).to_bytes()))
    assert (500, 500) == (space(study).values[2, 1, 2], space(study).values.max())


@pytest.mark.parametrize("kind", [Nifti1, Nifti2])
def test_both_versions_are_read_plain_and_gzipped(kind: type) -> None:
    """NIfTI-1 and NIfTI-2 give equal pixels, and both are claimed by their first bytes."""
    data = phantoms.nifti(VALUES, kind=kind)
    expected = read(phantoms.nifti(VALUES)).images
    for file in (data, gzip.compress(data)):
        assert nifti.claims(file[:600])
        assert expected == read(file).images
    for other in (b"", b"\x1f\x8b broken", gzip.compress(b"something else"), b"\0" * 600):
        assert not nifti.claims(other)


def test_scaling_is_applied() -> None:
    """scl_slope and scl_inter: stored values times slope plus intercept are the Hounsfield units."""
    image = Nifti1((VALUES + 1024).transpose(2, 1, 0), np.diag((-1.0, -1.0, 1.0, 1.0)))
    image.header.set_slope_inter(1, -1024)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    np.testing.assert_array_equal(VALUES, space(read(bytes(raw))).values)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_number_types_make_no_difference(dtype: type) -> None:
    """Whole numbers in floating point are the same int16 volume."""
    study = read(phantoms.nifti(VALUES.astype(dtype)))
    assert space(study).values.dtype == np.int16
    for expected, got in zip(read(phantoms.nifti(VALUES)).images, study.images, strict=True):
        np.testing.assert_array_equal(expected.pixels, got.pixels)


def test_big_endian_files_are_read() -> None:
    """The header tells its byte order."""
    image = Nifti1(VALUES.transpose(2, 1, 0), np.diag((-1.0, -1.0, 1.0, 1.0)))
    swapped = Nifti1(image.dataobj, image.affine, header=image.header.as_byteswapped(">"))
    np.testing.assert_array_equal(VALUES, space(read(swapped.to_bytes())).values)


def test_values_that_are_no_hounsfield_units_are_not_called_so() -> None:
    """A CT moved up by 1024, an MR and a mask are stretched over their range, and flagged."""
    for values in (VALUES + 1024, np.abs(VALUES), (VALUES > 0).astype(np.uint8)):
        study = read(phantoms.nifti(values, spacing=SQUARE))
        assert (Modality.OTHER, "none") == (study.modality, space(study).unit)
        assert Concern.NOT_HOUNSFIELD in study.concerns
        low, high = int(values.min()), int(values.max())
        expected = np.round((values[4].astype(float) - low) / (high - low) * 255)
        np.testing.assert_array_equal(expected, study.images[4].pixels[..., 0])


def not_ct() -> dict[str, np.ndarray]:
    """Volumes of another kind whose range could be a CT's."""
    random = np.random.default_rng(1)
    shape = (8, 32, 32)
    phase = random.uniform(-1, 1, shape)
    return {
        "phase": np.rint(phase * 4095 - 0.5).astype(np.int16),
        "phase in 3000": np.rint(phase * 3000).astype(np.int16),
        "phase in 1000": np.rint(phase * 1000).astype(np.int16),
        "noise": np.rint(random.normal(0, 300, shape)).astype(np.int16),
        "difference": np.rint(random.normal(0, 600, shape)).clip(-1500, 1500).astype(np.float32) + np.float32(0.25),
        "too bright": np.where(VALUES == phantoms.STONE, 20000, VALUES).astype(np.int16),
        "too dark": np.where(VALUES == phantoms.AIR, -3500, VALUES).astype(np.int16),
    }


@pytest.mark.parametrize("kind", list(not_ct()))
def test_phase_maps_and_noise_are_not_taken_for_a_ct(kind: str) -> None:
    """Their range alone would pass: a CT holds air, or the padding around its field, in a good part of its voxels."""
    study = read(phantoms.nifti(not_ct()[kind]))
    assert (Modality.OTHER, "none") == (study.modality, space(study).unit)
    assert Concern.NOT_HOUNSFIELD in study.concerns
    assert Concern.HOUNSFIELD_ASSUMED not in study.concerns


@pytest.mark.parametrize("modality", [None, Modality.CT])
def test_that_values_were_taken_for_hounsfield_units_is_always_said(modality: Modality | None) -> None:
    """NIfTI has no field for it: whoever reads the report must know that it was inferred."""
    study = read(phantoms.nifti(VALUES, spacing=SQUARE), modality)
    assert (Modality.CT, "HU") == (study.modality, space(study).unit)
    assert (Concern.HOUNSFIELD_ASSUMED,) == study.concerns


def test_padding_counts_as_air() -> None:
    """Scanners pad the corners of a round field with values that no tissue has, down to -3024."""
    padded = np.where(VALUES == phantoms.AIR, -3024, VALUES).astype(np.int16)
    assert "HU" == space(read(phantoms.nifti(padded))).unit


def test_a_sagittal_volume_is_not_squashed() -> None:
    """20 slices of 5 mm, seen from below, are as wide as they are in the patient: 100 pixels of 1 mm, not 20."""
    values = np.full((64, 256, 20), -1000, np.int16)
    values[:, 100:150, 5:15] = 400  # 50 mm deep and 50 mm wide
    study = read(phantoms.nifti(values, between=1.0, spacing=(1.0, 5.0), order=(2, 1, 0)))
    image = study.images[32]
    assert (256, 100) == image.pixels.shape[:2]
    assert Concern.RESAMPLED in study.concerns
    assert ("resampled to square pixels: 100 x 256",) == image.source.notes
    body = image.pixels[..., 0] > 90  # -300 HU, half-way from air to what lies in it
    assert (50, 50) == (int(body[:, 50].sum()), int(body[125].sum()))
    np.testing.assert_array_equal(values, space(study).values)


def test_what_the_sender_knows_is_believed_but_for_hounsfield_units() -> None:
    """An MR is an MR without complaint; a CT that cannot be in HU is flagged."""
    mr = read(phantoms.nifti(np.abs(VALUES), spacing=SQUARE), Modality.MR)
    assert (Modality.MR, ()) == (mr.modality, mr.concerns)
    ct = read(phantoms.nifti(np.abs(VALUES)), Modality.CT)
    assert (Modality.CT, "none") == (ct.modality, space(ct).unit)
    assert Concern.NOT_HOUNSFIELD in ct.concerns
    assert "none" == space(read(phantoms.nifti(VALUES), Modality.MR)).unit


def test_tilted_voxels_keep_their_tilt() -> None:
    """A rotation of 10 degrees about the left-right axis remains in the steps; spacing is the voxels' own."""
    angle = np.radians(10)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-0.7, -0.8, 2.0))
    study = read(bytes(Nifti1(VALUES.transpose(2, 1, 0), affine).to_bytes()))
    assert study.spacing == pytest.approx((2.0, 0.8, 0.7), abs=1e-5)
    np.testing.assert_array_equal(VALUES, space(study).values)


def test_units_other_than_millimetres_are_converted() -> None:
    """xyzt_units 3 is micrometres, 1 metres."""
    for code, factor in ((3, 1000.0), (1, 0.001)):
        affine = np.diag((-0.7 * factor, -0.8 * factor, 2.0 * factor, 1.0))
        image = Nifti1(VALUES.transpose(2, 1, 0), affine)
        image.header["xyzt_units"] = code
        assert read(image.to_bytes()).spacing == pytest.approx((2.0, 0.8, 0.7), rel=1e-5)


def test_several_volumes_give_the_first() -> None:
    """A time series is not a volume with more slices."""
    image = Nifti1(np.stack([VALUES.transpose(2, 1, 0)] * 3, axis=3), np.diag((-1.0, -1.0, 2.0, 1.0)))
    study = read(image.to_bytes())
    assert Concern.FIRST_OF_SEVERAL_VOLUMES in study.concerns
    np.testing.assert_array_equal(VALUES, space(study).values)


def test_voxels_without_a_number_become_the_lowest() -> None:
    """NaN outside a mask is common; a file of nothing else is refused."""
    holes = VALUES.astype(np.float32) + 0.5
    holes[:, :3] = np.nan
    study = read(phantoms.nifti(holes))
    assert Concern.NOT_A_NUMBER in study.concerns
    assert -999.5 == space(study).values[0, 0, 0]
    with pytest.raises(ImageUnreadable):
        read(phantoms.nifti(np.full((5, 16, 16), np.nan, np.float32)))


def test_a_header_that_does_not_place_the_voxels_is_flagged() -> None:
    """Without qform and sform the patient's sides are unknown."""
    raw = bytearray(phantoms.nifti(VALUES))
    raw[252:256] = bytes(4)
    assert Concern.NO_GEOMETRY in read(bytes(raw)).concerns


def test_header_extensions_are_never_read() -> None:
    """They may hold a DICOM header with a name; the study has nothing of it."""
    image = Nifti1(VALUES.transpose(2, 1, 0), np.diag((-1.0, -1.0, 2.0, 1.0)))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Mustermann^Erika"))
    image.header["descrip"] = b"Mustermann"
    study = read(image.to_bytes())
    np.testing.assert_array_equal(VALUES, space(study).values)
    assert "Mustermann" not in repr(study)


def test_a_gzip_bomb_stops_at_what_the_header_declares() -> None:
    """64 MB of zeros behind an honest header are never inflated; a header that declares terabytes is refused."""
    small = phantoms.nifti(VALUES)
    bomb = gzip.compress(small + bytes(2**26), 1)
    started = time.monotonic()
    assert read(small).images == read(bomb).images
    huge = bytearray(small)
    huge[40:48] = np.array([3, 32000, 32000, 32000], "<i2").tobytes()
    with pytest.raises(ImageTooLarge):
        read(gzip.compress(bytes(huge) + bytes(2**26), 1))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (40, np.array([0, 1, 1, 1], "<i2")),
        (40, np.array([3, -5, 48, 12], "<i2")),
        (40, np.array([3, 4, 4, 12], "<i2")),
        (70, np.array([128], "<i2")),  # colour
        (70, np.array([32], "<i2")),  # complex
        (108, np.array([1e9], "<f4")),
        (108, np.array([np.nan], "<f4")),
        (280, np.zeros(12, "<f4")),  # a flat affine
        (280, np.full(12, np.nan, "<f4")),
    ],
)
def test_broken_headers_are_refused(at: int, value: np.ndarray) -> None:
    """Impossible sizes and types, voxels beyond the file, axes without length."""
    raw = bytearray(phantoms.nifti(VALUES))
    raw[at : at + value.nbytes] = value.tobytes()
    with pytest.raises(ImageError):
        read(bytes(raw))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    """Bits flipped in the header and files cut anywhere: a study or an ImageError, nothing else."""
    file = bytearray(_SMALL)
    for _ in range(data.draw(st.integers(0, 4))):
        file[data.draw(st.integers(0, 351))] ^= 1 << data.draw(st.integers(0, 7))
    del file[data.draw(st.integers(0, len(file))) :]
    packed = data.draw(st.booleans())
    with suppress(ImageError):
        read(gzip.compress(bytes(file)) if packed else bytes(file))


_SMALL = phantoms.nifti(phantoms.abdomen(3, 48)[:, :16, :16])
