"""Sound files of every format, small and the same on every machine: what hostile ones are made from."""

import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import PIL.Image
import pydicom.data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

LARGEST = 150_000
"""Bytes of pydicom's test files that are used; larger ones cost time and hold nothing else to attack."""


def drawing(width: int = 96, height: int = 80, channels: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture with edges, slopes and a little noise, so that every coder has something to do."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(7).integers(0, 20, (height, width, channels))
    shape = ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2) * 90
    return np.asarray((rows + columns)[..., None] // 2 + shape[..., None] + noise, np.uint8)


def picture(format_: str, mode: str = "RGB", **options: object) -> bytes:
    """The drawing as a file, written by Pillow."""
    out = BytesIO()
    drawn = PIL.Image.fromarray(drawing())
    (drawn.quantize(64) if mode == "P" else drawn.convert(mode)).save(out, format_, **options)
    return out.getvalue()


def tiff16() -> bytes:
    """A grey TIFF of 16 bits."""
    out = BytesIO()
    PIL.Image.fromarray(drawing(channels=1)[..., 0].astype(np.uint16) * 200).save(out, "TIFF")
    return out.getvalue()


def animation(format_: str) -> bytes:
    """Several frames in one file."""
    frames = [PIL.Image.fromarray(np.roll(drawing(), 8 * step, 1)) for step in range(4)]
    out = BytesIO()
    frames[0].save(out, format_, save_all=True, append_images=frames[1:])
    return out.getvalue()


def slide(levels: int = 2, side: int = 1024, tile: int = 256) -> bytes:
    """A small tiled pyramid with an Aperio description: JPEG tiles, two levels, a disc of tissue on glass."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for level in range(levels):
        size = side >> 2 * level
        tiles = [_tile(size, tile, row, column) for row in range(0, size, tile) for column in range(0, size, tile)]
        link = _directory(out, link, size, tile, tiles)
    return bytes(out)


def _tile(size: int, tile: int, row: int, column: int) -> bytes:
    rows, columns = np.mgrid[row : row + tile, column : column + tile]
    inside = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2
    noise = np.random.default_rng(row * size + column).integers(0, 30, (tile, tile, 1))
    pixels = np.where(inside[..., None], np.array([170, 80, 150]), np.array([245, 244, 246])) - noise // 3
    out = BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "JPEG", quality=80)
    return out.getvalue()


def _directory(out: bytearray, link: int, size: int, tile: int, tiles: list[bytes]) -> int:
    """Append a level, let what points to the next directory at `link` point to it, and say where its own link is."""
    offsets = []
    for data in tiles:
        offsets.append(len(out))
        out += data + b"\0" * (len(data) % 2)
    description = f"Aperio Image Library\r\n{size}x{size}|AppMag = 20|MPP = 0.5\0".encode()
    description += b"\0" * (len(description) % 2)
    places = [len(out)]
    out += description
    for values in (offsets, [len(data) for data in tiles]):
        places.append(len(out))
        out += struct.pack(f"<{len(tiles)}I", *values)
    bits = len(out)
    out += struct.pack("<3H", 8, 8, 8) + b"\0\0"
    single = len(tiles) == 1
    entries = [
        (254, 4, 1, 0), (256, 4, 1, size), (257, 4, 1, size), (258, 3, 3, bits), (259, 3, 1, 7), (262, 3, 1, 6),
        (270, 2, len(description), places[0]), (277, 3, 1, 3), (322, 3, 1, tile), (323, 3, 1, tile),
        (324, 4, len(tiles), offsets[0] if single else places[1]),
        (325, 4, len(tiles), len(tiles[0]) if single else places[2]),
    ]  # fmt: skip
    start = len(out)
    struct.pack_into("<I", out, link, start)
    out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    out += b"\0\0\0\0"
    return len(out) - 4


def dataset(rows: int = 32, columns: int = 32) -> Dataset:
    """A CT slice as pydicom's data set, with water in the middle."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID("1.2.3.4")
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = "1.2.3", "1.2.3.1", "CT"
    made.PatientName, made.PatientID = "PLANTED^NAME", "PLANTED-ID"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.Rows, made.Columns, made.SamplesPerPixel = rows, columns, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.RescaleSlope, made.RescaleIntercept = "1", "-1024"
    made.PixelSpacing, made.ImageOrientationPatient = ["0.7", "0.7"], ["1", "0", "0", "0", "1", "0"]
    made.ImagePositionPatient, made.InstanceNumber = ["0", "0", "0"], "1"
    made.PixelData = np.full((rows, columns), 1024, np.int16).tobytes()
    return made


def written(made: Dataset) -> bytes:
    """A data set as the bytes of a file."""
    out = BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


def dicom() -> bytes:
    return written(dataset())


def nifti(shape: tuple[int, ...] = (16, 14, 6)) -> bytes:
    """A NIfTI-1 volume of 16-bit values with a plain affine."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 2, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[123] = 2
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *[2.0 if column == row else 0.0 for column in range(3)], 0.0)
    header[344:348] = b"n+1\0"
    values = np.random.default_rng(3).integers(-1000, 1500, shape).astype("<i2")
    return bytes(header) + values.tobytes(order="F")


def zipped(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with ZipFile(out, "w", ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_entry(name: str, data: bytes = b"", flag: bytes = b"0", *, size: int | None = None, link: str = "") -> bytes:
    """One entry of a tar with a true checksum, whatever else it claims."""
    header = bytearray(512)
    header[0 : len(name)] = name.encode()
    header[100:136] = b"0000644\0000000000\0000000000\0" + f"{len(data) if size is None else size:011o}\0".encode()
    header[136:148] = b"00000000000\0"
    header[156:157], header[157 : 157 + len(link)] = flag, link.encode()
    header[257:265] = b"ustar\00000"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data + b"\0" * (-len(data) % 512)


def tarred(files: dict[str, bytes]) -> bytes:
    return b"".join(tar_entry(name, data) for name, data in files.items()) + b"\0" * 1024


def pdf(inside: bytes = b"", *, form: bool = False, pages: int = 1) -> bytes:
    """A document with a table of results on every page, a picture where one is given, and a filled field."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    if form:
        objects[0] = b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]/DA(/F 12 Tf)/DR<</Font<</F 3 0 R>>>>>>>>"
        objects.append(
            b"<</Type/Annot/Subtype/Widget/FT/Tx/T(value)/V(13.5)/Rect[200 500 300 520]/DA(/F 12 Tf)/F 4/P 5 0 R>>"
        )
    kids = []
    shown = stream(
        b"BT /F 12 Tf 72 700 Td (Haemoglobin 13.5 g/dL  PLANTED^NAME) Tj ET" + b" q 90 0 0 80 72 500 cm /I Do Q"
    )
    for _page in range(pages):
        number = len(objects) + 1
        kids.append(b"%d 0 R" % number)
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents %d 0 R" % (number + 1)
        page += b"/Resources<</Font<</F 3 0 R>>" + (b"/XObject<</I %d 0 R>>" % (number + 2) if inside else b"") + b">>"
        objects += [page + (b"/Annots[4 0 R]" if form else b"") + b">>", shown]
        if inside:
            head = b"/Type/XObject/Subtype/Image/Width 96/Height 80/BitsPerComponent 8/ColorSpace/DeviceRGB"
            objects.append(stream(inside, head + b"/Filter/DCTDecode"))
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (pages, b" ".join(kids))
    return pdf_of(objects)


