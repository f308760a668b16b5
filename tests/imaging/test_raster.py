"""Every picture file is read to the pixels that it shows, or refused with a reason that names the remedy."""

import logging
import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageCms

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.imaging.raster import decode, read
from medserve.settings import Limits

LIMITS = Limits()
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")


def drawing(width: int = 24, height: int = 16) -> PIL.Image.Image:
    """A picture without symmetry: red grows to the right, green downwards, blue is constant."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.dstack([across, down, np.full_like(across, 64)]).astype(np.uint8))


def noise(width: int = 64, height: int = 48) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def saved(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def grey16(values: list[int]) -> PIL.Image.Image:
    """A 16-bit picture of 8 x 8 whose first values are given, the rest 0."""
    samples = np.zeros(64, np.uint16)
    samples[: len(values)] = values
    return PIL.Image.fromarray(samples.reshape(8, 8))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk after its header."""
    return png[:33] + chunk(name, body) + png[33:]


def pixels_of(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


# --- formats and modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    """What was saved without loss is read without loss."""
    assert np.array_equal(pixels_of(drawing()), decode(saved(drawing(), kind), LIMITS).pixels)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_told_by_its_content(kind: str) -> None:
    """The format comes from the bytes; there is no name to go by."""
    image = decode(saved(drawing(), kind), LIMITS)
    assert (kind, 24, 16) == (image.source.format, image.width, image.height)


def test_webp_without_loss_is_exact() -> None:
    """WebP's lossless mode is lossless here as well."""
    assert np.array_equal(pixels_of(drawing()), decode(saved(drawing(), "WEBP", lossless=True), LIMITS).pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LAB", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """Black and white, grey, palette, print colours and alpha all arrive as uint8 RGB of the same size."""
    picture = drawing().convert(mode)
    image = decode(saved(picture, "TIFF"), LIMITS)
    assert (mode, (16, 24, 3), "uint8") == (image.source.mode, image.pixels.shape, str(image.pixels.dtype))
    assert np.array_equal(pixels_of(picture), image.pixels)


def test_print_colours_of_adobe_files_are_not_inverted() -> None:
    """Adobe writes CMYK JPEGs upside down; red stays red."""
    red = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = decode(saved(red, "JPEG", quality=100), LIMITS)
    assert [True, True, True] == (np.abs(image.pixels.mean((0, 1)) - [255, 0, 0]) < 8).tolist()
    assert "CMYK converted to RGB without a colour profile" in image.source.notes


def test_ycbcr_tiff_is_read_as_the_colours_it_means() -> None:
    """A JPEG-compressed TIFF keeps its colours."""
    image = decode(saved(drawing(), "TIFF", compression="jpeg", quality=95), LIMITS)
    assert np.abs(image.pixels.astype(int) - pixels_of(drawing())).mean() < 8


def test_only_the_first_frame_of_a_gif_is_read() -> None:
    """A moving GIF is its first frame, and the report is told so."""
    first, second = PIL.Image.new("RGB", (16, 16), "red"), PIL.Image.new("RGB", (16, 16), "blue")
    image = decode(saved(first, "GIF", save_all=True, append_images=[second]), LIMITS)
    assert [255, 0, 0] == image.pixels[0, 0].tolist()
    assert "several frames: only the first is read" in image.source.notes


def test_only_the_first_page_of_a_tiff_is_read() -> None:
    """The count of pages is kept, the first is shown."""
    pages = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    image = decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), LIMITS)
    assert (3, [255, 0, 0]) == (image.source.frames, image.pixels[0, 0].tolist())
    assert "3 frames: only the first is read" in image.source.notes


# --- depth


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    """Defect of older readers: 16-bit greys above 255 all became white."""
    image = decode(saved(grey16([0, 257 * 100, 65535]), "PNG"), LIMITS)
    assert [0, 100, 255] == image.pixels[0, :3, 0].tolist()
    assert (16, "grey values scaled from 0..65535 to 0..255") == (image.source.bits, image.source.notes[0])


@pytest.mark.parametrize(("high", "bits"), [(200, 8), (1000, 10), (4095, 12), (4096, 14), (16383, 14), (16384, 16)])
def test_samples_of_fewer_bits_are_scaled_from_their_own_range(high: int, bits: int) -> None:
    """A 12-bit scan in a 16-bit file is neither nearly black nor stretched beyond its scanner's range."""
    image = decode(saved(grey16([0, high]), "TIFF"), LIMITS)
    assert round(255 * high / (2**bits - 1)) == image.pixels[0, 1, 0]
    assert f"grey values scaled from 0..{2**bits - 1} to 0..255" in image.source.notes


def test_white_is_zero_is_turned_over_at_sixteen_bits() -> None:
    """Pillow turns over 8-bit samples only; black must not come out white."""
    data = bytearray(saved(grey16([0, 65535]), "TIFF"))
    place = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[place + 8] = 0
    assert [255, 0] == decode(bytes(data), LIMITS).pixels[0, :2, 0].tolist()


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 1.0, [0, 128, 255]), (0.0, 0.5, [0, 64, 128]), (-50.0, 150.0, [0, 128, 255])]
)
def test_floating_point_samples_are_zero_to_one_or_least_to_greatest(
    low: float, high: float, expected: list[int]
) -> None:
    """Values within 0..1 keep their meaning; others have no declared range, and the note says which was taken."""
    samples = np.full((8, 8), low, np.float32)
    samples[0, 1:3] = (low + high) / 2, high
    image = decode(saved(PIL.Image.fromarray(samples), "TIFF"), LIMITS)
    assert expected == image.pixels[0, :3, 0].tolist()
    assert any(note.startswith("grey values scaled from") for note in image.source.notes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    """There is no honest grey for a NaN."""
    samples = np.zeros((8, 8), np.float32)
    samples[0, 0] = value
    with pytest.raises(ImageUnreadable, match="not numbers"):
        decode(saved(PIL.Image.fromarray(samples), "TIFF"), LIMITS)


def test_signed_integers_are_stretched_from_least_to_greatest() -> None:
    """Negative values, as in CT, have no 8-bit meaning by themselves; the note says what was done."""
    samples = np.full((8, 8), -1000, np.int32)
    samples[0, 0] = 1000
    image = decode(saved(PIL.Image.fromarray(samples), "TIFF"), LIMITS)
    assert (255, 0) == (image.pixels[0, 0, 0], image.pixels[1, 1, 0])
    assert "grey values scaled from -1000..1000 to 0..255" in image.source.notes


def test_a_flat_deep_picture_is_black_and_no_division_by_zero() -> None:
    """One value everywhere has no range to be stretched over."""
    image = decode(saved(PIL.Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), LIMITS)
    assert 0 == image.pixels.max()


# --- transparency, orientation, profiles


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    """What is transparent shows the page, and the note says so."""
    picture = PIL.Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image = decode(saved(picture.convert(mode), "PNG"), LIMITS)
    assert ([255] * 3, [0] * 3) == (image.pixels[0, 0].tolist(), image.pixels[0, 12].tolist())
    assert "transparency laid on white" in image.source.notes


def test_half_transparency_is_mixed() -> None:
    """Alpha is a share, not a switch."""
    image = decode(saved(PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), LIMITS)
    assert 127 == image.pixels[0, 0, 0]


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    """An alpha channel that hides nothing is no transparency."""
    image = decode(saved(drawing().convert("RGBA"), "PNG"), LIMITS)
    assert np.array_equal(pixels_of(drawing()), image.pixels)
    assert () == image.source.notes


TURNS: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
    lambda upright: upright,
    lambda upright: upright[:, ::-1],
    lambda upright: upright[::-1, ::-1],
    lambda upright: upright[::-1],
    lambda upright: upright.transpose(1, 0, 2),
    lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
    lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    lambda upright: upright.transpose(1, 0, 2)[::-1],
]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    """Defect 002-7: a photograph taken with the camera on its side is upright, in every format that can say so."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    exact: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = decode(saved(drawing(), kind, exif=exif, **exact.get(kind, {})), LIMITS)
    expected = TURNS[orientation - 1](pixels_of(drawing()))
    assert expected.shape == image.pixels.shape
    assert np.abs(expected.astype(int) - image.pixels).max() <= (6 if kind == "JPEG" else 0)


def test_a_colour_profile_is_noted_and_not_applied() -> None:
    """Pixels stay as stored; the report can say that a profile was there."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = decode(saved(drawing(), "PNG", icc_profile=profile), LIMITS)
    assert np.array_equal(pixels_of(drawing()), image.pixels)
    assert ("colour profile not applied",) == image.source.notes


