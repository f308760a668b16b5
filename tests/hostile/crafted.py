"""Attacks with a name: bombs, lies and loops that chance would hardly find, among them the nine classes of Orthanc.

Orthanc's are CVE-2026-5437 to 5445: a meta header read past its end, a gzip bomb, sizes in a zip that are believed, a
length of 4 GB, Philips' private compression, dimensions of another type than expected, a palette that is too short, a
PAM picture whose size overflows, and an index past the end of a look-up table.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple
from zipfile import ZIP_LZMA, ZipFile, ZipInfo

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000, UID, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from tests.hostile import samples

ZEROS = 32 * 2**20


class Attack(NamedTuple):
    """One thing to hand over: a file's bytes, or a folder's files of which the one called DICOMDIR is named."""

    format: str
    name: str
    content: bytes | dict[str, bytes]


def attacks() -> Iterator[Attack]:
    """All of them, always the same and in the same order."""
    for format_, make in (
        ("png", _png),
        ("jpeg", _jpeg),
        ("gif", _gif),
        ("bmp", _bmp),
        ("tiff", _tiff),
        ("webp", _webp),
        ("dicom", _dicom),
        ("nifti", _nifti),
        ("pdf", _pdf),
        ("zip", _zip),
        ("tar", _tar),
        ("dicomdir", _dicomdir),
        ("other", _other),
    ):
        for name, content in make():
            yield Attack(format_, name, content)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + before + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _png() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(bytes(ZEROS))
    yield "a thousand million pixels", _png_of(31623, 31623, zeros)
    yield "sides of 2**31", _png_of(2**31 - 1, 2**31 - 1, zeros)
    yield "sides of 0", _png_of(0, 0, zeros)
    yield "more data than pixels", _png_of(64, 64, zeros)
    yield "10000 x 10000 from nothing", _png_of(10_000, 10_000, zlib.compress(b""))
    yield "text that inflates", _png_of(64, 64, zeros[:100], before=_chunk(b"zTXt", b"c\0\0" + zeros))
    yield "profile that inflates", _png_of(64, 64, zeros[:100], before=_chunk(b"iCCP", b"c\0\0" + zeros))
    indices = zlib.compress(b"".join(b"\0" + bytes(range(192, 256)) for _row in range(64)))
    yield "palette of one colour", _png_of(64, 64, indices, colour=3, before=_chunk(b"PLTE", b"\1\2\3"))
    yield "no palette", _png_of(64, 64, indices, colour=3)
    yield "palette of 7 bytes", _png_of(64, 64, indices, colour=3, before=_chunk(b"PLTE", b"1234567"))
    yield "depth 255", _png_of(64, 64, indices, depth=255)
    yield "chunk of 4 GB", _png_of(64, 64, indices).replace(b"IDAT", b"IDAT\xff\xff\xff\xff")
    yield "1e5 frames", _png_of(64, 64, indices, before=_chunk(b"acTL", struct.pack(">II", 100_000, 0)))


def _jpeg() -> Iterator[tuple[str, bytes]]:
    sound = samples.picture("JPEG")
    frame = sound.index(b"\xff\xc0")
    huge = sound[: frame + 5] + b"\xff\xff\xff\xff" + sound[frame + 9 :]
    yield "65535 x 65535", huge
    yield "height of 0", sound[: frame + 5] + b"\0\0" + sound[frame + 7 :]
    yield "a quantisation table less", sound.replace(b"\xff\xdb", b"\xff\xfe", 1)
    yield "no Huffman tables", sound.replace(b"\xff\xc4", b"\xff\xfe")
    progressive = samples.picture("JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    wide = progressive[:frame] + progressive[frame:].replace(b"\0\x50\0\x60", b"\x20\0\x20\0", 1)
    yield "a thousand scans", progressive[:scan] + progressive[scan:-2] * 1000 + b"\xff\xd9"
    yield "a thousand scans of 67 megapixels", wide[:scan] + wide[scan:-2] * 1000 + b"\xff\xd9"
    yield "markers without end", sound[:2] + b"\xff\xe1\0\2" * 200_000 + sound[2:]
    yield (
        "EXIF of loops",
        sound[:2] + b"\xff\xe1\0\x1cExif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0" + sound[2:],
    )
    yield "fill bytes", sound[:2] + b"\xff" * 3_000_000 + sound[2:]


def _gif() -> Iterator[tuple[str, bytes]]:
    sound = samples.picture("GIF", "P")
    yield "65535 x 65535", sound[:6] + b"\xff\xff\xff\xff" + sound[10:]
    frame = sound.index(b"\x2c", 13 + 3 * (2 << (sound[10] & 7)))
    yield "frame outside", sound[: frame + 1] + b"\xff\xff" * 2 + sound[frame + 5 :]
    yield "frame of 65535 x 65535", sound[: frame + 5] + b"\xff\xff" * 2 + sound[frame + 9 :]
    yield "2000 frames", sound[:-1] + sound[frame:-1] * 2000 + b";"
    yield "comments without end", sound[:frame] + b"\x21\xfe\1x\0" * 500_000 + sound[frame:]
    yield "code size of 255", sound[: frame + 10] + b"\xff" + sound[frame + 11 :]


def _bmp() -> Iterator[tuple[str, bytes]]:
    sound = samples.picture("BMP")
    for name, place, form, value in (
        ("width of -1", 18, "<i", -1),
        ("width of 2**31-1", 18, "<i", 2**31 - 1),
        ("height of -2**31", 22, "<i", -(2**31)),
        ("height of 2**30", 22, "<i", 2**30),
        ("65535 bits", 28, "<H", 65535),
        ("run lengths", 30, "<I", 1),
        ("2**32-1 colours", 46, "<I", 2**32 - 1),
        ("pixels at 4 GB", 10, "<I", 2**32 - 1),
        ("header of 4 GB", 14, "<I", 2**32 - 1),
    ):
        yield name, sound[:place] + struct.pack(form, value) + sound[place + struct.calcsize(form) :]
    runs = bytearray(samples.picture("BMP", "P"))
    struct.pack_into("<ii", runs, 18, 8192, 8192)
    struct.pack_into("<I", runs, 30, 1)
    yield "runs that jump about", bytes(runs) + b"\0\2\xff\xff" * 200_000


def _tiff_of(entries: list[tuple[int, int, int, int]], after: bytes = b"", link: int = 0) -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + struct.pack("<I", link) + after


def _tiff() -> Iterator[tuple[str, bytes]]:
    def plain(width: int = 64, height: int = 64, **tags: int) -> list[tuple[int, int, int, int]]:
        values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: width * height}
        values |= {int(tag[1:]): value for tag, value in tags.items()}
        return [(tag, 4, 1, value) for tag, value in sorted(values.items())]

    pixels = bytes(range(256)) * 64
    yield "65535 x 65535", _tiff_of(plain(65535, 65535), pixels)
    yield "sides of 2**32-1", _tiff_of(plain(2**32 - 1, 2**32 - 1, t278=64, t279=64), pixels)
    yield "loop of directories", _tiff_of(plain(), pixels, link=8)
    yield "pixels at 4 GB", _tiff_of(plain(t273=2**32 - 1), pixels)
    yield "65535 bits", _tiff_of(plain(t258=65535), pixels)
    yield "65535 samples", _tiff_of(plain(t277=65535), pixels)
    yield "unknown compression", _tiff_of(plain(t259=65000), pixels)
    bomb = zlib.compress(bytes(ZEROS))
    yield "deflate bomb", _tiff_of(plain(9900, 9900, t259=8, t279=len(bomb)), bytes(200) + bomb)
    yield "tag of 4e9 values", _tiff_of([*plain(), (270, 2, 2**32 - 1, 8)], pixels)
    yield "5000 directories", _tiff_chain(5000, plain())
    yield "palette past its end", _tiff_of([*plain(t262=3), (320, 3, 768, 2**31)], pixels)
    yield "tiles of 2**31", _tiff_of([*plain(), (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 200)], pixels)
    sound = samples.slide()
    yield "slide with one level's link to itself", sound.replace(sound[-4:], sound[4:8])
    yield "slide with tiles of 0", _replaced(sound, struct.pack("<HHII", 322, 3, 1, 256), (322, 3, 1, 0))
    yield "slide of 2**31 a side", _replaced(sound, struct.pack("<HHII", 256, 4, 1, 1024), (256, 4, 1, 2**31))
    yield "slide of 900000 a side", _replaced(sound, struct.pack("<HHII", 256, 4, 1, 1024), (256, 4, 1, 900_000))
    yield "slide of a micrometre in 1e-9", sound.replace(b"MPP = 0.5", b"MPP = 1e-9"[:9])


def _tiff_chain(count: int, entries: list[tuple[int, int, int, int]]) -> bytes:
    out = bytearray(b"II*\0\x08\0\0\0")
    for _number in range(count):
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        out += struct.pack("<I", len(out) + 4)
    return bytes(out[:-4]) + b"\0\0\0\0" + bytes(5000)


def _replaced(data: bytes, old: bytes, entry: tuple[int, int, int, int]) -> bytes:
    return data.replace(old, struct.pack("<HHII", *entry))


def _webp() -> Iterator[tuple[str, bytes]]:
    lossless, animated = samples.picture("WEBP", lossless=True), samples.animation("WEBP")
    yield "16384 x 16384 without pixels", lossless[:21] + b"\xff\xff\xff\x0f" + lossless[25:]
    yield "canvas of 2**24", animated[:24] + b"\xff" * 6 + animated[30:]
    yield "RIFF of 4 GB", lossless[:4] + b"\xff\xff\xff\xff" + lossless[8:]
    yield "chunk of 4 GB", lossless[:16] + b"\xff\xff\xff\xff" + lossless[20:]
    yield "Huffman codes of noise", lossless[:26] + np.random.default_rng(1).bytes(5000)


def _changed(**elements: Any) -> Dataset:
    made = samples.dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def _element(group: int, element: int, kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """An explicit little-endian element, which may lie about its length."""
    size = len(data) if length is None else length
    head = struct.pack("<HH", group, element) + kind
    wide = kind in {b"OB", b"OW", b"SQ", b"UN", b"UT"}
    return head + (struct.pack("<HI", 0, size) if wide else struct.pack("<H", size & 0xFFFF)) + data


def _spliced(made: Dataset, before: bytes, insert: bytes) -> bytes:
    """The data set's file with raw bytes in front of the first place where `before` is found."""
    data = samples.written(made)
    place = data.index(before, 300)
    return data[:place] + insert + data[place:]


