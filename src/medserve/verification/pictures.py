"""What both sides are shown: pictures that ship with the package, or a folder of one's own, and a drawn CT slice.

The drawn slice is known voxel by voxel, so that what becomes of it on its way to the model can be computed anew.
Pictures are known by their content alone: no name of a file is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medserve.errors import InvalidRequest
from medserve.images import Image, Source, Study
from medserve.imaging import intake, raster
from medserve.imaging.windows import three_windows
from medserve.settings import DEMO, Limits
from medserve.threads import in_thread

DRAWINGS = DEMO / "drawings"
PHOTOGRAPH = DEMO.parent / "examples" / "dermoscopy.jpg"
SLICES = 6
SIDE = 160
"""Pixels of a drawn slice."""
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
INTERCEPT = -1024
AIR, LUNG, FAT, MUSCLE, ORGAN, STONE, BONE = -1000, -780, -95, 48, 32, 700, 320
"""Hounsfield units of what is drawn: all three windows of the model have something to tell apart."""


@dataclass(frozen=True)
class Shown:
    """A picture that is asked about; of a CT slice also its `values`, int16 or float32 [height, width] in HU."""

    image: Image
    values: NDArray[np.int16] | NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Gathered:
    """The pictures of a verification, and how many files were none."""

    pictures: tuple[Shown, ...]
    refused: int = 0


async def bundled(count: int) -> Gathered:
    """The first `count` of the package's own: drawings, wide parts of them, CT slices and a photograph, in turn."""
    drawings = [await raster.read(await in_thread(path.read_bytes), Limits()) for path in await in_thread(_drawings)]
    photograph = await raster.read(await in_thread(PHOTOGRAPH.read_bytes), Limits())
    kinds = (
        [Shown(image) for image in drawings],
        await slices(Limits()),
        [Shown(photograph), Shown(_part(photograph, 2)), *(Shown(_part(image, 3)) for image in drawings)],
    )
    mixed = [one for one in chain.from_iterable(zip_longest(*kinds)) if one is not None]
    return Gathered(tuple(mixed[:count]))


def _drawings() -> list[Path]:
    return sorted(DRAWINGS.glob("*.png"))


def _part(image: Image, times: int) -> Image:
    """The middle of a picture, `times` as wide as high: it shows whether proportions are kept."""
    height = image.width // times
    top = (image.height - height) // 2
    pixels = np.ascontiguousarray(image.pixels[top : top + height])
    return Image(pixels, Source("PNG", "RGB", image.width, height))


async def slices(limits: Limits) -> list[Shown]:
    """Drawn CT slices, as they come in through the same door as a patient's."""
    files = [_dicom(values, number) for number, values in enumerate(drawn())]
    return _seen(await intake.read(files, limits))


async def given(folder: Path, count: int, limits: Limits) -> Gathered:
    """The first `count` pictures of a folder, each file a study; what cannot be read is counted and left out.

    A picture that lies there twice is shown once: asking again shows nothing new, and would count as if it did.
    Raises InvalidRequest when the folder holds none at all.
    """
    found: dict[Image, Shown] = {}
    refused = 0
    for file in await in_thread(_files, folder):
        if len(found) >= count:
            break
        try:
            found |= {one.image: one for one in _seen(await intake.read([file], limits))}
        except InvalidRequest:
            refused += 1
    if not found:
        raise InvalidRequest(
            f"none of the {refused} files in the folder is a picture that can be read; give others with --pictures",
            param="pictures",
        )
    return Gathered(tuple(found.values())[:count], refused)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidRequest("--pictures names no folder; give one that holds pictures", param="pictures")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _seen(study: Study) -> list[Shown]:
    """The pictures of a study; of slices that were windowed as they lie, with what was measured."""
    volume = study.volume
    if volume is None or volume.unit != "HU":
        return [Shown(image) for image in study.images]
    seen = []
    for image, number in zip(study.images, study.slices, strict=True):
        values = volume.values[number]
        known = values.shape == image.pixels.shape[:2] and np.array_equal(three_windows(values), image.pixels)
        seen.append(Shown(image, values if known else None))
    return seen


# --- the drawn slice ------------------------------------------------------------------------------------------------


