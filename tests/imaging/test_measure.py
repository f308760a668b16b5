"""Known water, kidneys, stones and sizes are found to 0.1 mm and 1 HU, however the scan lies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ImageError
from medserve.images import Volume
from medserve.imaging import dicom, measure
from medserve.settings import Limits
from tests.imaging import phantoms

BLOCK = (slice(4, 8), slice(28, 34), slice(30, 38))
"""The stone of `phantoms.abdomen`: 4 slices, 6 rows, 8 columns."""


def scanned(**options: Any) -> Volume:
    """The drawn abdomen after a journey through DICOM files whose SliceThickness says 9.9 mm."""
    study = dicom.study(phantoms.series(phantoms.abdomen(), **options), Limits())
    assert study.volume is not None
    return study.volume


def block(volume: Volume) -> np.ndarray:
    """The stone as a region."""
    region = np.zeros(volume.values.shape, np.bool_)
    region[BLOCK] = True
    return region


def test_water_and_kidney_have_their_hounsfield_units() -> None:
    """Defect 004-2: the model was asked for HU that it could not see; code measures them, to 1 HU."""
    volume = scanned()
    water = np.zeros(volume.values.shape, np.bool_)
    water[:, 11:19, 11:19] = True
    assert measure.Statistics(0.0, 0.0, 0.0, 0.0, 12 * 64) == measure.statistics(volume, water)
    kidney = measure.statistics(volume, measure.ball(volume, (10, 36, 28), 2.0))
    assert (phantoms.KIDNEY, 0.0) == (kidney.mean, kidney.deviation)


def test_statistics_are_numpys_in_whole_numbers() -> None:
    """Mean and deviation (n - 1) worked out by hand for 1, 2, 3, 6."""
    values = np.array([[[1, 2, 3, 6]]], np.int16)
    volume = Volume(values, np.zeros((1, 3)), (0, 1, 0), (1, 0, 0), "HU")
    found = measure.statistics(volume, np.ones((1, 1, 4), np.bool_))
    assert found == measure.Statistics(3.0, (14 / 3) ** 0.5, 1.0, 6.0, 4)


def test_a_stone_is_found_and_sized() -> None:
    """4 slices of 2 mm, 6 rows of 0.8, 8 columns of 0.7: corner to corner 10.88 mm; its volume 215.04 mm3."""
    (stone,) = measure.candidates(scanned(), 250)
    assert stone.diameter_mm == pytest.approx(np.sqrt(8.0**2 + 4.8**2 + 5.6**2), abs=1e-4)
    assert stone.volume_mm3 == pytest.approx(8.0 * 4.8 * 5.6, abs=1e-3)
    assert stone.statistics.mean == phantoms.STONE
    assert stone.centre == pytest.approx((5.5, 30.5, 33.5))
    assert stone.centre_mm == pytest.approx((-20 + 33.5 * 0.7, -30 + 30.5 * 0.8, 100 + 5.5 * 2.0), abs=1e-4)


def test_declared_slice_thickness_changes_nothing() -> None:
    """Defect 004-4: with thickness 5 instead of the true 2 mm the stone would be 20 mm tall and not 8."""
    sizes = {measure.candidates(scanned(SliceThickness=thickness), 250)[0].diameter_mm for thickness in (0.1, 5, 99)}
    assert len(sizes) == 1


def test_distances_are_true_in_space() -> None:
    """Across slices, rows and columns of unequal spacing."""
    volume = scanned()
    assert measure.distance(volume, (0, 0, 0), (3, 0, 0)) == pytest.approx(6.0, abs=1e-6)
    assert measure.distance(volume, (0, 0, 0), (0, 5, 0)) == pytest.approx(4.0, abs=1e-6)
    assert measure.distance(volume, (0, 0, 0), (0, 0, 10)) == pytest.approx(7.0, abs=1e-6)
    assert measure.distance(volume, (1, 2, 3), (4, 7, 13)) == pytest.approx(np.sqrt(36 + 16 + 49), abs=1e-6)


@pytest.mark.parametrize("degrees", [0, 15, 45])
def test_tilted_scans_measure_alike(degrees: float) -> None:
    """Defect 004-4: orientation was ignored; turned about the left-right axis the stone keeps its size."""
    angle = np.radians(degrees)
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    places = phantoms.positions(12, between=2.0, orientation=orientation)
    (stone,) = measure.candidates(scanned(places=places, orientation=orientation), 250)
    assert stone.diameter_mm == pytest.approx(np.sqrt(8.0**2 + 4.8**2 + 5.6**2), abs=1e-3)
    assert stone.volume_mm3 == pytest.approx(8.0 * 4.8 * 5.6, abs=0.01)


def test_a_tilted_gantry_shears_and_is_measured_sheared() -> None:
    """Slices stacked along z while tilted by 30 degrees: first voxels are as far apart as the shift along z."""
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(np.pi / 6)), float(np.sin(np.pi / 6)))
    places = [[0.0, 0.0, 3.0 * index] for index in range(12)]
    volume = scanned(places=places, orientation=orientation)
    assert measure.distance(volume, (0, 0, 0), (4, 0, 0)) == pytest.approx(12.0, abs=1e-6)
    assert volume.spacing[0] == pytest.approx(3.0 * np.cos(np.pi / 6), abs=1e-5)


def test_gaps_count_with_their_true_length() -> None:
    """Slices at 0, 2, 4, 6, 8, 18, ... mm: across the gap it is 10 mm, and beside it 2."""
    places = [[0.0, 0.0, z] for z in (0, 2, 4, 6, 8, 18, 20, 22, 24, 26, 28, 30)]
    volume = scanned(places=places)
    assert measure.distance(volume, (4, 0, 0), (5, 0, 0)) == pytest.approx(10.0, abs=1e-6)
    assert measure.distance(volume, (0, 0, 0), (4, 0, 0)) == pytest.approx(8.0, abs=1e-6)
    assert volume.spacing[0] == pytest.approx(2.0)
    # The stone lies in the slices at 8, 18, 20, 22: from half-way to 6 mm up to half-way to 24 mm.
    assert measure.diameter(volume, block(volume)) == pytest.approx(np.sqrt(16.0**2 + 4.8**2 + 5.6**2), abs=1e-4)
    assert measure.volume_mm3(volume, block(volume)) == pytest.approx(16.0 * 4.8 * 5.6, abs=1e-3)


def test_slices_add_up_to_the_length_of_the_scan() -> None:
    """Every slice stands for half the way to its neighbours, the outer ones as far outwards."""
    volume = scanned(places=[[0.0, 0.0, z] for z in (0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66)])
    assert measure.thicknesses(volume).sum() == pytest.approx(66 + 0.5 + 5.5)


def ball_phantom(diameter: float, spacing: tuple[float, float, float], shift: float) -> Volume:
    """A stone of 900 HU in a kidney of 30, each voxel holding the mean of 6 x 6 x 6 points: partial volumes."""
    fine = 6
    shape = [int(np.ceil((diameter + 6) / step)) for step in spacing]
    axes = [((np.arange(n * fine) + 0.5) / fine - n / 2 - shift) * step for n, step in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = z**2 + y**2 + x**2 <= (diameter / 2) ** 2
    part = inside.reshape(shape[0], fine, shape[1], fine, shape[2], fine).mean(axis=(1, 3, 5))
    values = np.rint(phantoms.KIDNEY + (phantoms.STONE - phantoms.KIDNEY) * part).astype(np.int16)
    places = np.arange(shape[0])[:, None] * np.array([0, 0, spacing[0]])
    return Volume(values, places.astype(np.float64), (0, spacing[1], 0), (spacing[2], 0, 0), "HU")


@pytest.mark.parametrize("diameter", [3.0, 6.0, 10.0])
@pytest.mark.parametrize("shift", [0.0, 0.21, 0.4])
def test_round_stones_are_sized_at_their_edges(diameter: float, shift: float) -> None:
    """To 0.1 mm with voxels of 0.5 mm, wherever the stone lies between them; outer corners are an upper bound."""
    volume = ball_phantom(diameter, (0.5, 0.5, 0.5), shift)
    (stone,) = measure.candidates(volume, 250)
    assert stone.edge_diameter_mm == pytest.approx(diameter, abs=0.1)
    assert diameter <= stone.diameter_mm <= diameter + 2 * np.sqrt(3) * 0.5
    assert stone.centre_mm[2] == pytest.approx(((volume.values.shape[0] - 1) / 2 + shift) * 0.5, abs=0.1)


@pytest.mark.parametrize("diameter", [4.0, 8.0])
def test_unequal_voxels_size_round_stones_alike(diameter: float) -> None:
    """1 mm slices of 0.8 x 0.7 mm voxels: to 0.15 mm."""
    (stone,) = measure.candidates(ball_phantom(diameter, (1.0, 0.8, 0.7), 0.13), 250)
    assert stone.edge_diameter_mm == pytest.approx(diameter, abs=0.15)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_diameters_are_the_largest_of_all_pairs_of_corners(data: st.DataObject) -> None:
    """Any region against a plain double loop over all its voxels' corners, written without the shortcut by rows."""
    shape = (3, 4, 5)
    flat = data.draw(st.lists(st.booleans(), min_size=60, max_size=60).filter(any))
    region = np.array(flat).reshape(shape)
    volume = Volume(np.zeros(shape, np.int16), _AT, (0.1, 0.8, 0.0), (0.6, 0.0, 0.2), "HU")
    edges = np.array([-1.0, 1.0, 5.0, 11.0])  # half-way between slices at 0, 2 and 8 mm, and as far outwards
    up, down, across = (np.array(step) for step in ((0.0, 0.0, 1.0), volume.down, volume.across))
    corners = [
        up * edges[k + a] + down * (r + b - 0.5) + across * (c + d - 0.5)
        for k, r, c in np.argwhere(region)
        for a in (0, 1)
        for b in (0, 1)
        for d in (0, 1)
    ]
    cloud = np.array(corners)
    expected = max(np.sqrt(((cloud - one) ** 2).sum(axis=1)).max() for one in cloud)
    assert measure.diameter(volume, region) == pytest.approx(expected, abs=1e-9)


