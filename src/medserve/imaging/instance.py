"""One DICOM file becomes facts and stored values, within limits that are checked before memory is taken for them.

Only the elements in `WANTED` are ever parsed: names, numbers, dates and all else that identifies a person are skipped
where they lie. pydicom decodes, with pylibjpeg, pyjpegls and Pillow and never GDCM, which has known and unmended holes
(CVE-2026-3650). Each transfer syntax has one decoder, so that equal bytes give equal values on every machine.
"""

import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_frames
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    RLELossless,
)

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.settings import Limits

# What these log may quote elements; nothing of a file's content may reach a log.
for _name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "nibabel"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
config.settings.reading_validation_mode = config.IGNORE

_WANTED = (
    # what it is
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType BurnedInAnnotation "
    "RecognizableVisualFeatures LossyImageCompression InstanceNumber AcquisitionNumber EchoNumbers "
    "TemporalPositionIdentifier "
    # its pixels
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelData "
    "FloatPixelData DoubleFloatPixelData ExtendedOffsetTable "
    "ExtendedOffsetTableLengths PixelPaddingValue PixelPaddingRangeLimit "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData "
    "SegmentedBluePaletteColorLookupTableData "
    # what its values mean
    "RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence "
    # where it lies
    "PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing PixelAspectRatio SliceThickness "
    "ImagePositionPatient ImageOrientationPatient "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
WANTED = tuple(_WANTED.split())
"""Keywords of the elements that are read (PS3.6); every other element is skipped unparsed."""

_TAGS = [tag for tag in map(tag_for_keyword, WANTED) if tag is not None]

MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "SM",
}
"""Modality by SOP class, for files that do not state one."""

_MODALITIES = (
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT "
    "IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG "
    "RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA "
    "XA XAPROTOCOL XC "
    # retired
    "AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST VF"
)
MODALITIES = frozenset(_MODALITIES.split())
"""All that Modality may say (PS3.3 C.7.3.1.1.1); whatever else stands there may be a name, and counts as OT."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class, and beginning of the classes, of screenshots and scanned paper (PS3.4 B.5)."""

_NO_PICTURE = "AU DOC ECG EPS HD KO M3D PLAN PR REG RTDOSE RTPLAN RTRECORD RTSTRUCT SEG SR"
NO_PICTURE = frozenset(_NO_PICTURE.split())
"""Modalities whose objects hold no picture of a patient, or one that only explains another."""

PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom")
"""pydicom's plug-ins by preference. 8-bit JPEG goes to Pillow first, whose libjpeg-turbo is the best tried.

JPEG-LS goes to pylibjpeg although pyjpegls is 2.6 times as fast: CharLS 1.5.1 can spend 7 s on a damaged frame of 150
bytes (tests/imaging/test_dicom.py keeps it), pylibjpeg a millisecond.
"""