PIXELS = b"\xe0\x7f\x10\x00"


def _dicom() -> Iterator[tuple[str, bytes]]:
    yield from _orthanc()
    yield from _shapes()
    yield from _nested()
    yield from _encapsulated()
    yield from _numbers()


def _orthanc() -> Iterator[tuple[str, bytes]]:
    sound = samples.dicom()
    yield "Orthanc 1: meta header longer than the file", sound[:140] + b"\xff\xff\xff\x7f" + sound[144:]
    yield "Orthanc 1: meta element longer than the file", sound[:152] + b"UI\xff\xff" + sound[156:400]
    made = _changed(PixelData=bytes(ZEROS), Rows=4096, Columns=8192)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    yield "Orthanc 2: deflated bomb", samples.written(made)
    pixels = struct.pack("<HH", 0x7FE0, 0x0010) + b"OW\0\0"
    yield "Orthanc 4: pixel data of 4 GB", sound.replace(pixels + struct.pack("<I", 2048), pixels + b"\xfe\xff\xff\xff")
    yield "Orthanc 4: pixel data of 2 GB", sound.replace(pixels + struct.pack("<I", 2048), pixels + b"\xfe\xff\xff\x7f")
    private = (
        _element(0x07A1, 0x0010, b"LO", b"ELSCINT1") + _element(0x07A1, 0x1011, b"CS", b"PMSCT_RLE1")
        + _element(0x07A1, 0x100A, b"OB", b"\xa5\xff\x5a\xff\x00" * 2000)
    )  # fmt: skip
    yield "Orthanc 5: Philips PMSCT_RLE1", _spliced(samples.dataset(), PIXELS, private)
    rows = struct.pack("<HH", 0x0028, 0x0010)
    yield "Orthanc 6: rows as UL", sound.replace(rows + b"US\2\0\x20\0", rows + b"UL\4\0\x20\0\1\0")
    for name, sides in (("65535 x 65535", (65535, 65535)), ("0 x 0", (0, 0)), ("65535 x 1", (65535, 1))):
        yield f"Orthanc 6: {name}", samples.written(_changed(Rows=sides[0], Columns=sides[1]))
    for name, entries, stored in (("short", 16, 255), ("empty", 0, 0), ("of 65536", 65536, 65535)):
        yield f"Orthanc 7: palette {name}", samples.written(_with_palette(entries, stored))
    yield "Orthanc 8: PAM", b"P7\nWIDTH 4294967295\nHEIGHT 4294967295\nDEPTH 4\nMAXVAL 65535\nENDHDR\n" + bytes(64)
    yield "Orthanc 8: 255 samples of 64 bits", samples.written(_changed(SamplesPerPixel=255, BitsAllocated=64))
    for name, count, first in (("short", 4096, 0), ("signed", 16, -32768), ("far", 16, 65535)):
        yield f"Orthanc 9: LUT {name}", samples.written(_with_lut("ModalityLUTSequence", count, first))
        yield f"Orthanc 9: VOI LUT {name}", samples.written(_with_lut("VOILUTSequence", count, first))