_AT = np.array([[0.0, 0, 0], [0, 0, 2], [0, 0, 8]])


def test_candidates_are_apart_sorted_and_limited() -> None:
    """Three stones: the largest first; small ones, those outside a region and those beyond `most` are left out."""
    values = phantoms.abdomen()
    values[1, 30, 26:28] = 700
    values[10, 26, 40] = 800
    study = dicom.study(phantoms.series(values), Limits())
    volume = study.volume
    assert volume is not None
    assert [192, 2, 1] == [one.statistics.voxels for one in measure.candidates(volume, 250)]
    assert [192, 2] == [one.statistics.voxels for one in measure.candidates(volume, 250, smallest_mm3=2.0)]
    assert [192] == [one.statistics.voxels for one in measure.candidates(volume, 250, most=1)]
    assert [1] == [one.statistics.voxels for one in measure.candidates(volume, 250, within=_only(volume, 10))]
    assert () == measure.candidates(volume, 2000)


def test_long_groups_are_passed_over_and_do_not_count() -> None:
    """The stone is 8 mm long, from slice to slice; a bone that is longer takes no place of a stone's."""
    values = phantoms.abdomen()
    values[10, 26, 40] = 800
    study = dicom.study(phantoms.series(values), Limits())
    assert study.volume is not None
    assert [192] == [one.statistics.voxels for one in measure.candidates(study.volume, 250, longest_mm=8.01, most=1)]
    assert [1] == [one.statistics.voxels for one in measure.candidates(study.volume, 250, longest_mm=7.99, most=1)]


