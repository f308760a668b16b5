"""A NIfTI file becomes the volume that the same scan as DICOM would be: the patient's right on the image's left.

nibabel reads it and turns it to the closest canonical axes; whatever tilt remains is kept in the voxels' steps. NIfTI
does not say what its numbers are. They count as Hounsfield units only if they look like them: a good part of the voxels
is air, and the rest goes up to bone. The study says that this was assumed. Otherwise the whole acquisition is stretched
like MR, and the study says that too.
"""

import gzip
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Modality, Study, Volume
from medserve.imaging import volume
from medserve.imaging.instance import refusals
from medserve.settings import Limits

LOWEST = (-3100, -900)
"""Where the lowest value of a CT lies: air (-1000), or what scanners pad the field's corners with, down to -3024."""

HIGHEST = (100, 4100)
"""... and the highest: at bone, contrast medium or metal, which 12 bits cut off at 3071 or 4095."""

AIR = (-1050, -950)
"""Hounsfield units of air, with noise. MR phase and noise around 0 have 3 % of their voxels here at most."""

AIR_SHARE = 0.05
"""Part of a CT's voxels that are air, or padding of the lowest value; a trunk fills less than 80 % of its square."""

LOWEST_OF_CT, HIGHEST_OF_CT = (-4096, -200), (100, 32767)
"""The same for a file whose sender says that it is a CT: a part of a body may hold fat and gas only, or metal."""

MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Length of NIfTI's spatial units (xyzt_units & 7) in mm; unknown ones (0) are taken as mm, as all readers do."""

_KINDS: dict[int, Any] = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
"""nibabel's classes by the header's length."""

_canonical: Any = nib.as_closest_canonical


def claims(head: bytes) -> bool:
    """Whether a file that begins with these bytes (600 or more) is NIfTI-1 or NIfTI-2 in one file, gzipped or not."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, 600)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:12] == b"n+2\0\r\n\x1a\n"


def study(data: bytes, limits: Limits, modality: Modality | None = None) -> Study:
    """The study in a .nii or .nii.gz file. Blocking.

    `modality` is what the sender knows; without it values that look like Hounsfield units make it a CT, and `OTHER` is
    all that can be said of the rest. That they are HU is an assumption in any case, and a concern.

    Raises ImageUnreadable and ImageTooLarge.
    """
    if len(data) > limits.file_bytes:
        raise ImageTooLarge(
            f"the file has {len(data)} bytes and at most {limits.file_bytes} are read (limits.file_bytes)",
            param="image",
        )
    with refusals("the NIfTI file is damaged, cut short or of a kind that is not read"):
        file = _opened(data, limits)
        values, concerns = _values(file)
        hounsfield = _looks_like_hounsfield(values, modality)
        space = _volume(file, values, hounsfield)
        concerns += volume.judged(space) + _said(file, hounsfield, modality)
        kind = modality or (Modality.CT if hounsfield else Modality.OTHER)
        found = volume.study(values, space, kind, concerns, bits=file.bits, format_name="NIfTI")
        return replace(found, facts=_facts(file, hounsfield))


@dataclass(frozen=True, eq=False)
class _File:
    """A NIfTI file's stored voxels along canonical axes (towards right, front, head), and what its header says."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float
    intercept: float
    is_placed: bool
    """Whether the header says how the voxels lie in the patient (qform or sform)."""
    volumes: int
    bits: int
    version: int


def _opened(data: bytes, limits: Limits) -> _File:
    """The file behind a header whose sizes have been checked; of a gzipped one no more is inflated than it declares."""
    file: Any = gzip.GzipFile(fileobj=BytesIO(data)) if data[:2] == b"\x1f\x8b" else BytesIO(data)
    start = file.read(540)
    size = next((size for size in _KINDS if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4))), 0)
    if not size or not claims(start.ljust(600, b"\0")):
        raise ImageUnreadable("the file is not NIfTI; send .nii or .nii.gz, header and voxels in one", param="image")
    header = _KINDS[size].header_class.from_fileobj(BytesIO(start[:size]))
    shape, kind = header.get_data_shape(), header.get_data_dtype()
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or kind.kind not in "iuf" or kind.itemsize > 8:
        raise ImageUnreadable(
            "the NIfTI file holds colours or vectors; volumes of real numbers are read", param="image"
        )
    spatial = (*shape, 1)[:3]
    _check(spatial, kind.itemsize, limits)
    offset, count = int(header["vox_offset"]), int(np.prod(spatial, dtype=np.int64))
    if not size <= offset <= limits.image_bytes:
        raise ImageUnreadable(f"the NIfTI header puts the voxels at byte {offset}", param="image")
    # The header's extensions are jumped over: they are free text, and DICOM headers with names are kept in them.
    body = start + file.read(max(0, offset + count * kind.itemsize - len(start)))
    stored: NDArray[Any] = np.frombuffer(body, kind, count, offset).reshape(spatial, order="F")
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    image = _canonical(_KINDS[size](stored, header.get_best_affine(), dtype=kind))
    return _File(
        np.asarray(image.dataobj),
        np.diag((scale, scale, scale, 1.0)) @ np.asarray(image.affine, np.float64),
        float(header["scl_slope"]),
        float(header["scl_inter"]),
        bool(header["qform_code"] or header["sform_code"]),
        int(np.prod(shape[3:], dtype=np.int64)),
        kind.itemsize * 8,
        1 if size == 348 else 2,
    )