def _with_palette(entries: int, stored: int) -> Dataset:
    made = _changed(PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=0, Modality="OT")
    made.PixelData = np.full((32, 32), stored, np.uint16).tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [entries & 0xFFFF, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", b"\1\2" * 8)
    return made


def _with_lut(keyword: str, count: int, first: int) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [count if first >= 0 else 16, first, 16])
    item.add_new(0x00283006, "OW", b"\3\4" * 16)
    made = _changed(Modality="DX")
    setattr(made, keyword, Sequence([item]))
    return made


def _shapes() -> Iterator[tuple[str, bytes]]:
    yield "pixel data too short", samples.written(_changed(PixelData=b"\0\0"))
    yield "pixel data empty", samples.written(_changed(PixelData=b""))
    yield "no pixel data", samples.dicom()[: samples.dicom().index(PIXELS, 300)]
    yield "1e9 frames", samples.written(_changed(NumberOfFrames="1000000000"))
    yield "-1 frames", samples.written(_changed(NumberOfFrames="-1"))
    yield "0 bits", samples.written(_changed(BitsAllocated=0, BitsStored=0))
    yield "more bits stored than allocated", samples.written(_changed(BitsStored=64, HighBit=63))
    yield "high bit of 65535", samples.written(_changed(HighBit=65535))
    yield "1 bit", samples.written(_changed(BitsAllocated=1, BitsStored=1, HighBit=0))
    yield (
        "YBR_FULL_422 with odd sides",
        samples.written(
            _changed(PhotometricInterpretation="YBR_FULL_422", SamplesPerPixel=3, Rows=31, Columns=31, BitsAllocated=8)
        ),
    )
    yield "planar of 9", samples.written(_changed(PlanarConfiguration=9, SamplesPerPixel=3))
    yield "photometric of nonsense", samples.written(_changed(PhotometricInterpretation="\\\\\\"))
    yield "unknown transfer syntax", samples.dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    yield "only a preamble", bytes(128) + b"DICM"