def test_a_candidate_knows_its_own_voxels() -> None:
    """The box is the least that holds it, and the mask marks it and not its neighbour in the same box."""
    values = phantoms.abdomen()
    values[4:8, 28:34, 30:38] = phantoms.KIDNEY
    values[4, 28:34, 30] = values[4, 28, 30:38] = 900  # an angle
    values[4, 32, 35] = 900  # and a dot within its box
    study = dicom.study(phantoms.series(values), Limits())
    assert study.volume is not None
    angle, dot = measure.candidates(study.volume, 250)
    assert (slice(4, 5), slice(28, 34), slice(30, 38)) == angle.box
    assert (13, False) == (angle.mask.sum(), angle.mask[0, 4, 5])
    assert ((slice(4, 5), slice(32, 33), slice(35, 36)), 1) == (dot.box, dot.mask.sum())


def _only(volume: Volume, index: int) -> np.ndarray:
    region = np.zeros(volume.values.shape, np.bool_)
    region[index] = True
    return region


def test_voxels_that_touch_at_a_corner_are_one_stone() -> None:
    """Thin stones run diagonally."""
    values = np.full((5, 16, 16), 0, np.int16)
    for step in range(4):
        values[step, 4 + step, 4 + step] = 900
    volume = Volume(values, np.arange(5)[:, None] * np.array([0.0, 0, 1]), (0, 1, 0), (1, 0, 0), "HU")
    (stone,) = measure.candidates(volume, 250)
    assert stone.diameter_mm == pytest.approx(4 * np.sqrt(3))


