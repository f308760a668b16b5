"""A picture is decoded once, known by what it shows, and never changed: the one type through which pixels travel."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageError
from medserve.flags import Notice

DECODING = "1"
"""Version of the rules that turn a file into pixels; part of every content hash, so that caches never mix versions."""


class Modality(StrEnum):
    """How a picture was made, in DICOM's code values where DICOM has one (PS3.3 C.7.3.1.1.1)."""

    DERMOSCOPY = "DMS"
    HISTOLOGY = "SM"
    XRAY = "DX"
    CT = "CT"
    MR = "MR"
    ULTRASOUND = "US"
    PHOTOGRAPH = "XC"
    OTHER = "OT"


@dataclass(frozen=True)
class Source:
    """What the file was, as far as it says nothing about a person: format, mode, size in pixels, bits, frames."""

    format: str
    mode: str
    width: int
    height: int
    bits: int = 8
    frames: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Image:
    """Decoded pixels, uint8 of shape [height, width, 3] in RGB order, and the facts of the file they came from."""

    pixels: NDArray[np.uint8] = field(repr=False)
    source: Source

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ImageError("pixels must be uint8 of shape [height, width, 3]", param="image")
        if not self.pixels.size:
            raise ImageError("the picture has no pixels", param="image")
        self.pixels.setflags(write=False)

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @cached_property
    def sha256(self) -> str:
        """Identity of the content: decoded pixels, their shape, the file's mode and the decoding rules.

        Shape and mode are part of it because equal bytes of another shape are another picture.
        """
        digest = sha256(f"{DECODING}|{self.pixels.shape}|{self.source.mode}|{self.source.bits}|".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


class Concern(Notice):
    """What a reader of the report must know about a study's files."""

    FEW_SLICES = "few_slices", "fewer than 5 slices: too few to judge a volume by"
    SLICES_LEFT_OUT = "slices_left_out", "more slices than the model takes: evenly spaced ones were chosen"
    FRAMES_LEFT_OUT = "frames_left_out", "not all frames of a file were read: only its first, or evenly spaced ones"
    GAP = "gap", "slices are missing: a step between neighbours is at least 1.5 times the usual one"
    UNEVEN_SPACING = "uneven_spacing", "the steps between slices differ by more than 5 %"
    MIXED_ORIENTATION = "mixed_orientation", "slices of other orientations were left out"
    NOT_AXIAL = "not_axial", "the slices are not axial; the model was trained on axial ones"
    TURNED = "turned", "shown as stored, which is not the usual view: the patient's sides may appear exchanged"
    NO_GEOMETRY = "no_geometry", "the files do not say where slices lie: order uncertain, nothing can be measured"
    LOCALISER_DROPPED = "localiser_dropped", "localiser (scout) pictures were left out"
    DERIVED_DROPPED = "derived_dropped", "derived pictures were left out in favour of original ones"
    DUPLICATE_DROPPED = "duplicate_dropped", "slices at a position already taken were left out"
    OTHER_ACQUISITION_DROPPED = "other_acquisition_dropped", "only the largest acquisition of several was read"
    SEVERAL_STUDIES = "several_studies", "the files are of several examinations, perhaps of several patients"
    NOT_A_PICTURE_DROPPED = "not_a_picture_dropped", "files that hold no picture were left out"
    NOT_HOUNSFIELD = "not_hounsfield", "the values are not Hounsfield units: CT windows and HU do not apply"
    HOUNSFIELD_ASSUMED = (
        "hounsfield_assumed",
        "the file does not say how it was made; its values were taken for Hounsfield units",
    )
    NOT_A_NUMBER = "not_a_number", "voxels without a number were set to the lowest value"
    NO_CONTRAST = "no_contrast", "all values are equal: there is nothing to see"
    RESAMPLED = "resampled", "the pixels were not square: the pictures were resampled to true proportions"
    LARGE_MATRIX = "large_matrix", "slices have more than 512 x 512 voxels, more than the model was trained on"
    BURNED_IN_TEXT = "burned_in_text", "text, perhaps a name, may be drawn into the picture"
    LOSSY_COMPRESSED = "lossy_compressed", "the pixels were compressed with loss before they came here"
    FIRST_OF_SEVERAL_VOLUMES = "first_of_several_volumes", "only the first of several volumes was read"
    PATCHES_LEFT_OUT = "patches_left_out", "the slide has more tissue than was asked for: patches were drawn at random"
    SMALLER_THAN_PATCH = "smaller_than_patch", "the slide is smaller than one patch: the rest of the patch is white"
    UNUSUAL_MAGNIFICATION = "unusual_magnification", "the model was trained on slides at 5x, 10x and 20x only"
    WRONG_MODALITY = "wrong_modality", "the files say that the picture was made in another way than the workflow is for"
    MODALITY_STATED = "modality_stated", "the pictures do not say how they were made: the sender's word was taken"
    MAGNIFICATION_UNCERTAIN = "magnification_uncertain", "pixel size unknown, or at odds with the objective"


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels as measured, and where in the patient each of them lies.

    `values` has the shape [slices, rows, columns] and is int16 or float32, in Hounsfield units if `unit` is "HU" and
    in the scanner's own numbers if it is "none". `positions` are the centres of each slice's first voxel, float64
    [slices, 3] in millimetres, in DICOM's patient axes (towards the left, the back, the head; PS3.3 C.7.6.2.1.1).
    `down` and `across` are the steps in millimetres to the next row and the next column, along the same axes.
    Everything that is measured comes from these positions; no thickness that a file declares is ever used.
    """

    values: NDArray[np.int16] | NDArray[np.float32] = field(repr=False)
    positions: NDArray[np.float64] = field(repr=False)
    down: tuple[float, float, float]
    across: tuple[float, float, float]
    unit: Literal["HU", "none"]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not self.values.size or self.values.dtype not in (np.int16, np.float32):
            raise ImageError(
                "a volume's values must be int16 or float32 of shape [slices, rows, columns]", param="image"
            )
        if self.positions.shape != (len(self.values), 3):
            raise ImageError("a volume needs one position of three numbers for each slice", param="image")
        steps = np.array((self.down, self.across))
        if not (np.isfinite(self.positions).all() and np.isfinite(steps).all()):
            raise ImageError("a volume's positions and steps must be finite numbers", param="image")
        if np.linalg.norm(np.cross(self.down, self.across)) < 1e-6 or (np.diff(self.depths) <= 0).any():
            raise ImageError("a volume's voxels must lie apart, slices in ascending order", param="image")
        self.values.setflags(write=False)
        self.positions.setflags(write=False)

    @property
    def normal(self) -> NDArray[np.float64]:
        """The direction at right angles to the slices in which their order ascends, a unit vector."""
        normal = np.cross(np.array(self.across, np.float64), self.down)
        normal /= np.linalg.norm(normal)
        return -normal if (self.positions[-1] - self.positions[0]) @ normal < 0 else normal

    @property
    def depths(self) -> NDArray[np.float64]:
        """How far each slice lies from the first one along the normal, in millimetres, float64 [slices]."""
        return np.asarray((self.positions - self.positions[0]) @ self.normal)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres (between slices, down, across); between slices the median step, 0 where there is one slice."""
        between = float(np.median(np.diff(self.depths))) if len(self.values) > 1 else 0.0
        return between, float(np.linalg.norm(self.down)), float(np.linalg.norm(self.across))


@dataclass(frozen=True)
class Overview:
    """The whole that a study's pictures are parts of, made small, and where each of them lies in it.

    `places` are (left, top, right, bottom) in pixels of `picture` and fractions of them, one a part, in their order. A
    part may go on beyond the border.
    """

    picture: Image
    places: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Study:
    """The pictures of one examination, in reading order; never a name, number or date of a person.

    `labels` are texts that follow each image in a prompt ("SLICE 3"), one an image or none at all. `spacing` is
    (between slices, down, across) in millimetres where the files say it. `concerns` are what the study is flagged for
    and `facts` what its files say about themselves (name, value), without identity. Of a CT or MR series `volume` holds
    all voxels, and `slices` which of its slices each image shows, counted from 0. Of the patches of a slide `overview`
    shows where they lie.
    """

    images: tuple[Image, ...]
    modality: Modality = Modality.OTHER
    labels: tuple[str, ...] = ()
    spacing: tuple[float, float, float] | None = None
    concerns: tuple[Concern, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    volume: Volume | None = field(default=None, compare=False, repr=False)
    slices: tuple[int, ...] = ()
    overview: Overview | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.images:
            raise ImageError("a study needs at least one picture", param="images")
        if self.labels and len(self.labels) != len(self.images):
            raise ImageError("a study has one label a picture or none", param="labels")
        if self.slices and len(self.slices) != len(self.images):
            raise ImageError("a study has one slice number a picture or none", param="slices")
        if self.overview and len(self.overview.places) != len(self.images):
            raise ImageError("an overview has one place a picture", param="overview")

    def concerned(self, *more: Concern) -> "Study":
        """The same study, flagged for these concerns as well, each once."""
        return replace(self, concerns=tuple(dict.fromkeys((*self.concerns, *more))))

    @property
    def sha256(self) -> str:
        """Identity of the whole: the content hashes of its pictures, in order."""
        return sha256("|".join(image.sha256 for image in self.images).encode()).hexdigest()
