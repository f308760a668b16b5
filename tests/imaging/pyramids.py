"""Slides drawn by the tests: TIFF pyramids and DICOM slides of known pixels, and the same with untrue fields."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

Pixels = NDArray[np.uint8]

PINK = (200, 90, 160)
GLASS = (243, 243, 244)
APERIO = "Aperio Image Library v11.2.1 \r\n46000x32914|AppMag = {power}|MPP = {mpp}"


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF: its pixels in tiles, or in one strip if `tile` is 0; `lies` replace tags' values."""

    pixels: Pixels
    tile: int = 256
    description: str = ""
    lies: dict[int, int] = field(default_factory=dict)


def write(path: Path, pages: list[Page], next_of_last: int = 0) -> Path:
    """A little-endian classic TIFF, uncompressed RGB; `next_of_last` is where its last directory says another lies."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in pages:
        tags = _tags(page, out)
        out += b"\0" * (len(out) % 2)
        struct.pack_into("<I", out, link, len(out))
        link = _directory(out, tags)
    struct.pack_into("<I", out, link, next_of_last)
    path.write_bytes(out)
    return path


def aperio(path: Path, levels: list[Pixels], mpp: float | str = 0.5, power: float | str = 20) -> Path:
    """An SVS: the first level, a thumbnail, and the other levels."""
    text = APERIO.format(mpp=mpp, power=power)
    pages = [Page(levels[0], description=text), Page(levels[-1][::8, ::8], tile=0, description=text)]
    return write(path, pages + [Page(level, description=text) for level in levels[1:]])


def dicom(
    path: Path, pixels: Pixels, mpp: float, series: str, kind: str = "VOLUME", lies: dict[str, int] | None = None
) -> Path:
    """One uncompressed instance of a DICOM slide in tiles of 256 x 256; `lies` replace elements by keyword."""
    frames = _tiles(pixels, 256)
    slide = Dataset()
    slide.file_meta = FileMetaDataset()
    slide.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slide.SOPClassUID = slide.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    slide.SOPInstanceUID = slide.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    slide.StudyInstanceUID = slide.FrameOfReferenceUID = slide.SeriesInstanceUID = series
    slide.PatientName, slide.PatientID, slide.Modality = "Doe^Jane", "4711", "SM"
    slide.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    slide.Rows = slide.Columns = 256
    slide.NumberOfFrames = len(frames)
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = pixels.shape[:2]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "RGB", 0
    slide.BitsAllocated = slide.BitsStored = 8
    slide.HighBit, slide.PixelRepresentation = 7, 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    slide.PixelData = b"".join(frames)
    for name, value in (lies or {}).items():
        setattr(slide, name, value)
    slide.save_as(path, enforce_file_format=True)
    return path


def section(width: int, height: int, seed: int = 0) -> Pixels:
    """Noisy pink tissue all over, so that no two patches are alike."""
    noise = np.random.default_rng(seed).integers(-40, 40, (height, width, 3))
    return (np.array(PINK) + noise).astype(np.uint8)


def glass(width: int, height: int) -> Pixels:
    """An empty slide."""
    return np.full((height, width, 3), GLASS, np.uint8)


def halved(pixels: Pixels, times: int) -> Pixels:
    """The next level of a pyramid: the mean of each `times` x `times` pixels, the rest left away."""
    height, width = (side // times * times for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // times, times, width // times, times, 3)
    small: Pixels = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return small


def _tags(page: Page, out: bytearray) -> dict[int, tuple[int, list[int] | bytes]]:
    height, width = page.pixels.shape[:2]
    tags: dict[int, tuple[int, list[int] | bytes]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8, 8, 8]),
        259: (3, [1]),
        262: (3, [2]),
        277: (3, [3]),
        284: (3, [1]),
    }
    if page.description:
        tags[270] = (2, page.description.encode() + b"\0")
    if page.tile:
        pieces = _tiles(page.pixels, page.tile)
        tags |= {322: (4, [page.tile]), 323: (4, [page.tile])}
    else:
        pieces = [page.pixels.tobytes()]
        tags[278] = (4, [height])
    offsets = []
    for piece in pieces:
        offsets.append(len(out))
        out += piece
    where, long = (324, 325) if page.tile else (273, 279)
    tags |= {where: (4, offsets), long: (4, [len(piece) for piece in pieces])}
    return tags | {tag: (4, [value]) for tag, value in page.lies.items()}


def _tiles(pixels: Pixels, tile: int) -> list[bytes]:
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile].tobytes()
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def _directory(out: bytearray, tags: dict[int, tuple[int, list[int] | bytes]]) -> int:
    """Append a directory and what it points at; returns where the address of the next one belongs."""
    body = len(out) + 2 + 12 * len(tags) + 4
    entries, after = struct.pack("<H", len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = (
            values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        )
        entries += struct.pack("<HHI", tag, kind, len(values))
        if len(raw) <= 4:
            entries += raw.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", body + len(after))
            after += raw + b"\0" * (len(raw) % 2)
    out += entries + b"\0\0\0\0" + after
    return body - 4
