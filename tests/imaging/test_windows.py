"""Values become model pixels exactly as the published recipe says."""

from fractions import Fraction

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_windowing

from medserve.errors import ImageUnreadable
from medserve.imaging import windows


def by_the_notebook(hounsfield: np.ndarray) -> np.ndarray:
    """The notebook's recipe channel by channel, in the words of its formula and in its single precision."""
    channels = []
    for low, high in [(-1024, 1024), (-135, 215), (0, 80)]:
        part = np.minimum(np.maximum(hounsfield, low), high).astype(np.float32)
        channels.append(np.round((part - np.float32(low)) / np.float32(high - low) * np.float32(255), 0))
    return np.stack(channels, axis=-1).astype(np.uint8)


def test_every_hounsfield_value_has_the_notebooks_colour() -> None:
    """All 65536 values of int16, as integers and in single precision."""
    every = np.arange(-32768, 32768).astype(np.int16)
    np.testing.assert_array_equal(by_the_notebook(every), windows.three_windows(every))
    np.testing.assert_array_equal(by_the_notebook(every), windows.three_windows(every.astype(np.float32)))


def test_colours_are_the_true_fractions_rounded() -> None:
    """In exact fractions no colour is further from its true value than half a level."""
    every = np.arange(-1100, 1100).astype(np.int16)
    colours = windows.three_windows(every)
    for value, colour in zip(every.tolist(), colours.tolist(), strict=True):
        for (low, high), got in zip(((-1024, 1024), (-135, 215), (0, 80)), colour, strict=True):
            true = Fraction(min(max(value, low), high) - low, high - low) * 255
            assert abs(got - true) <= Fraction(1, 2), (value, got)


@pytest.mark.parametrize(
    ("hounsfield", "colour"),
    [
        (-1024, (0, 0, 0)),
        (-135, (111, 0, 0)),
        (0, (128, 98, 0)),
        (8, (128, 104, 26)),  # 8 / 80 * 255 is 25.5: to the even neighbour
        (40, (132, 128, 128)),
        (80, (137, 157, 255)),
        (215, (154, 255, 255)),
        (1024, (255, 255, 255)),
    ],
)
def test_landmarks_of_the_windows(hounsfield: int, colour: tuple[int, int, int]) -> None:
    """Air, fat, water and bone have these colours, worked out by hand."""
    assert colour == tuple(windows.three_windows(np.array([hounsfield], np.int16))[0].tolist())


def test_green_is_the_notebooks_window_and_not_the_serving_codes() -> None:
    """Google's serving code has +135..+215 for green; soft tissue of 40 HU would be black in it."""
    assert windows.three_windows(np.array([40], np.int16))[0, 1] == 128


@given(st.integers(86, 3000))
def test_85_slices_are_chosen_by_the_formula(slices: int) -> None:
    """Equal to rounding by exact fractions: halves never occur, so the rule for halves does not matter."""
    expected = []
    for i in range(1, 86):
        true = Fraction(i * (slices - 1), 85)
        assert true.denominator != 2
        expected.append(int(true + Fraction(1, 2)))
    assert tuple(expected) == windows.chosen(slices)


def test_the_last_slice_is_chosen_and_the_first_is_not() -> None:
    """The formula's quirk: it counts from 1."""
    for slices in (86, 100, 512):
        chosen = windows.chosen(slices)
        assert (85, slices - 1) == (len(chosen), chosen[-1])
        assert chosen[0] > 0
        assert sorted(set(chosen)) == list(chosen)


def test_up_to_85_slices_all_are_sent() -> None:
    """Choosing begins with the 86th slice."""
    assert tuple(range(85)) == windows.chosen(85)
    assert (0,) == windows.chosen(1)


def test_labels_number_what_is_sent() -> None:
    """SLICE n counts pictures from 1, whatever the scanner called them."""
    assert ("SLICE 1", "SLICE 2", "SLICE 3") == windows.labels(3)


def test_a_stretch_runs_from_0_to_255_and_rounds() -> None:
    """Worked out by hand; below and above is clipped, and without any range all is white as in the published code."""
    values = np.array([-5, 10, 11, 12, 14, 99], np.int16)
    assert [0, 0, 64, 128, 255, 255] == windows.stretched(values, 10, 14).tolist()
    assert [255] * 6 == windows.stretched(values, 10, 10).tolist()
    with pytest.raises(ImageUnreadable):
        windows.stretched(values.astype(np.float32), float("nan"), 1)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (40, 400), (100.5, 33), (-7, 2)])
def test_windows_are_dicoms(function: str, centre: float, width: float) -> None:
    """Equal to pydicom's own windowing, within the rounding of a grey level, for every 12-bit value."""
    values = np.arange(4096).astype(np.uint16)
    asked = pydicom.Dataset()
    asked.WindowCenter, asked.WindowWidth, asked.VOILUTFunction = centre, width, function
    asked.BitsStored, asked.PixelRepresentation, asked.PhotometricInterpretation = 12, 0, "MONOCHROME2"
    expected = apply_windowing(values, asked) / 4095 * 255
    assert np.abs(expected - windows.windowed(values, centre, width, function)).max() <= 0.5 + 1e-9


def test_an_8_bit_window_over_everything_changes_nothing() -> None:
    """Centre 128 and width 256 is the identity by DICOM's definition."""
    values = np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(values, windows.windowed(values, 128, 256))


def test_a_window_of_one_value_is_a_threshold() -> None:
    """PS3.3 C.11.2.1.2.1: with width 1 all up to centre - 0.5 is black and the rest white."""
    assert [0, 0, 255] == windows.windowed(np.array([9, 10, 11], np.int16), 11, 1).tolist()


@pytest.mark.parametrize(("width", "function"), [(0, "LINEAR"), (0, "SIGMOID"), (-3, "LINEAR_EXACT"), (9, "GAMMA")])
def test_impossible_windows_are_refused(width: float, function: str) -> None:
    """DICOM forbids these widths, and defines no other function."""
    with pytest.raises(ImageUnreadable):
        windows.windowed(np.zeros(3, np.int16), 0, width, function)


def test_dicoms_window_is_within_a_level_of_the_published_chest_x_ray_one() -> None:
    """MedGemma's serving code maps centre +- width / 2 to 0..255; over 12 bits the levels differ by 1 at most."""
    values = np.arange(4096).astype(np.uint16)
    published = np.round(np.interp(values, (2048 - 2048, 2048 + 2048), (0, 255)))
    assert np.abs(published - windows.windowed(values, 2048, 4096)).max() <= 1
