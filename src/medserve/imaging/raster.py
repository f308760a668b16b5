"""A picture file becomes the pixels that it shows, whole and unchanged, or is refused with the reason and the remedy.

Read are JPEG, PNG, TIFF, WebP, BMP and GIF, told by their content and never by a name. The decisions:

- Transparency is laid on white, the page on which such a picture is seen and the convention of MedGemma's reference
  code; black would say "nothing here" in a radiograph, and is kept for the padding that is added later.
- Grey samples of more than 8 bits are scaled linearly from the smallest usual range (8, 10, 12, 14, 16, 24 or 32 bits)
  that holds the brightest of them, since exports put 12-bit scans into 16-bit files. Division by 65535 would show such
  a scan almost black, and clipping almost white. Floating-point samples are taken as 0 to 1 if they lie within it, and
  from their least to their greatest value otherwise.
- Orientation from EXIF is applied. Colour profiles are not: pixels stay as stored, as the model's training had them.
- Of a file with several frames the first is read.

Whatever of this happened is written in `Source.notes`. Nothing else of the file's metadata is kept or quoted.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.Image import Transpose

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.images import Image, Source
from medserve.settings import Limits
from medserve.threads import in_thread

# At level DEBUG Pillow logs the values of TIFF tags, and a name may be among them.
logging.getLogger("PIL").setLevel(logging.INFO)

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
NAMES = "JPEG, PNG, TIFF, WebP, BMP or GIF"

ONLY_FIRST = "only the first is read"
"""How the note on a file of several frames ends."""

DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bits in which scanners and exporters write grey values."""

BLOCK = 1_000_000
"""Samples that are scaled at once, so that a large picture needs no second copy in floating point."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation, the place of the stored picture's first row and column, and the turn that sets it upright."""


_MARKS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How files of these formats begin; WebP's mark is at byte 8."""


def claims(head: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is of a format that is read here."""
    return head.startswith(_MARKS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_part(image: Image) -> bool:
    """Whether the file holds more pages or frames than were read.

    A JPEG's do not count: by CIPA DC-007 the first is the photograph, and the others are made from it.
    """
    return image.source.format != "JPEG" and any(note.endswith(ONLY_FIRST) for note in image.source.notes)


async def read(data: bytes, limits: Limits) -> Image:
    """`decode` in a thread: the event loop does not wait for pixels."""
    return await in_thread(decode, data, limits)


def decode(data: bytes, limits: Limits) -> Image:
    """The picture in a file's bytes, as uint8 RGB. Blocking; raises ImageUnreadable or ImageTooLarge, nothing else.

    Bytes, sides and frames are held against the limits before any pixel is decoded.
    """
    if not data:
        raise ImageUnreadable(f"the picture is empty (0 bytes); send a {NAMES} file", param="image")
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(
            f"the picture has {len(data)} bytes and at most {limits.image_bytes} are read; send a smaller file, "
            "or raise limits.image_bytes",
            param="image",
        )
    with _refusals(), PIL.Image.open(BytesIO(data), formats=FORMATS) as file:
        _check_size(file, limits)
        source_mode, (width, height), bits = file.mode, file.size, _bits(file, data)
        notes = list(_notes(file, limits))
        pixels = np.asarray(_upright(_rgb(file, notes), _orientation(file, notes)))
        kind = "JPEG" if file.format == "MPO" else file.format or ""
        return Image(pixels, Source(kind, source_mode, width, height, bits, _frames(file), tuple(notes)))


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever a decoder throws at hostile bytes into a refusal that quotes nothing of the file."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageUnreadable(
            f"the bytes are not a picture in a format that is read here: send {NAMES}", param="image"
        ) from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise ImageTooLarge(
            "the picture has far more pixels than can be decoded safely; send it scaled down or in parts", param="image"
        ) from None
    except MemoryError:
        raise ImageTooLarge(
            "there is not enough memory to decode the picture; send it scaled down", param="image"
        ) from None
    except Exception:  # decoders of six formats have no common error; what they say may quote the file
        raise ImageUnreadable(
            f"the picture is damaged, cut short or of a rare kind; save it again as PNG, JPEG or another of {NAMES}",
            param="image",
        ) from None


def _check_size(file: PIL.Image.Image, limits: Limits) -> None:
    width, height = file.size
    if min(width, height) < limits.image_min_side:
        raise ImageUnreadable(
            f"the picture has {width} x {height} pixels and shows nothing to examine; "
            f"each side must have at least {limits.image_min_side} pixels",
            param="image",
        )
    if width * height > limits.image_pixels:
        raise ImageTooLarge(
            f"the picture has {width} x {height} pixels and at most {limits.image_pixels} are read; "
            "send it scaled down",
            param="image",
        )


def _notes(file: PIL.Image.Image, limits: Limits) -> Iterator[str]:
    """What the reader of a report should know about how the file was read; refuses more frames than the limit."""
    if file.format == "GIF":
        # A GIF's frames are found only by reading through them, and none but the first is used.
        if getattr(file, "is_animated", False):
            yield f"several frames: {ONLY_FIRST}"
    elif (frames := _count(file, limits.image_frames)) > 1:
        yield f"{frames} frames: {ONLY_FIRST}"
    if "icc_profile" in file.info:
        yield "colour profile not applied"
    if file.mode == "CMYK":
        yield "CMYK converted to RGB without a colour profile"


def _frames(file: PIL.Image.Image) -> int:
    return 1 if file.format == "GIF" else int(getattr(file, "n_frames", 1))


def _count(file: PIL.Image.Image, most: int) -> int:
    """Frames in the file, counted no further than the limit: a TIFF's chain of directories can be made very long."""
    if file.format != "TIFF":
        frames = int(getattr(file, "n_frames", 1))
    else:
        frames = 1
        with suppress(EOFError):
            while frames <= most:
                file.seek(frames)
                frames += 1
        file.seek(0)
    if frames > most:
        raise ImageTooLarge(f"the file has more than {most} frames; send fewer in one file", param="image")
    return frames


def _bits(file: PIL.Image.Image, data: bytes) -> int:
    """Bits a sample in the file: from PNG's header or TIFF's tag, otherwise 8 (1 for black and white)."""
    if file.format == "PNG":
        return data[24]
    if file.format == "TIFF":
        declared = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,))
        return max(int(bits) for bits in (declared if isinstance(declared, tuple) else (declared,)))
    return 1 if file.mode == "1" else 8