def stream(data: bytes, head: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n" % (head, len(data)) + data + b"\nendstream"


def pdf_of(objects: Sequence[bytes], trailer: bytes = b"/Root 1 0 R") -> bytes:
    """Objects, numbered from 1, with a sound table of where they lie."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + b"trailer<</Size %d%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start))


def _pydicom_files() -> Iterator[tuple[str, bytes]]:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted(folder.glob("*.dcm")):
        if path.stat().st_size <= LARGEST:
            yield path.stem, path.read_bytes()


_MADE: dict[str, dict[str, Callable[[], bytes]]] = {
    "jpeg": {
        "rgb": lambda: picture("JPEG"),
        "grey": lambda: picture("JPEG", "L"),
        "progressive": lambda: picture("JPEG", progressive=True),
        "cmyk": lambda: picture("JPEG", "CMYK"),
    },
    "png": {
        "rgb": lambda: picture("PNG"),
        "palette": lambda: picture("PNG", "P"),
        "alpha": lambda: picture("PNG", "RGBA"),
        "deep": lambda: picture("PNG", "I;16"),
        "animated": lambda: animation("PNG"),
    },
    "tiff": {
        "raw": lambda: picture("TIFF"),
        "lzw": lambda: picture("TIFF", compression="tiff_lzw"),
        "deflate": lambda: picture("TIFF", compression="tiff_adobe_deflate"),
        "jpeg": lambda: picture("TIFF", compression="jpeg"),
        "fax": lambda: picture("TIFF", "1", compression="group4"),
        "deep": tiff16,
        "frames": lambda: animation("TIFF"),
    },
    "webp": {
        "lossy": lambda: picture("WEBP"),
        "lossless": lambda: picture("WEBP", lossless=True),
        "animated": lambda: animation("WEBP"),
    },
    "bmp": {"rgb": lambda: picture("BMP"), "palette": lambda: picture("BMP", "P"), "bits": lambda: picture("BMP", "1")},
    "gif": {"still": lambda: picture("GIF", "P"), "animated": lambda: animation("GIF")},
    "nifti": {
        "plain": nifti,
        "gzipped": lambda: gzip.compress(nifti(), mtime=0),
        "four": lambda: nifti((8, 8, 4, 3)),
    },
    "slide": {"aperio": slide},
    "pdf": {"text": pdf, "picture": lambda: pdf(picture("JPEG")), "form": lambda: pdf(form=True)},
    "zip": {
        "pictures": lambda: zipped({f"{place}.png": picture("PNG") for place in range(3)}),
        "dicom": lambda: zipped({"DICOM/IM1": dicom(), "README.txt": b"see DICOM"}),
    },
    "tar": {
        "pictures": lambda: tarred({f"{place}.jpg": picture("JPEG") for place in range(3)}),
        "gzipped": lambda: gzip.compress(tarred({"a/b.dcm": dicom()}), mtime=0),
    },
}


@cache
def samples() -> dict[str, dict[str, bytes]]:
    """Sound files by format and kind."""
    made = {format_: {kind: make() for kind, make in kinds.items()} for format_, kinds in _MADE.items()}
    return {**made, "dicom": {"made": dicom(), **dict(_pydicom_files())}}