def test_a_ball_holds_the_voxels_within_its_radius() -> None:
    """Counted by a plain loop."""
    volume = scanned()
    inside = measure.ball(volume, (6, 20, 20), 3.0)
    expected = sum(
        (2.0 * (k - 6)) ** 2 + (0.8 * (r - 20)) ** 2 + (0.7 * (c - 20)) ** 2 <= 9.0
        for k in range(12)
        for r in range(48)
        for c in range(48)
    )
    assert expected == inside.sum()


def test_one_slice_has_no_depth() -> None:
    """Within the plane it can be measured; a volume is refused and a candidate has none."""
    study = dicom.study(phantoms.series(phantoms.abdomen())[4:5], Limits())
    assert study.volume is not None
    (stone,) = measure.candidates(study.volume, 250)
    assert stone.volume_mm3 is None
    assert stone.diameter_mm == pytest.approx(np.hypot(4.8, 5.6), abs=1e-5)
    with pytest.raises(ImageError, match="no depth"):
        measure.volume_mm3(study.volume, study.volume.values > 250)


def test_thresholds_in_hu_need_hounsfield_units() -> None:
    """A CT without rescale, or an MR, has no candidates over 250 HU."""
    volume = Volume(np.zeros((1, 4, 4), np.int16), np.zeros((1, 3)), (0, 1, 0), (1, 0, 0), "none")
    with pytest.raises(ImageError, match="Hounsfield"):
        measure.candidates(volume, 250)


def test_empty_and_foreign_regions_are_refused() -> None:
    """A mean of nothing is not 0, and a mask of another shape measures something else."""
    volume = scanned()
    for region in (np.zeros(volume.values.shape, np.bool_), np.ones((2, 2, 2), np.bool_)):
        with pytest.raises(ImageError):
            measure.statistics(volume, region)
        with pytest.raises(ImageError):
            measure.diameter(volume, region)


@pytest.mark.parametrize(
    ("positions", "down", "across"),
    [
        ([[0.0, 0, 0], [0, 0, 0]], (0, 1, 0), (1, 0, 0)),
        ([[0.0, 0, 0], [0, 0, np.nan]], (0, 1, 0), (1, 0, 0)),
        ([[0.0, 0, 0], [0, 0, 1]], (0, 1, 0), (0, 2, 0)),
        ([[0.0, 0, 0]], (0, 1, 0), (1, 0, 0)),
    ],
)
def test_a_volume_is_valid_once_built(
    positions: list[list[float]], down: tuple[float, ...], across: tuple[float, ...]
) -> None:
    """Slices in one place, positions that are no numbers, voxels without area, and a position too few."""
    with pytest.raises(ImageError):
        Volume(np.zeros((2, 4, 4), np.int16), np.array(positions), down, across, "HU")  # type: ignore[arg-type]