def _orientation(file: PIL.Image.Image, notes: list[str]) -> int:
    """EXIF's orientation, 1 if there is none. Call it after the pixels are loaded: TIFFs are turned while loading."""
    try:
        turn = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is free-form and often broken; the pixels are sound all the same
        notes.append("EXIF could not be read: shown as stored")
        return 1
    return turn if turn in _TURNS else 1


def _upright(picture: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _rgb(file: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    """The first frame as 8-bit RGB; what was decided on the way is added to `notes`."""
    deep = file.mode[0] in "IF"
    white_is_zero = file.format == "TIFF" and getattr(file, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    file.load()
    if deep:
        # Pillow turns 1- and 8-bit samples of "white is zero" over, but not deeper ones.
        grey = _scaled(np.asarray(file), notes)
        return PIL.Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if file.has_transparency_data:
        return _on_white(file.convert("RGBA"), notes)
    return file.convert("RGB")


def _on_white(picture: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    lowest, _highest = picture.getchannel("A").getextrema()
    if lowest == 255:
        return picture.convert("RGB")
    notes.append("transparency laid on white")
    page = PIL.Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB")


def _scaled(samples: NDArray[np.generic], notes: list[str]) -> NDArray[np.uint8]:
    """Grey samples of any depth as uint8 of the same shape, linearly; `notes` learns from which range."""
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageUnreadable("the picture holds samples that are not numbers; save it as 8 or 16 bits", param="image")
    low, high = _range(samples.dtype.kind == "f", low, high)
    notes.append(f"grey values scaled from {low:g}..{high:g} to 0..255")
    grey = np.empty(samples.shape, np.uint8)
    rows = max(1, BLOCK // samples.shape[1])
    for top in range(0, len(samples), rows):
        block = samples[top : top + rows].astype(np.float64)
        grey[top : top + rows] = np.rint((block - low) * 255 / (high - low))
    return grey


def _range(floating: bool, low: float, high: float) -> tuple[float, float]:
    """The range that is meant by samples between low and high; never empty."""
    if floating and low >= 0 and high <= 1:
        return 0.0, 1.0
    if not floating and low >= 0:
        return 0.0, next(2.0**bits - 1 for bits in DEPTHS if high < 2**bits)
    return low, high if high > low else low + 1
