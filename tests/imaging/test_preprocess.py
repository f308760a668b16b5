"""The model sees what its training saw: black padding, a centred square, Pillow's own resize."""

from io import BytesIO
from typing import Literal

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medserve.errors import ImageError
from medserve.images import Image, Source
from medserve.imaging import preprocess
from medserve.imaging.preprocess import Padding, VisionInput, padding, prepare, resized, square


def image_of(pixels: NDArray[np.uint8]) -> Image:
    return Image(pixels, Source("PNG", "RGB", pixels.shape[1], pixels.shape[0]))


def noise(width: int, height: int, seed: int = 0) -> Image:
    return image_of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def naive(image: Image, size: int, resample: str) -> NDArray[np.uint8]:
    """Pad, then resize, in the plainest words: what `resized` must equal bit for bit."""
    side = max(image.width, image.height)
    canvas = PIL.Image.new("RGB", (side, side))
    canvas.paste(PIL.Image.fromarray(image.pixels), ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.resize((size, size), {"bilinear": 2, "bicubic": 3}[resample]))


def opened(data: bytes) -> NDArray[np.uint8]:
    with PIL.Image.open(BytesIO(data)) as picture:
        return np.asarray(picture)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 70),
    resample=st.sampled_from(["bilinear", "bicubic"]),
    block=st.integers(1, 4000),
)
def test_the_result_is_pillows_resize_of_the_padded_square(
    width: int, height: int, size: int, resample: Literal["bilinear", "bicubic"], block: int
) -> None:
    """Working in blocks of rows, of whatever size, changes no bit of the reference."""
    image = noise(width, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "BLOCK", block)
        assert np.array_equal(naive(image, size, resample), resized(image, VisionInput(size, resample)))


def test_prepare_writes_those_pixels_as_a_png_without_metadata() -> None:
    """The engine gets exactly the resized pixels, and nothing besides header, data and end."""
    data = prepare(noise(50, 30), VisionInput(32))
    assert np.array_equal(naive(noise(50, 30), 32, "bilinear"), opened(data))
    assert {b"IHDR", b"IDAT", b"IEND"} == set(_chunk_names(data))


def _chunk_names(data: bytes) -> list[bytes]:
    names, place = [], 8
    while place < len(data):
        names.append(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return names


def test_equal_pictures_give_equal_bytes() -> None:
    """An engine that knows pictures by their bytes recognises one that it has seen."""
    assert prepare(noise(40, 20), VisionInput(32)) == prepare(noise(40, 20), VisionInput(32))


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    """896 x 896 in, the same 896 x 896 out."""
    image = noise(896, 896)
    assert np.array_equal(image.pixels, opened(prepare(image, VisionInput(896))))


def test_a_circle_stays_a_circle() -> None:
    """Defect 000-9: squashing a wide picture made ovals of round lesions."""
    down, across = np.mgrid[:100, :300]
    disc = ((across - 150) ** 2 + (down - 50) ** 2 < 40**2).astype(np.uint8) * 255
    seen = resized(image_of(np.dstack([disc] * 3)), VisionInput(150))[..., 0] > 127
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert 74.5 == pytest.approx(rows.mean(), abs=1)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (10, 10, Padding(0, 0, 10)),
        (10, 4, Padding(0, 3, 10)),
        (4, 10, Padding(3, 0, 10)),
        (10, 5, Padding(0, 2, 10)),
        (1, 8, Padding(3, 0, 8)),
    ],
)
def test_the_picture_lies_in_the_middle(width: int, height: int, expected: Padding) -> None:
    """Of an odd rest, the right or the bottom gets one pixel more."""
    assert expected == padding(width, height)


def test_the_square_is_black_around_the_picture() -> None:
    """Padding is zero, as in training, and the picture is unchanged within it."""
    image = image_of(np.full((3, 6, 3), 200, np.uint8))
    pixels, place = square(image)
    assert (Padding(0, 1, 6), (6, 6, 3)) == (place, pixels.shape)
    assert (0, 200, 0) == (pixels[:1].max(), pixels[1:4].min(), pixels[4:].max())


def test_boxes_come_back_to_the_picture() -> None:
    """A box in thousandths of the square lands where the picture has it; one in the padding lies outside."""
    place = padding(1000, 500)
    assert (0, 0, 500, 1000) == place.restore((250, 0, 750, 1000))
    assert (-250, 0, -150, 100) == place.restore((0, 0, 100, 100))


def test_a_long_strip_costs_no_square() -> None:
    """A strip whose square would have 4 thousand million pixels is prepared all the same."""
    seen = opened(prepare(image_of(np.full((8, 65_000, 3), 255, np.uint8)), VisionInput(64)))
    assert (64, 64, 3) == seen.shape


@pytest.mark.parametrize("size", [0, -1, 100_000])
def test_an_impossible_size_is_refused(size: int) -> None:
    """A vision input is valid once it is built."""
    with pytest.raises(ImageError, match="size must lie"):
        VisionInput(size)