def test_nothing_of_the_files_texts_is_kept() -> None:
    """Names in EXIF and comments end at the door."""
    exif = PIL.Image.Exif()
    exif[0x013B] = "DOE^JANE"
    image = decode(saved(drawing(), "JPEG", exif=exif, comment=b"DOE^JANE"), LIMITS)
    assert "DOE" not in repr(image)


def test_pillow_logs_no_tag(caplog: pytest.LogCaptureFixture) -> None:
    """Even a log at level DEBUG holds no description that a scanner wrote into the file."""
    caplog.set_level(logging.DEBUG)
    decode(saved(drawing(), "TIFF", description="DOE^JANE"), LIMITS)
    assert "DOE" not in caplog.text


# --- identity


def test_equal_pixels_have_one_identity_in_every_format() -> None:
    """A PNG and a BMP of the same pixels are the same picture."""
    assert decode(saved(drawing(), "PNG"), LIMITS) == decode(saved(drawing(), "BMP"), LIMITS)


def test_a_transposed_shape_is_another_picture() -> None:
    """Equal bytes of another shape must not share a cache entry."""
    wide, tall = PIL.Image.new("RGB", (16, 9), "red"), PIL.Image.new("RGB", (9, 16), "red")
    assert decode(saved(wide, "PNG"), LIMITS).sha256 != decode(saved(tall, "PNG"), LIMITS).sha256