_LOSSY = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless))
_SIZ = b"\xff\x4f\xff\x51"
_BOX = b"\0\0\0\x0cjP  "
_NATIVE = frozenset(
    (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
)
_GREY = frozenset(("MONOCHROME1", "MONOCHROME2"))
_COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"))


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM file whose declared sizes have been checked. Pixels are decoded when asked for."""

    dataset: Dataset
    syntax: UID
    modality: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits: int
    """Bits of a sample that carry value (BitsStored)."""

    @property
    def size(self) -> int:
        """Pixels of all frames together."""
        return self.rows * self.columns * self.frames

    @property
    def is_grey(self) -> bool:
        """Whether its values are brightness or a measurement, not colours or indices into a palette."""
        return self.photometric in _GREY

    @property
    def is_secondary(self) -> bool:
        """Whether it is a screenshot, a scan of paper or a photograph of a film."""
        return str(self.dataset.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE)

    @property
    def is_lossy(self) -> bool:
        """Whether detail has been lost to compression, by the file's own word or its transfer syntax."""
        return str(self.dataset.get("LossyImageCompression", "")) == "01" or self.syntax in _LOSSY

    @property
    def is_inverted(self) -> bool:
        """Whether its lowest value is white."""
        return self.photometric == "MONOCHROME1"

    @cached_property
    def image_type(self) -> tuple[str, ...]:
        """ImageType's values in upper case, of which ORIGINAL, DERIVED and LOCALIZER matter."""
        return texts(self.dataset.get("ImageType"))

    def value(self, keyword: str, group: str = "", frame: int = 0) -> Any:
        """An element's value for a frame: from that frame's functional `group`, the shared one, or the file itself.

        None where it is in none of them (PS3.3 C.7.6.16).
        """
        if group:
            for source in self._groups(frame):
                items = source.get(group)
                if items and items[0].get(keyword) is not None:
                    return items[0].get(keyword)
        return self.dataset.get(keyword)

    def _groups(self, frame: int) -> Iterator[Dataset]:
        if (own := self.dataset.get("PerFrameFunctionalGroupsSequence")) and frame < len(own):
            yield own[frame]
        if shared := self.dataset.get("SharedFunctionalGroupsSequence"):
            yield shared[0]

    def spacing(self, frame: int = 0) -> tuple[float, float] | None:
        """Height and width of a frame's pixels, in mm or, where only PixelAspectRatio says it, in proportion to 1.

        None where the file does not say it; a length of 0, which screenshots have, says nothing. What is measured
        never comes from here: detector spacing is not the patient's (PS3.3 10.7.1).
        """
        for keyword, group in (
            ("PixelSpacing", "PixelMeasuresSequence"),
            ("ImagerPixelSpacing", ""),
            ("NominalScannedPixelSpacing", ""),
            ("PixelAspectRatio", ""),
        ):
            found = numbers(self.value(keyword, group, frame), 2, keyword)
            if found is not None and min(found) > 0:
                return found[0], found[1]
        return None

    def stored(self, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The frames' values as stored, integers [rows, columns] or [rows, columns, 3]; YBR has become RGB."""
        with refusals():
            decoder, plugin = _decoder(self.syntax)
            self._check_frames(frames)
            shape = (self.rows, self.columns) + ((3,) if self.samples == 3 else ())
            for values, _meaning in decoder.iter_array(
                self.dataset, indices=frames, decoding_plugin=plugin, allow_excess_frames=False
            ):
                if values.shape != shape or values.dtype.kind not in "iu":
                    raise ImageUnreadable("the picture decodes to another size than its header declares", param="image")
                yield values

    def _offsets(self) -> tuple[bytes, bytes] | None:
        """The extended offset table (PS3.3 C.7.6.3.1.8) that pydicom decodes by, where the file has one."""
        offsets, lengths = self.dataset.get("ExtendedOffsetTable"), self.dataset.get("ExtendedOffsetTableLengths")
        return (offsets, lengths) if offsets and lengths else None

    def _check_frames(self, frames: Sequence[int]) -> None:
        """Compare the size in each compressed frame with the header: a decoder allocates what the frame claims."""
        if self.syntax in _NATIVE:
            return
        count = 0
        encoded = generate_frames(
            self.dataset.PixelData, number_of_frames=self.frames, extended_offsets=self._offsets()
        )
        for index, frame in enumerate(encoded):
            count += 1
            if index not in frames or self.syntax == RLELossless:  # RLE states no size: it fills what is declared
                continue
            if codestream_shape(frame) != (self.rows, self.columns, self.samples):
                raise ImageUnreadable("a compressed frame is of another size than its header declares", param="image")
        if count < self.frames:
            raise ImageUnreadable(f"the file holds {count} of the {self.frames} frames it declares", param="image")


def read(data: bytes, limits: Limits) -> Instance:
    """Parse a DICOM file's wanted elements and check what it declares; no pixel is decoded. Blocking.

    Raises ImageUnreadable or ImageTooLarge, whose messages quote numbers and names of elements, never their text.
    """
    if len(data) > limits.file_bytes:
        raise ImageTooLarge(
            f"the file has {len(data)} bytes and at most {limits.file_bytes} are read (limits.file_bytes)",
            param="image",
        )
    with refusals():
        _check_deflated(data, limits)
        dataset = dcmread(BytesIO(data), force=True, specific_tags=list(_TAGS))
        return _checked(dataset, limits)


def _check_deflated(data: bytes, limits: Limits) -> None:
    """Inflate a deflated data set up to the limit and no further, before pydicom does it without one."""
    file = BytesIO(data)
    read_preamble(file, force=True)
    if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(file.read(), limits.image_bytes)
    if inflater.unconsumed_tail:
        raise ImageTooLarge(
            f"the file inflates to more than {limits.image_bytes} bytes (limits.image_bytes)", param="image"
        )


def _checked(dataset: Dataset, limits: Limits) -> Instance:
    modality = _modality(dataset)
    if modality in NO_PICTURE or not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise NoPicture(
            "the DICOM file holds no picture: send image files, not reports, plans or overlays", param="image"
        )
    if "PixelData" not in dataset:
        raise ImageUnreadable("DICOM files with floating-point pixels are not read", param="image")
    rows, columns = whole(dataset, "Rows"), whole(dataset, "Columns")
    frames = whole(dataset, "NumberOfFrames", 1) or 1
    _check_size(rows, columns, frames, limits)
    samples = whole(dataset, "SamplesPerPixel", 1)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    _check_kind(dataset, samples, photometric)
    bits = whole(dataset, "BitsStored", whole(dataset, "BitsAllocated"))
    instance = Instance(dataset, _syntax(dataset), modality, rows, columns, frames, samples, photometric, bits)
    _check_length(instance)
    return instance


class NoPicture(ImageUnreadable):
    """A sound DICOM file that holds no picture: a report, a plan, a segmentation, a directory."""


def _modality(dataset: Dataset) -> str:
    if stated := str(dataset.get("Modality") or "").strip().upper():
        return stated if stated in MODALITIES else "OT"
    return MODALITY_OF_CLASS.get(str(dataset.get("SOPClassUID", "")), "OT")


def _check_size(rows: int, columns: int, frames: int, limits: Limits) -> None:
    if min(rows, columns) < limits.image_min_side:
        raise ImageUnreadable(
            f"the picture has {columns} x {rows} pixels; each side must have at least {limits.image_min_side}",
            param="image",
        )
    if rows * columns > limits.image_pixels:
        raise ImageTooLarge(
            f"the picture has {columns} x {rows} pixels and at most {limits.image_pixels} are read", param="image"
        )
    if not 1 <= frames <= limits.image_frames:
        raise ImageTooLarge(f"the file declares {frames} frames; 1 to {limits.image_frames} are read", param="image")


def _check_kind(dataset: Dataset, samples: int, photometric: str) -> None:
    known = _COLOUR if samples == 3 else _GREY | {"PALETTE COLOR"}
    if samples not in (1, 3) or photometric not in known:
        raise ImageUnreadable(
            f"the file declares {samples} samples a pixel in a colour model that does not go with it or is not read; "
            "grey, palette, RGB and YBR are",
            param="image",
        )
    allocated, stored = whole(dataset, "BitsAllocated"), whole(dataset, "BitsStored", whole(dataset, "BitsAllocated"))
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated or (samples == 3 and allocated > 16):
        raise ImageUnreadable(f"the file declares {stored} bits stored in {allocated}; that is not read", param="image")


def _check_length(instance: Instance) -> None:
    """Refuse uncompressed pixels that are fewer than declared, before an array is made for them."""
    if instance.syntax not in _NATIVE:
        return
    bits = instance.size * instance.samples * whole(instance.dataset, "BitsAllocated")
    if instance.photometric == "YBR_FULL_422":
        bits = bits * 2 // 3
    if (held := len(instance.dataset.PixelData or b"")) < (needed := -(-bits // 8)):
        raise ImageUnreadable(f"the picture is cut short: {held} of {needed} bytes of pixels", param="image")


def _syntax(dataset: Dataset) -> UID:
    stated = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
    if stated:
        return UID(str(stated))
    implicit, little = dataset.original_encoding
    guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = guessed
    return guessed


def _decoder(syntax: UID) -> tuple[Decoder, str]:
    """pydicom's decoder and the plug-in that does its work; refuses a transfer syntax by its name."""
    try:
        decoder = get_decoder(syntax)
        if decoder.is_native:
            return decoder, ""
        order = ("pillow", *PLUGINS) if syntax == JPEGBaseline8Bit else PLUGINS
        return decoder, next(name for name in order if name in decoder.available_plugins)
    except (NotImplementedError, StopIteration):
        name = syntax_name(syntax)
        raise ImageUnreadable(
            f"DICOM pixels in the transfer syntax {name} are not read; save the file uncompressed or as JPEG 2000",
            param="image",
        ) from None


def syntax_name(syntax: UID) -> str:
    """A transfer syntax's registered name, or "unknown": a UID that nobody registered may be anything."""
    return syntax.name if syntax.name != str(syntax) else "unknown"


def codestream_shape(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 frame says it decodes to; None where it is neither.

    Found as ISO 10918-1 B.2.2 (SOF), ISO 14495-1 (SOF55) and ISO 15444-1 A.5.1 (SIZ) lay it down.
    """
    start = _after_boxes(frame) if frame[:8] == _BOX else 0
    if frame[start : start + 4] == _SIZ:
        right, bottom, left, top = (int.from_bytes(frame[start + at : start + at + 4]) for at in (8, 12, 16, 20))
        return bottom - top, right - left, int.from_bytes(frame[start + 40 : start + 42])
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while at + 10 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9]), frame[at + 9]
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None


def _after_boxes(frame: bytes) -> int:
    """Where the code stream in a JP2 file begins (ISO 15444-1 I.4), or its end where the boxes lead to none.

    pydicom 3.0 walks the boxes without an end if one has the length 0: such a frame must not reach it.
    """
    at = 12
    while at + 8 <= len(frame):
        if frame[at + 4 : at + 8] == b"jp2c":
            return at + 8
        length = int.from_bytes(frame[at : at + 4])
        if length < 8:
            break
        at += length
    return len(frame)


def whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """An element's value as an integer; raises ImageUnreadable where it is missing without a default, or no integer."""
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value if value is not None else "")
    except (TypeError, ValueError, OverflowError):
        raise ImageUnreadable(f"the DICOM element {keyword} is missing or no whole number", param="image") from None


def numbers(value: Any, count: int, keyword: str) -> tuple[float, ...] | None:
    """An element's value as `count` finite numbers, None where it is missing; raises ImageUnreadable otherwise.

    Of more values than asked for the first are taken, as PS3.3 C.11.2.1.2 lets a reader do with windows.
    """
    if value is None or value == "":
        return None
    try:
        found = tuple(
            float(part) for part in (value if hasattr(value, "__iter__") and not isinstance(value, str) else [value])
        )
    except (TypeError, ValueError, OverflowError):
        found = ()
    if not found and not isinstance(value, str) and hasattr(value, "__len__") and not len(value):
        return None
    if len(found) < count or not np.isfinite(found[:count]).all():
        raise ImageUnreadable(f"the DICOM element {keyword} is not {count} finite numbers", param="image")
    return found[:count]


def texts(value: Any) -> tuple[str, ...]:
    """A code string of one or several values as upper-case strings; none where it is missing."""
    if value is None:
        return ()
    parts = [value] if isinstance(value, str) else list(value)
    return tuple(str(part).strip().upper() for part in parts)


@contextmanager
def refusals(damaged: str = "the DICOM file is damaged, cut short or of a kind that is not read") -> Iterator[None]:
    """Turn whatever parsers and decoders throw at hostile bytes into a refusal that quotes nothing of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageTooLarge("there is not enough memory to decode the file", param="image") from None
    except Exception:  # pydicom and its plug-ins have no common error, and what they say may quote the file
        raise ImageUnreadable(damaged, param="image") from None
    except BaseException as error:
        # A panic in Rust (pylibjpeg-rle on a run that leaves its frame) is a BaseException; it has unwound and is over.
        if type(error).__name__ != "PanicException":
            raise
        raise ImageUnreadable(damaged, param="image") from None