def _check(spatial: tuple[int, ...], itemsize: int, limits: Limits) -> None:
    across, down, slices = spatial
    volume.check_voxels(slices * max(1, itemsize // 4), down, across, limits)
    if min(across, down) < limits.image_min_side:
        raise ImageUnreadable(
            f"slices of {across} x {down} voxels are too small; each side needs {limits.image_min_side}",
            param="image",
        )


def _values(file: _File) -> tuple[volume.Values, list[Concern]]:
    """The scaled values as [slices, rows, columns] in the order of axial DICOM: head last, front on top, right on left.

    Canonical NIfTI counts towards the patient's right, front and head, so the first two are turned round. Voxels
    without a number get the lowest one.
    """
    # NIfTI-1: a slope of 0 means that there is no scaling.
    is_scaled = file.slope != 0 and np.isfinite((file.slope, file.intercept)).all()
    scaling = (file.slope, file.intercept) if is_scaled else (1.0, 0.0)
    stored: NDArray[Any] = file.voxels[::-1, ::-1, :].transpose(2, 1, 0)
    finite = [np.isfinite(one) for one in stored] if stored.dtype.kind == "f" else []
    broken = not all(mask.all() for mask in finite)
    lowest = 0.0
    if broken:
        lows = [one[mask].min() for one, mask in zip(stored, finite, strict=True) if mask.any()]
        if not lows:
            raise ImageUnreadable("the NIfTI file holds no number at all", param="image")
        lowest = float(min(lows))
    measured = (
        (index, volume.rescaled(_whole(np.where(finite[index], one, lowest) if broken else one), *scaling))
        for index, one in enumerate(stored)
    )
    return volume.gathered(measured, stored.shape), [Concern.NOT_A_NUMBER] if broken else []


def _whole(slice_: NDArray[Any]) -> NDArray[Any]:
    """A slice of whole numbers in floating point as int16: files are often written so, and it is half the size."""
    if slice_.dtype.kind == "f" and np.abs(slice_).max() <= 32767 and (np.rint(slice_) == slice_).all():
        return slice_.astype(np.int16)
    return slice_


def _looks_like_hounsfield(values: volume.Values, modality: Modality | None) -> bool:
    low, high = float(values.min()), float(values.max())
    if modality is not None:
        is_within = LOWEST_OF_CT[0] <= low <= LOWEST_OF_CT[1] and HIGHEST_OF_CT[0] <= high <= HIGHEST_OF_CT[1]
        return modality is Modality.CT and is_within
    if not (LOWEST[0] <= low <= LOWEST[1] and HIGHEST[0] <= high <= HIGHEST[1]):
        return False
    # Slice by slice: a mask of the whole volume would cost another copy of it.
    air = sum(np.count_nonzero(((AIR[0] <= one) & (one <= AIR[1])) | (one == low)) for one in values)
    return bool(air >= AIR_SHARE * values.size)


def _volume(file: _File, values: volume.Values, hounsfield: bool) -> Volume:
    """The geometry in DICOM's axes (left, back, head) of voxels that `_values` has turned round."""
    affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ file.affine
    slices, rows, columns = values.shape
    corner = affine @ (columns - 1, rows - 1, 0, 1)
    positions = corner[:3] + np.arange(slices)[:, None] * affine[:3, 2]
    down, across = -affine[:3, 1], -affine[:3, 0]
    return Volume(
        values,
        positions,
        (float(down[0]), float(down[1]), float(down[2])),
        (float(across[0]), float(across[1]), float(across[2])),
        "HU" if hounsfield else "none",
    )


def _said(file: _File, hounsfield: bool, modality: Modality | None) -> list[Concern]:
    found = [] if file.is_placed else [Concern.NO_GEOMETRY]
    if file.volumes > 1:
        found.append(Concern.FIRST_OF_SEVERAL_VOLUMES)
    if hounsfield:
        return [*found, Concern.HOUNSFIELD_ASSUMED]
    return found if modality not in (None, Modality.CT) else [*found, Concern.NOT_HOUNSFIELD]


def _facts(file: _File, hounsfield: bool) -> tuple[tuple[str, str], ...]:
    across, down, slices = file.voxels.shape
    return (
        ("format", f"NIfTI-{file.version}"),
        ("size", f"{across} x {down}"),
        ("slices", str(slices)),
        ("bits", str(file.bits)),
        ("values", "look like Hounsfield units" if hounsfield else "of unknown meaning"),
    )