def test_one_pixel_makes_another_picture() -> None:
    """The identity covers every pixel."""
    other = drawing()
    other.putpixel((23, 15), (1, 2, 3))
    assert decode(saved(drawing(), "PNG"), LIMITS) != decode(saved(other, "PNG"), LIMITS)


# --- refusals


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is not a picture", "send JPEG, PNG"),
        (b"%PDF-1.7", "send JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "send JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", "send"),
        (b"\xff\xd8\xff", "send|save it again"),
        (b"GIF89a", "send|save it again"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    """The refusal names the field and the formats, not a decoder's words."""
    with pytest.raises(ImageUnreadable, match=reason) as refusal:
        decode(data, LIMITS)
    assert "image" == refusal.value.param


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (7, 8)])
def test_a_picture_too_small_to_examine_is_refused(size: tuple[int, int]) -> None:
    """One pixel is no examination, and the message says what is enough."""
    with pytest.raises(ImageUnreadable, match="at least 8 pixels"):
        decode(saved(PIL.Image.new("RGB", size), "PNG"), LIMITS)


def test_eight_pixels_a_side_are_enough() -> None:
    """The limit itself is allowed, and it can be set."""
    assert 8 == decode(saved(PIL.Image.new("RGB", (8, 8)), "PNG"), LIMITS).width
    assert 1 == decode(saved(PIL.Image.new("RGB", (1, 1)), "PNG"), Limits(image_min_side=1)).width


def test_too_many_bytes_are_refused_unread() -> None:
    """The limit on bytes comes before everything else."""
    with pytest.raises(ImageTooLarge, match="at most 10 are read"):
        decode(b"x" * 11, Limits(image_bytes=10))


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims a size and has next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (100_001, 1000)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    """A bomb of a few bytes that claims a huge picture never gets its memory."""
    with pytest.raises(ImageTooLarge, match="scaled down"):
        decode(png_header(*size), LIMITS)


def test_too_many_frames_are_refused() -> None:
    """A file of more pages than the limit is refused, and the counting stops there."""
    pages = [PIL.Image.new("L", (8, 8)) for _ in range(5)]
    with pytest.raises(ImageTooLarge, match="more than 4 frames"):
        decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), Limits(image_frames=4))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_texts_in_a_png_are_no_bombs(name: bytes) -> None:
    """A hundred megabytes of zeros in a text or a profile are not unpacked."""
    packed = zlib.compress(b"\0" * 100_000_000)
    head = b"x\0\1\0\0\0" if name == b"iTXt" else b"x\0\0"
    with pytest.raises(ImageUnreadable):
        decode(with_chunk(saved(drawing(), "PNG"), name, head + packed), LIMITS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_that_was_cut_short_is_refused(kind: str, share: float) -> None:
    """Half a picture is never shown with grey below it."""
    data = saved(noise(), kind)
    with pytest.raises(ImageUnreadable):
        decode(data[: int(len(data) * share)], LIMITS)


def refused(data: bytes) -> ImageError | None:
    """The refusal of a file, or None where it is read; any other error fails the test."""
    try:
        decode(data, LIMITS)
    except ImageError as refusal:
        return refusal
    return None


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_raise_nothing_but_refusals(kind: str) -> None:
    """Whatever bytes are turned over, the answer is a picture or a refusal without a word of the file."""
    chance = random.Random(0)
    whole = saved(drawing(), kind)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        refusal = refused(bytes(data))
        assert refusal is None or ("image", None) == (refusal.param, refusal.__cause__)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    """The pixels are sound; what could not be read is noted or ignored."""
    image = decode(saved(drawing(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), LIMITS)
    assert (24, 16) == (image.width, image.height)


@pytest.mark.anyio
async def test_reading_in_a_thread_gives_the_same_picture() -> None:
    """`read` is `decode` off the event loop."""
    data = saved(drawing(), "PNG")
    assert decode(data, LIMITS) == await read(data, LIMITS)
