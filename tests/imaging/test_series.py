"""The right slices in the right order, and every one that was left out is spoken of."""

import random
from typing import Any

import numpy as np
import pytest

from medserve.errors import ImageUnreadable
from medserve.images import Concern, Study, Volume
from medserve.imaging import dicom
from medserve.settings import Limits
from tests.imaging import phantoms

LIMITS = Limits()


def volume(study: Study) -> Volume:
    """The study's volume, which must be there."""
    assert study.volume is not None
    return study.volume


def read(*files: bytes) -> Study:
    """The study in DICOM files."""
    return dicom.study(files, LIMITS)


def test_slices_are_put_in_order_from_feet_to_head() -> None:
    """Files come in any order and InstanceNumber may run either way; position decides."""
    values = phantoms.abdomen()
    files = phantoms.series(values)
    random.Random(1).shuffle(files)
    np.testing.assert_array_equal(values, volume(read(*files)).values)


def test_order_follows_the_normal_and_not_z_alone() -> None:
    """Defect 004-4: sagittal slices all have the same z; along x they are apart."""
    values = phantoms.abdomen()
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    places = phantoms.positions(len(values), between=3.0, orientation=sagittal)
    files = phantoms.series(values, places=places, orientation=sagittal)
    study = read(*reversed(files))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.NOT_AXIAL in study.concerns
    assert study.spacing == pytest.approx((3.0, 0.8, 0.7))


def test_spacing_is_measured_between_positions() -> None:
    """Defect 004-4: SliceThickness says 9.9 mm, the slices are 2 mm apart."""
    assert read(*phantoms.series(phantoms.abdomen())).spacing == pytest.approx((2.0, 0.8, 0.7))


def test_oblique_slices_have_their_true_spacing() -> None:
    """Tilted by 20 degrees, 1.5 mm apart: the step along z is 1.41 mm and not the spacing."""
    angle = np.radians(20)
    tilted = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    values = phantoms.abdomen()
    places = phantoms.positions(len(values), between=1.5, orientation=tilted)
    study = read(*phantoms.series(values, places=places, orientation=tilted))
    assert study.spacing == pytest.approx((1.5, 0.8, 0.7), abs=1e-5)
    assert Concern.NOT_AXIAL not in study.concerns


def test_only_the_largest_acquisition_is_read() -> None:
    """Defect 004-4: several acquisitions of one series are not mixed."""
    values = phantoms.abdomen()
    second = phantoms.series(values[:5] + 1, AcquisitionNumber=2)
    study = read(*second, *phantoms.series(values))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.OTHER_ACQUISITION_DROPPED in study.concerns


def test_an_acquisition_number_on_every_slice_separates_nothing() -> None:
    """Some scanners count slices with it; one file must not become the volume."""
    values = phantoms.abdomen()
    files = [phantoms.series(values, AcquisitionNumber=index)[index] for index in range(len(values))]
    assert volume(read(*files)).values.shape == values.shape


def test_the_larger_of_two_series_is_read() -> None:
    """A folder with two series gives the one with more slices, and says so."""
    values = phantoms.abdomen()
    other = phantoms.series(values[:6] * 0, SeriesInstanceUID="1.2.3.9")
    study = read(*other, *phantoms.series(values))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.OTHER_ACQUISITION_DROPPED in study.concerns


def test_original_slices_are_preferred_to_derived_ones() -> None:
    """However many derived ones there are; alone they are read."""
    values = phantoms.abdomen()
    derived = phantoms.series(values + 7, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])
    study = read(*derived, *phantoms.series(values[:6]))
    np.testing.assert_array_equal(values[:6], volume(study).values)
    assert Concern.DERIVED_DROPPED in study.concerns
    assert Concern.DERIVED_DROPPED not in read(*derived).concerns


def test_localisers_are_left_out_and_never_stand_alone() -> None:
    """A scout view is no slice; a study of nothing else is refused."""
    values = phantoms.abdomen()
    scout = phantoms.series(values[:2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    study = read(*scout, *phantoms.series(values))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.LOCALISER_DROPPED in study.concerns
    with pytest.raises(ImageUnreadable, match="localiser"):
        read(*scout)


def test_duplicates_are_dropped_by_position() -> None:
    """The same slices sent twice make the same volume; equal InstanceNumbers elsewhere drop nothing."""
    values = phantoms.abdomen()
    study = read(*phantoms.series(values), *phantoms.series(values))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.DUPLICATE_DROPPED in study.concerns
    places = phantoms.positions(len(values))
    same_number = [phantoms.series(values[i : i + 1], places=places[i : i + 1])[0] for i in range(len(values))]
    assert Concern.DUPLICATE_DROPPED not in read(*same_number).concerns


def test_other_orientations_are_left_out() -> None:
    """A coronal slice among axial ones belongs to another volume."""
    values = phantoms.abdomen()
    coronal = phantoms.series(values[:1], orientation=(1, 0, 0, 0, 0, -1))
    study = read(*coronal, *phantoms.series(values))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.MIXED_ORIENTATION in study.concerns


def test_a_missing_slice_is_a_gap() -> None:
    """The step over it is twice the usual; the others keep their positions."""
    values = phantoms.abdomen()
    files = phantoms.series(values)
    study = read(*files[:5], *files[6:])
    assert {Concern.GAP, Concern.UNEVEN_SPACING} <= set(study.concerns)
    assert study.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert volume(study).depths[5] == pytest.approx(12.0)


def test_even_slices_raise_no_concern() -> None:
    """A clean axial series is flagged for nothing at all."""
    assert () == read(*phantoms.series(phantoms.abdomen(), spacing=(0.7, 0.7))).concerns


def test_fewer_than_five_slices_are_flagged() -> None:
    """Four are, five are not."""
    values = phantoms.abdomen()
    assert (Concern.FEW_SLICES,) == read(*phantoms.series(values[:4], spacing=(0.7, 0.7))).concerns
    assert () == read(*phantoms.series(values[:5], spacing=(0.7, 0.7))).concerns


def test_slices_without_positions_are_ordered_by_number_and_measure_nothing() -> None:
    """The pictures are there, the volume is not, and the study says so."""
    values = phantoms.abdomen()
    nowhere = ("ImagePositionPatient", "ImageOrientationPatient")
    files = phantoms.series(values, spacing=(0.7, 0.7), without=nowhere)
    study = read(*reversed(files))
    assert study.volume is None
    assert study.spacing is None
    assert (Concern.NO_GEOMETRY,) == study.concerns
    assert read(*files) == study


def test_a_feet_first_scan_is_still_ordered_towards_the_head() -> None:
    """Rows that run backwards turn row x column over; the order stays, and the unusual view is flagged."""
    values = phantoms.abdomen()
    backwards = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    places = phantoms.positions(len(values))
    study = read(*phantoms.series(values, places=places, orientation=backwards))
    np.testing.assert_array_equal(values, volume(study).values)
    assert Concern.TURNED in study.concerns


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [9, 0, 0, 0, 9, 0]},
        {"PixelSpacing": [0, 0.7]},
        {"PixelSpacing": [-1, 0.7]},
    ],
)
def test_impossible_geometry_is_refused(tags: dict[str, Any]) -> None:
    """Axes that are not two unit vectors at right angles, and pixels without a size."""
    one = phantoms.abdomen(1)[0].astype(np.uint16)
    good: dict[str, Any] = {
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "ImagePositionPatient": [0, 0, 0],
    }
    with pytest.raises(ImageUnreadable):
        read(phantoms.dicom(one, RescaleSlope=1, RescaleIntercept=0, **{**good, **tags}))
