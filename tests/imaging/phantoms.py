"""Drawn patients of known size and density as DICOM and NIfTI: what a measurement must find is known exactly.

Nothing here uses medserve: pydicom and nibabel write the files, so that a mistake in the package cannot hide.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

AIR, FAT, WATER, KIDNEY, STONE = -1000, -100, 0, 30, 900
"""Hounsfield units of what is drawn."""

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
SCREENSHOT = "1.2.840.10008.5.1.4.1.1.7"

SECRETS = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19640812",
    "InstitutionName": "Klinikum Musterstadt",
    "ReferringPhysicianName": "Quacksalber^Q",
    "AccessionNumber": "ACC99887766",
    "StudyDate": "20190203",
    "StudyDescription": "Frau Mustermann privat",
}
"""Identity that is planted in every file and must be found nowhere behind the imaging layer."""

SHARED = Path(__file__).parents[3] / "shared" / "data"

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""ImageOrientationPatient of the usual axial slice: columns towards the left, rows towards the back."""


def shared(pattern: str) -> list[bytes]:
    """Real files from beside the repository; the test is skipped where they are not."""
    found = sorted(SHARED.glob(pattern))
    if not found:
        pytest.skip(f"../shared/data/{pattern} is not here: real scans that may not be shipped")
    return [path.read_bytes() for path in found]


def abdomen(slices: int = 12, size: int = 48) -> NDArray[np.int16]:
    """Air, a body of fat, a pool of water, a kidney and in it a stone of 4 x 6 x 8 voxels: int16 HU.

    The water fills rows 10..19 and columns 10..19 of every slice, the kidney rows 24..39 and columns 24..43, the stone
    slices 4..7, rows 28..33 and columns 30..37. No two directions look alike: a flip or a turn changes the picture.
    """
    values = np.full((slices, size, size), AIR, np.int16)
    values[:, 4 : size - 2, 3 : size - 3] = FAT
    values[:, 10:20, 10:20] = WATER
    values[:, 24:40, 24:44] = KIDNEY
    values[4:8, 28:34, 30:38] = STONE
    values[:, 5, 5] = np.arange(slices) * 10  # a mark that tells the slices apart
    return values


def dicom(
    pixels: NDArray[Any],
    *,
    sop_class: str = CT,
    modality: str = "CT",
    syntax: UID = ExplicitVRLittleEndian,
    without: Sequence[str] = (),
    **tags: Any,
) -> bytes:
    """A DICOM file of one frame, or of several where `tags` has NumberOfFrames; `without` takes elements out again."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4.5", "1.2.3.4.5.6"
    dataset.Modality = modality
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    several = "NumberOfFrames" in tags
    shape = pixels.shape[1:] if several else pixels.shape
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if len(shape) == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    for keyword in without:
        delattr(dataset, keyword)
    return saved(dataset, syntax)


def saved(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a DICOM file with this data set."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = BytesIO()
    dataset.save_as(
        out, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    return out.getvalue()


def positions(
    slices: int,
    between: float = 2.0,
    origin: Sequence[float] = (-20.0, -30.0, 100.0),
    orientation: Sequence[float] = AXIAL,
) -> list[list[float]]:
    """ImagePositionPatient of evenly spaced slices along row x column, in mm with 6 decimals as scanners write them."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [[round(float(x), 6) for x in np.array(origin) + index * between * normal] for index in range(slices)]


def series(
    values: NDArray[np.int16],
    *,
    places: Sequence[Sequence[float]] | None = None,
    spacing: tuple[float, float] = (0.8, 0.7),
    orientation: Sequence[float] = AXIAL,
    **tags: Any,
) -> list[bytes]:
    """A CT series: one file a slice, stored as uint16 with RescaleIntercept -1024 and a SliceThickness that lies."""
    places = positions(len(values), orientation=orientation) if places is None else places
    given = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "SliceThickness": 9.9,
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PixelSpacing": list(spacing),
        "ImageOrientationPatient": [round(float(part), 6) for part in orientation],
        **tags,
    }
    return [
        dicom((one + 1024).astype(np.uint16), ImagePositionPatient=list(place), InstanceNumber=number, **given)
        for number, (one, place) in enumerate(zip(values, places, strict=True), 1)
    ]


def nifti(
    values: NDArray[Any],
    *,
    between: float = 2.0,
    spacing: tuple[float, float] = (0.8, 0.7),
    origin: Sequence[float] = (-20.0, -30.0, 100.0),
    flips: str = "",
    order: tuple[int, int, int] = (2, 1, 0),
    kind: type = nibabel.Nifti1Image,
) -> bytes:
    """The same scan as `series` writes, [slices, rows, columns], as NIfTI bytes.

    `order` says which of the DICOM axes each NIfTI axis is, `flips` which NIfTI axes run backwards ("ik"): the header
    describes the patient alike whatever they are.
    """
    # DICOM's left, back, head to NIfTI's right, front, head: the first two change sign.
    steps = np.array(((0, 0, between), (0, -spacing[0], 0), (-spacing[1], 0, 0)))
    affine = np.eye(4)
    affine[:3, 3] = np.array((-1, -1, 1)) * origin
    voxels = values.transpose(order)
    for axis, which in enumerate(order):
        affine[:3, axis] = steps[which]
        if "ijk"[axis] in flips:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    image = kind(np.ascontiguousarray(voxels), affine)
    return bytes(image.to_bytes())