def _nested() -> Iterator[tuple[str, bytes]]:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = struct.pack("<HH", 0x0008, 0x1115) + b"SQ\0\0\xff\xff\xff\xff"
    for depth in (100, 1000, 20_000, 100_000):
        yield f"sequences {depth} deep", _spliced(samples.dataset(), b"\x08\x00\x60\x00", (sequence + item) * depth)
    private = struct.pack("<HH", 0x0028, 0x3010) + b"SQ\0\0\xff\xff\xff\xff"
    yield "VOI LUT sequences 20000 deep", _spliced(samples.dataset(), PIXELS, (private + item) * 20_000)
    yield "a million items", _spliced(samples.dataset(), PIXELS, private + b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000)
    yield "a million elements", _spliced(samples.dataset(), PIXELS, _element(0x0029, 0x1001, b"LO", b"") * 1_000_000)


def _encapsulated() -> Iterator[tuple[str, bytes]]:
    noise = np.random.default_rng(2).bytes(4000)
    jpeg = samples.picture("JPEG", "L")
    frame = jpeg.index(b"\xff\xc0")
    grown = jpeg[: frame + 5] + b"\xff\xff\xff\xff" + jpeg[frame + 9 :]
    for name, syntax in (
        ("JPEG", JPEGBaseline8Bit),
        ("JPEG 2000", JPEG2000),
        ("JPEG-LS", JPEGLSLossless),
        ("RLE", RLELossless),
    ):
        wrap = partial(_fragments, syntax)
        yield f"{name}: noise", wrap([noise])
        yield f"{name}: nothing", wrap([b""])
        yield f"{name}: no fragment", wrap([])
        yield f"{name}: 4 GB fragment", wrap([noise], lie=0xFFFFFFFE)
        yield f"{name}: table of offsets past the end", wrap([noise], offsets=struct.pack("<I", 2**31))
        yield f"{name}: 100000 empty fragments", wrap([b""] * 100_000)
    yield "JPEG: 65535 x 65535 inside 32 x 32", _fragments(JPEGBaseline8Bit, [grown])
    size = (
        b"\xff\x51\0\x2f\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
        + bytes(8)
        + b"\0\0\0\1\0\0\0\1"
        + bytes(8)
        + b"\0\1\7\1\1"
    )
    yield "JPEG 2000: 4e18 tiles", _fragments(JPEG2000, [b"\xff\x4f" + size + noise])
    yield "RLE: segments past the end", _fragments(RLELossless, [struct.pack("<16I", 15, *[2**31] * 15)])
    yield (
        "RLE: a run without end",
        _fragments(RLELossless, [struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81" * 1_000_000]),
    )


def _fragments(syntax: str, fragments: list[bytes], *, lie: int | None = None, offsets: bytes = b"") -> bytes:
    made = _changed(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, Modality="OT")
    made.file_meta.TransferSyntaxUID = UID(syntax)
    del made.PixelData
    item = b"\xfe\xff\x00\xe0"
    table = item + struct.pack("<I", len(offsets)) + offsets
    lengths = (len(fragment) if lie is None else lie for fragment in fragments)
    items = (item + struct.pack("<I", length) + data for length, data in zip(lengths, fragments, strict=True))
    body = table + b"".join(items)
    return samples.written(made) + PIXELS + b"OB\0\0\xff\xff\xff\xff" + body + b"\xfe\xff\xdd\xe0\0\0\0\0"


def _numbers() -> Iterator[tuple[str, bytes]]:
    for keyword, values in (
        ("RescaleSlope", ("0", "1e308", "-1e308", "1e-308")),
        ("RescaleIntercept", ("1e308", "-1e308")),
        ("PixelSpacing", (["0", "0"], ["-1", "-1"], ["1e308", "1e-308"])),
        ("ImagePositionPatient", (["1e308"] * 3, ["0"])),
        ("ImageOrientationPatient", (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["1"])),
        ("InstanceNumber", ("2147483647", "-2147483648")),
    ):
        for value in values:
            yield f"{keyword} {value}"[:60], samples.written(_changed(**{keyword: value}))
    for centre, width in (("0", "0"), ("0", "-1"), ("1e308", "1e308"), ("0", "1e-308")):
        yield (
            f"window {centre} {width}",
            samples.written(_changed(WindowCenter=centre, WindowWidth=width, Modality="DX")),
        )
    for text in (b"NaN ", b"inf ", b"1e99", b"\xff\xff\xff\xff", b"-\0\0\0"):
        sound = samples.written(_changed(RescaleSlope="1.23"))
        yield f"slope {text!r}", sound.replace(b"1.23", text)


def _nifti() -> Iterator[tuple[str, bytes]]:
    for name, place, form, values in (
        ("32767 a side", 42, "<7h", (32767,) * 7),
        ("negative sides", 42, "<3h", (-1, -1, -1)),
        ("sides of 0", 42, "<3h", (0, 0, 0)),
        ("32767 dimensions", 40, "<h", (32767,)),
        ("unknown type", 70, "<h", (9999,)),
        ("complex numbers", 70, "<2h", (1792, 128)),
        ("colours", 70, "<2h", (128, 24)),
        ("voxels at -1", 108, "<f", (-1.0,)),
        ("voxels at 1e30", 108, "<f", (1e30,)),
        ("voxels at NaN", 108, "<f", (float("nan"),)),
        ("slope NaN", 112, "<2f", (float("nan"),) * 2),
        ("slope infinite", 112, "<2f", (float("inf"),) * 2),
        ("slope 1e38", 112, "<2f", (1e38, 1e38)),
        ("spacing 0", 76, "<8f", (0.0,) * 8),
        ("spacing NaN", 76, "<8f", (float("nan"),) * 8),
        ("affine of 0", 280, "<12f", (0.0,) * 12),
        ("affine of NaN", 280, "<12f", (float("nan"),) * 12),
        ("quaternion of 1e30", 252, "<2h6f", (1, 0, *[1e30] * 6)),
        ("header of 2**31-1", 0, "<i", (2**31 - 1,)),
    ):
        out = bytearray(samples.nifti())
        struct.pack_into(form, out, place, *values)
        yield name, bytes(out)
    sound = samples.nifti()
    yield "gzip bomb behind a small header", gzip.compress(sound + bytes(ZEROS), mtime=0)
    huge = bytearray(sound)
    struct.pack_into("<3h", huge, 42, 2000, 2000, 2000)
    yield "gzip bomb that the header asks for", gzip.compress(bytes(huge) + bytes(ZEROS), mtime=0)
    yield "extension of 2 GB", sound[:348] + b"\1\0\0\0" + struct.pack("<2i", 2**31 - 16, 4) + sound[352:]
    yield "gzip cut short", gzip.compress(sound, mtime=0)[:-20]


def _zip() -> Iterator[tuple[str, bytes]]:
    png = samples.picture("PNG")
    yield "bomb of one file", samples.zipped({"0.dcm": bytes(ZEROS)})
    yield "bomb of many files", _same_file_again(samples.zipped({"0.dcm": bytes(2**22)}), 900)
    yield "100000 entries", _many_entries(100_000)
    yield "archive in archive", samples.zipped({"a.zip": samples.zipped({"a.png": png})})
    yield "tar in archive", samples.zipped({"a.tar": samples.tarred({"a.png": png})})
    yield "paths that leave", samples.zipped({"../../etc/passwd": png, "/etc/shadow": png, "C:\\x": png})
    yield "empty", samples.zipped({})
    yield "nothing to see", samples.zipped({"a.txt": b"text", "b/": b""})
    sound = samples.zipped({"a.png": png})
    for size in (0, 1, 2**32 - 2):
        lied = sound.replace(struct.pack("<I", len(png)), struct.pack("<I", size))
        yield f"Orthanc 3: unpacked size said to be {size}", lied
    yield "encrypted", _flagged(sound, 1)
    yield "compressed by method 99", sound.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0")
    yield "link", _linked()
    yield "LZMA", _lzma()
    yield "end of directory only", sound[-22:]
    yield "directory past the end", sound[:-6] + b"\xff\xff\xff\x7f\0\0"
    yield "comment with a second end", sound[:-2] + b"\x16\0" + sound[-22:]


def _same_file_again(data: bytes, times: int) -> bytes:
    """A zip whose directory names one stretch of bytes many times (Fifield 2019)."""
    start = data.index(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    entry = data[start:end]
    return (
        data[:start]
        + entry * times
        + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, times, times, len(entry) * times, start, 0)
    )


def _many_entries(count: int) -> bytes:
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, len(local), 0)
    return local + entry * count + end


def _flagged(data: bytes, flag: int) -> bytes:
    place = data.index(b"PK\1\2") + 8
    return data[:6] + struct.pack("<H", flag) + data[8:place] + struct.pack("<H", flag) + data[place + 2 :]


def _linked() -> bytes:
    out = BytesIO()
    with ZipFile(out, "w") as archive:
        info = ZipInfo("a.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def _lzma() -> bytes:
    out = BytesIO()
    with ZipFile(out, "w", ZIP_LZMA) as archive:
        archive.writestr("a.png", samples.picture("PNG"))
    return out.getvalue()


def _tar() -> Iterator[tuple[str, bytes]]:
    png, end = samples.picture("PNG"), b"\0" * 1024
    for name, flag in (("link", b"2"), ("hard link", b"1"), ("device", b"3"), ("block device", b"4"), ("pipe", b"6")):
        yield name, samples.tar_entry("a.png", b"", flag, link="/etc/passwd") + samples.tar_entry("b.png", png) + end
    yield "sparse file", samples.tar_entry("a.png", png, b"S") + end
    yield "paths that leave", samples.tarred({"../../../etc/passwd": png, "/etc/shadow": png})
    yield "entry of 8 GB", samples.tar_entry("a.png", png, size=8**11 - 1) + end
    yield "extended header of 8 GB", samples.tar_entry("a", b"", b"x", size=8**11 - 1) + end
    yield "long name of 64 MB", samples.tar_entry("a", bytes(ZEROS), b"L") + samples.tar_entry("b.png", png) + end
    yield "20000 entries", samples.tar_entry("a") * 20_000 + end
    yield "archive in archive", samples.tarred({"a.tar": samples.tarred({"a.png": png})})
    yield "bomb", gzip.compress(samples.tar_entry("a.dcm", bytes(ZEROS * 2)) + end, mtime=0)
    yield "bomb of empty entries", gzip.compress(samples.tar_entry("a") * 200_000 + end, mtime=0)
    yield (
        "gzip members without end",
        gzip.compress(samples.tarred({"a.png": png}), mtime=0) + gzip.compress(b"", mtime=0) * 50_000,
    )
    yield "empty", end


def _pdf() -> Iterator[tuple[str, bytes]]:
    def one(page: bytes, *others: bytes) -> bytes:
        """One page with more objects from number 4 on."""
        return samples.pdf_of([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 1/Kids[3 0 R]>>", page, *others])

    def shown(content: bytes, resources: bytes = b"", *others: bytes) -> bytes:
        head = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<<%s>>>>" % resources
        return one(head, samples.stream(content), *others)

    page = b"<</Type/Page/Parent 2 0 R/MediaBox[%s]>>"
    sound = samples.pdf()
    yield "a mark and nothing", b"%PDF-1.7"
    yield "no page", samples.pdf_of([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 0/Kids[]>>"])
    yield "17 pages", samples.pdf(pages=17)
    yield "4e9 pages declared", one(page % b"0 0 595 842").replace(b"/Count 1", b"/Count 4000000000")
    yield (
        "1e6 pages that are one",
        samples.pdf_of(
            [
                b"<</Type/Catalog/Pages 2 0 R>>",
                b"<</Type/Pages/Count 1000000/Kids[%s]>>" % (b"3 0 R " * 1_000_000),
                page % b"0 0 9 9",
            ]
        ),
    )
    yield (
        "pages that hold themselves",
        samples.pdf_of([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 9/Kids[2 0 R 2 0 R]>>"]),
    )
    for name, sides in (
        ("no sides", b"0 0 0 0"),
        ("sides of 1e30", b"0 0 1e30 1e30"),
        ("sides of 2**31", b"-2147483648 -2147483648 2147483647 2147483647"),
        ("a strip", b"0 0 100000 1"),
        ("sides that are no numbers", b"0 0 nan inf"),
    ):
        yield f"a page with {name}", one(page % sides)
    yield (
        "content that inflates",
        one(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R>>",
            samples.stream(zlib.compress(b"0 0 m 595 842 l S " * 2_000_000), b"/Filter/FlateDecode"),
        ),
    )
    bomb = zlib.compress(zlib.compress(bytes(4 * ZEROS)))
    yield (
        "a bomb in a bomb",
        one(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R>>",
            samples.stream(bomb, b"/Filter[/FlateDecode/FlateDecode]"),
        ),
    )
    image = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 8/ColorSpace/DeviceGray"
    for side in (60_000, 2**31 - 1):
        yield (
            f"a picture of {side} a side",
            shown(b"595 0 0 842 0 0 cm /I Do", b"/XObject<</I 5 0 R>>", samples.stream(b"", image % (side, side))),
        )
    big = zlib.compress(bytes(9_000 * 9_000))
    yield (
        "a picture of 81 megapixels",
        shown(
            b"595 0 0 842 0 0 cm /I Do",
            b"/XObject<</I 5 0 R>>",
            samples.stream(big, image % (9_000, 9_000) + b"/Filter/FlateDecode"),
        ),
    )
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 595 842]/Resources<</XObject<</F %d 0 R/G %d 0 R>>>>"
    yield "a form that holds itself", shown(b"/F Do", b"/XObject<</F 5 0 R>>", samples.stream(b"/F Do", form % (5, 5)))
    doubled = [samples.stream(b"/F Do /F Do", form % (number + 1, number + 1)) for number in range(5, 45)]
    yield (
        "forms that double 40 times",
        shown(b"/F Do", b"/XObject<</F 5 0 R>>", *doubled, samples.stream(b"0 0 9 9 re f")),
    )
    yield "brackets in brackets", shown(b"[" * 1_000_000)
    yield "states in states", shown(b"q " * 1_000_000)
    yield "dictionaries in dictionaries", one(page % b"0 0 9 9" + b"<</A" * 100_000)
    yield "2000 long lines", shown(b"1 w " + b"0 0 m 595 842 l 300 9 l S " * 2000)
    yield "dashes without end", shown(b"[0.0001] 0 d 1 w 0 0 m 595 842 l S " * 200)
    calculator = (
        b"<</FunctionType 4/Domain[0 1]/Range[0 1 0 1 0 1]%s" % samples.stream(b"{" + b"dup " * 90_000 + b"}")[2:]
    )
    yield (
        "a shading of a long program",
        shown(
            b"/S sh",
            b"/Shading<</S<</ShadingType 2/ColorSpace/DeviceRGB/Coords[0 0 595 842]/Function 5 0 R>>>>",
            calculator,
        ),
    )
    script = b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(while(1){})>>>>"
    yield (
        "a script that opens it",
        samples.pdf_of([script, b"<</Type/Pages/Count 1/Kids[3 0 R]>>", page % b"0 0 595 842"]),
    )
    launch = b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/Launch/F(/bin/sh)>>>>"
    yield (
        "a program to be launched",
        samples.pdf_of([launch, b"<</Type/Pages/Count 1/Kids[3 0 R]>>", page % b"0 0 595 842"]),
    )
    outside = b"/Type/XObject/Subtype/Image/Width 9/Height 9/BitsPerComponent 8/ColorSpace/DeviceGray/F(/etc/passwd)"
    yield "a picture from another file", shown(b"/I Do", b"/XObject<</I 5 0 R>>", samples.stream(b"", outside))
    locked = b"<</Filter/Standard/V 2/R 3/Length 128/P -4/O<%s>/U<%s>>>" % (b"00" * 32, b"11" * 32)
    yield (
        "locked",
        samples.pdf_of(
            [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 1/Kids[3 0 R]>>", page % b"0 0 595 842", locked],
            b"/Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]",
        ),
    )
    yield "a table that leads to itself", sound.replace(b"trailer<<", b"trailer<</Prev %d" % sound.index(b"xref\n"))
    yield "no table", sound[: sound.rindex(b"xref\n0")] + b"trailer<</Root 1 0 R>>"
    yield "cut short", sound[: len(sound) // 2]
    yield "1e6 objects of nothing", b"%PDF-1.7\n" + b"".join(b"%d 0 obj null endobj\n" % n for n in range(1, 1_000_001))
    yield "a mark after a kilobyte", bytes(2000) + sound


def _dicomdir() -> Iterator[tuple[str, dict[str, bytes]]]:
    image = samples.dicom()
    good = ["IM1"]
    yield "sound", {"DICOMDIR": _directory([good]), "IM1": image}
    yield "offsets that loop", {"DICOMDIR": _directory([good] * 3, loop=True), "IM1": image}
    yield "the same file 100000 times", {"DICOMDIR": _directory([good] * 100_000), "IM1": image}
    yield "itself", {"DICOMDIR": _directory([["DICOMDIR"]])}
    yield "a way out", {"DICOMDIR": _directory([["..", "..", "etc", "passwd"]]), "IM1": image}
    yield "a way from the root", {"DICOMDIR": _directory([["/etc/passwd"]]), "IM1": image}
    yield "a file that is not there", {"DICOMDIR": _directory([["IM2"]]), "IM1": image}
    yield "a link that leads out", {"DICOMDIR": _directory([["LINK"]]), "LINK -> /etc/passwd": b""}
    yield "nothing", {"DICOMDIR": _directory([]), "IM1": image}
    yield "cut short", {"DICOMDIR": _directory([good])[:400], "IM1": image}


def _directory(references: list[list[str]], *, loop: bool = False) -> bytes:
    """A DICOMDIR with an image record for each reference, written by hand because a sound writer refuses such ones."""
    items = []
    for reference in references:
        name = "\\".join(reference).encode()
        body = (
            _element(0x0004, 0x1400, b"UL", struct.pack("<I", 400 if loop else 0))
            + _element(0x0004, 0x1420, b"UL", struct.pack("<I", 400 if loop else 0))
            + _element(0x0004, 0x1430, b"CS", b"IMAGE ")
            + _element(0x0004, 0x1500, b"CS", name + b" " * (len(name) % 2))
        )
        items.append(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(body)) + body)
    records = b"".join(items)
    meta = (
        _element(0x0002, 0x0002, b"UI", b"1.2.840.10008.1.3.10")
        + _element(0x0002, 0x0003, b"UI", b"1.2.3\0")
        + _element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    )
    head = bytes(128) + b"DICM" + _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))) + meta
    return head + _element(0x0004, 0x1130, b"CS", b"SET ") + _element(0x0004, 0x1220, b"SQ", records)


def _other() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "a byte", b"\0"
    yield "zeros", bytes(2**20)
    yield "noise", np.random.default_rng(4).bytes(2**20)
    yield "a mark and nothing", b"\x89PNG\r\n\x1a\n"
    yield "DICOM and PNG at once", samples.picture("PNG")[:128].ljust(128, b"\0") + samples.dicom()[128:]
    yield "a pickle", b"cos\nsystem\n(S'touch x'\ntR."
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    yield (
        "SVG with an entity",
        b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>",
    )
    yield "gzip of gzip", gzip.compress(gzip.compress(bytes(2**20), mtime=0), mtime=0)
    yield "gzip bomb", gzip.compress(bytes(ZEROS * 2), mtime=0)