def drawn() -> Iterator[NDArray[np.int16]]:
    """Slices through a drawn body in HU, int16 [SIDE, SIDE]: no two alike, and no direction like another."""
    for number in range(SLICES):
        values = np.full((SIDE, SIDE), AIR, np.int16)
        _fill(values, (84, 80), (62, 72), FAT)
        _fill(values, (84, 80), (55, 64), MUSCLE)
        _fill(values, (66, 48), (24 - number, 20), LUNG if number < SLICES // 2 else ORGAN)
        _fill(values, (70, 112), (20, 24 + number), ORGAN + 8)
        _fill(values, (124, 80), (12, 11), BONE)
        _fill(values, (98, 112 - 4 * number), (5 + number, 4), STONE)
        values[20:30, 20 : 30 + 10 * number] = np.linspace(-200, 200, 10 + 10 * number).astype(np.int16)
        yield values


def _fill(values: NDArray[np.int16], middle: tuple[float, float], radii: tuple[float, float], units: int) -> None:
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    inside = ((rows - middle[0]) / radii[0]) ** 2 + ((columns - middle[1]) / radii[1]) ** 2 <= 1
    values[inside] = units


def _dicom(values: NDArray[np.int16], number: int) -> bytes:
    """A slice as a scanner stores it: unsigned, to be brought to HU by slope and intercept."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CT_IMAGE_STORAGE, generate_uid(entropy_srcs=["medserve", str(number)])
    made.StudyInstanceUID = generate_uid(entropy_srcs=["medserve", "study"])
    made.SeriesInstanceUID = generate_uid(entropy_srcs=["medserve", "series"])
    made.Modality, made.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.InstanceNumber, made.AcquisitionNumber = number + 1, 1
    made.ImagePositionPatient = [-80.0, -80.0, 5.0 * number]
    made.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    made.PixelSpacing = [1.0, 1.0]
    made.Rows, made.Columns = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, INTERCEPT, "HU"
    made.PixelData = (values.astype(np.int32) - INTERCEPT).astype(np.uint16).tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    out = BytesIO()
    made.save_as(out, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()


# --- the chart for pixels --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Charted:
    """A file whose pixels are compared: what kind it is, its bytes, and its colours computed without medserve.

    `colours`, uint8 [height, width, 3], are None where any decoder of such a file must give the same ones.
    """

    kind: str
    file: bytes
    colours: NDArray[np.uint8] | None = None


def chart() -> Sequence[Charted]:
    """One file of each kind that goes another way to the model. Blocks for some milliseconds."""
    grey, deep, scan = _ramp(255).astype(np.uint8), _ramp(4095).astype(np.uint16), list(drawn())[1]
    return (
        Charted("photograph", PHOTOGRAPH.read_bytes()),
        Charted("wide", _png(_fan(900, 210))),
        Charted("tall", _png(_fan(130, 700))),
        Charted("grey", _png(grey)),
        # Twelve bits in a file of sixteen, as exports of scanners are: the brightest sample says so.
        Charted("grey, 16 bits", _png(deep), _three(np.rint(deep.astype(np.float64) * 255 / 4095))),
        Charted("CT slice", _dicom(scan, 1), _notebook(scan)),
    )


def _fan(width: int, height: int) -> NDArray[np.uint8]:
    """Colours that differ in every direction and channel, fine lines among them: a resize has something to average."""
    down, across = np.mgrid[:height, :width].astype(np.float64)
    red = 255 * across / width
    green = 127.5 + 127.5 * np.sin(across * down / 700)
    blue = np.where((across // 7 + down // 5) % 2, 230, 20)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def _ramp(most: int) -> NDArray[np.float64]:
    down, across = np.mgrid[:300, :340].astype(np.float64)
    return np.asarray(most * (0.5 * across / 339 + 0.5 * down / 299))


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    out = BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _three(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def _notebook(hounsfield: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The three windows as the notebook states them, written here once more: `imaging.windows` is what is checked."""
    channels = []
    for low, high in ((-1024, 1024), (-135, 215), (0, 80)):
        clipped = np.clip(hounsfield.astype(np.float32), low, high)
        channels.append(np.round((clipped - low) / (high - low) * 255.0))
    return np.stack(channels, -1).astype(np.uint8)
