"""DICOM files become one study: pictures as a screen shows them, or a CT or MR volume by the model's own recipe.

Pictures (CR, DX, SM, XC, GM, US, secondary captures and others) go through DICOM's grey pipeline: modality LUT or
rescale, then the first window or VOI LUT that the file asks for, or the range of its values, then inversion if low is
white (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2). That is MedGemma's published treatment of chest X-rays with two
differences of at most one grey level: DICOM's window is half a value and one width narrower than "centre +- width / 2",
and values are rounded, not cut. CT and MR are `volume`'s work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Image, Modality, Source, Study
from medserve.imaging import identity, series, square, volume, windows
from medserve.imaging.instance import Instance, NoPicture, numbers, read, refusals, texts, whole
from medserve.settings import Limits

MODALITIES = {
    "CR": Modality.XRAY,
    "DX": Modality.XRAY,
    "CT": Modality.CT,
    "MR": Modality.MR,
    "SM": Modality.HISTOLOGY,
    "GM": Modality.HISTOLOGY,
    "DMS": Modality.DERMOSCOPY,
    "XC": Modality.PHOTOGRAPH,
    "US": Modality.ULTRASOUND,
}
"""DICOM's modalities that have a workflow of their own; all others are `OTHER`."""

_EXPLICIT = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def claims(head: bytes) -> bool:
    """Whether a file that begins with these bytes (132 or more) is DICOM: by its mark, or by its first element.

    Old files lack the mark and begin with an element of group 0008, or of the file meta group 0002 (PS3.10 7.1).
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    return head[4:6] in _EXPLICIT or int.from_bytes(head[4:8], "little") <= 1024


def study(files: Sequence[bytes], limits: Limits) -> Study:
    """The study in one or several DICOM files of one examination. Blocking.

    All CT or all MR files, of one frame or more, become a volume; other files become pictures in the given order. Files
    without a picture are left out and said so. Raises ImageUnreadable and ImageTooLarge, whose messages quote nothing
    that could identify a person.
    """
    if not files:
        raise ImageUnreadable("no file was sent; send at least one DICOM file", param="image")
    if len(files) > limits.image_frames:
        raise ImageTooLarge(f"{len(files)} files were sent and at most {limits.image_frames} are read", param="image")
    with refusals():
        instances, concerns = _instances(files, limits)
        modality = _one_modality(instances)
        sliced = _sliced(instances, modality, concerns)
        found = _volume(sliced, modality, limits) if sliced else _pictures(instances, modality, limits)
        concerns += found.concerns + _said(instances)
        return Study(
            images=found.images,
            modality=modality,
            labels=found.labels,
            spacing=found.spacing,
            concerns=tuple(dict.fromkeys(concerns)),
            facts=_facts(instances, sliced),
            volume=found.volume,
            slices=found.slices,
        )


def _instances(files: Sequence[bytes], limits: Limits) -> tuple[list[Instance], list[Concern]]:
    instances, empty = [], None
    for data in files:
        try:
            instances.append(read(data, limits))
        except NoPicture as error:
            empty = error
    if not instances:
        raise empty or ImageUnreadable("the DICOM files hold no picture", param="image")
    if sum(instance.frames for instance in instances) > limits.image_frames:
        raise ImageTooLarge(f"the files have more than {limits.image_frames} frames together", param="image")
    return instances, [Concern.NOT_A_PICTURE_DROPPED] if empty else []


def _one_modality(instances: Sequence[Instance]) -> Modality:
    found = {instance.modality for instance in instances}
    if len({MODALITIES.get(name, name) for name in found}) > 1:
        raise ImageUnreadable("the files are of several modalities; send each examination by itself", param="image")
    return MODALITIES.get(found.pop(), Modality.OTHER)


def _sliced(instances: Sequence[Instance], modality: Modality, concerns: list[Concern]) -> list[Instance]:
    """The CT or MR files that can be slices; none if all are screenshots or coloured maps, which are pictures."""
    if modality not in (Modality.CT, Modality.MR):
        return []
    grey = [one for one in instances if one.is_grey and not one.is_secondary]
    if grey and len(grey) < len(instances):
        concerns.append(Concern.DERIVED_DROPPED)
    if not grey and modality is Modality.CT:
        concerns.append(Concern.NOT_HOUNSFIELD)
    return grey


def _volume(instances: Sequence[Instance], modality: Modality, limits: Limits) -> Study:
    return volume.of_series(series.volume([one for file in instances for one in series.slices(file)]), modality, limits)


def _pictures(instances: Sequence[Instance], modality: Modality, limits: Limits) -> Study:
    """Every file's frames as pictures; of a file with more than the model takes, evenly spaced ones."""
    if (count := sum(min(one.frames, windows.MOST_SLICES) for one in instances)) > limits.images:
        raise ImageTooLarge(f"the files hold {count} pictures and at most {limits.images} are read", param="image")
    if sum(one.rows * one.columns * min(one.frames, windows.MOST_SLICES) for one in instances) > volume.VOXELS:
        raise ImageTooLarge("the files' pictures are too many and too large together; send fewer", param="image")
    images = tuple(image for instance in instances for image in _images(instance))
    concerns = []
    if any(one.frames > windows.MOST_SLICES for one in instances):
        concerns.append(Concern.FRAMES_LEFT_OUT)
    if any(image.source.notes for image in images):
        concerns.append(Concern.RESAMPLED)
    return Study(images, modality, concerns=tuple(concerns))


def _images(instance: Instance) -> Iterator[Image]:
    source = Source("DICOM", instance.photometric, instance.columns, instance.rows, instance.bits, instance.frames)
    frames = windows.chosen(instance.frames)
    for frame, stored in zip(frames, instance.stored(frames), strict=True):
        pixels, size = shown(instance, frame, stored), (instance.rows, instance.columns)
        if (true := square.size(*size, instance.spacing(frame))) == size:
            yield Image(pixels, source)
        else:
            yield Image(square.colours(pixels, *true), replace(source, notes=(square.note(*true),)))


def shown(instance: Instance, frame: int, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """A frame's stored values as a screen shows them, uint8 [rows, columns, 3]."""
    if instance.samples == 3:
        return _eight_bits(stored, instance.bits)
    if instance.photometric == "PALETTE COLOR":
        return _palette(instance, stored)
    grey = _grey(instance, frame, stored)
    return np.repeat((255 - grey if instance.is_inverted else grey)[..., None], 3, axis=2)


def _eight_bits(colours: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return colours.astype(np.uint8) if bits == 8 else windows.stretched(colours, 0, 2**bits - 1)


def _grey(instance: Instance, frame: int, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """A grey frame through modality LUT and window, uint8 [rows, columns], before inversion."""
    values, changed = _modality_values(instance, frame, stored)
    group = "FrameVOILUTSequence"
    centre = numbers(instance.value("WindowCenter", group, frame), 1, "WindowCenter")
    width = numbers(instance.value("WindowWidth", group, frame), 1, "WindowWidth")
    if centre is not None and width is not None:
        function = texts(instance.value("VOILUTFunction", group, frame))[:1]
        return windows.windowed(values, centre[0], width[0], function[0] if function and function[0] else "LINEAR")
    if table := instance.value("VOILUTSequence", group, frame):
        entries, first, bits = _table(table[0], "LUTDescriptor", table[0].get("LUTData"), instance)
        return windows.stretched(_looked_up(entries, first, np.rint(values)), 0, 2**bits - 1)
    if instance.bits == 8 and not changed and stored.dtype == np.uint8:
        return np.asarray(stored)
    return windows.stretched(values, *_range(instance, stored, values))


def _modality_values(instance: Instance, frame: int, stored: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """The values after the modality LUT or rescale, and whether it changed any (PS3.3 C.11.1)."""
    group = "PixelValueTransformationSequence"
    if table := instance.value("ModalityLUTSequence"):
        entries, first, _bits = _table(table[0], "LUTDescriptor", table[0].get("LUTData"), instance)
        return _looked_up(entries, first, stored), True
    slope = numbers(instance.value("RescaleSlope", group, frame), 1, "RescaleSlope")
    intercept = numbers(instance.value("RescaleIntercept", group, frame), 1, "RescaleIntercept")
    if slope is None or intercept is None or (slope[0], intercept[0]) == (1, 0):
        return stored, False
    return volume.rescaled(stored, slope[0], intercept[0]), True


def _range(instance: Instance, stored: NDArray[Any], values: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest value, of pixels that are not padding (PS3.3 C.7.5.1.1.2) if there are any."""
    if instance.dataset.get("PixelPaddingValue") is not None:
        padding = whole(instance.dataset, "PixelPaddingValue")
        limit = whole(instance.dataset, "PixelPaddingRangeLimit", padding)
        seen = (stored < min(padding, limit)) | (stored > max(padding, limit))
        if seen.any():
            values = values[seen]
    return float(values.min()), float(values.max())


def _palette(instance: Instance, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """Palette indices as RGB: each colour through its own table (PS3.3 C.7.6.3.1.5)."""
    picture = np.empty((*stored.shape, 3), np.uint8)
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        descriptor = f"{colour}PaletteColorLookupTableDescriptor"
        data = instance.dataset.get(f"{colour}PaletteColorLookupTableData")
        if data is None:
            data = _expanded(instance, f"Segmented{colour}PaletteColorLookupTableData", descriptor)
        entries, first, bits = _table(instance.dataset, descriptor, data, instance)
        # Some writers put 8-bit colours into the upper halves of 16-bit entries and call them 8 bits.
        full = 65535 if bits == 8 and entries.max() > 255 else 2**bits - 1
        picture[..., channel] = windows.stretched(_looked_up(entries, first, stored), 0, full)
    return picture


def _looked_up(entries: NDArray[np.uint16], first: int, values: NDArray[Any]) -> NDArray[np.uint16]:
    """Each value's entry; values under the first and over the last take those (PS3.3 C.11.1.1)."""
    return entries[np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)]


def _table(holder: Dataset, descriptor: str, data: Any, instance: Instance) -> tuple[NDArray[np.uint16], int, int]:
    """A look-up table's entries as uint16 [n], the value that its first one stands for, and bits of an entry.

    Raises ImageUnreadable where the table is shorter than its descriptor says: an index would fall behind its end.
    """
    described = numbers(holder.get(descriptor), 3, descriptor)
    if described is None or data is None:
        raise ImageUnreadable("the file names a look-up table and does not hold it", param="image")
    count, first, bits = (int(number) for number in described)
    count = count or 65536
    # US or SS: a signed picture's first value may have been read as unsigned.
    if first > 32767 and whole(instance.dataset, "PixelRepresentation", 0):
        first -= 65536
    if not (1 <= count <= 65536 and 1 <= bits <= 16):
        raise ImageUnreadable(f"the file declares a look-up table of {count} entries of {bits} bits", param="image")
    entries = _entries(data, count, bool(instance.dataset.original_encoding[1]))
    if len(entries) < count:
        raise ImageUnreadable(f"a look-up table has {len(entries)} of its {count} entries", param="image")
    return entries[:count], first, bits


def _entries(data: Any, count: int, little: bool) -> NDArray[np.uint16]:
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data)).astype(np.int64).astype(np.uint16)
    if len(data) in (count, count + 1):
        return np.frombuffer(data, np.uint8).astype(np.uint16)
    return np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").astype(np.uint16)


def _expanded(instance: Instance, keyword: str, descriptor: str) -> NDArray[np.uint16] | None:
    """A segmented table written out, up to the length that its descriptor declares (PS3.3 C.7.9.2).

    Discrete and linear segments are read; indirect ones, which nobody writes, are refused.
    """
    data = instance.dataset.get(keyword)
    described = numbers(instance.dataset.get(descriptor), 3, descriptor)
    if data is None or described is None:
        return None
    count, wide = int(described[0]) or 65536, described[2] > 8
    kind = ("<u2" if instance.dataset.original_encoding[1] else ">u2") if wide else "u1"
    segments = np.frombuffer(data[: len(data) // 2 * 2] if wide else data, kind).astype(np.int64)
    out: list[NDArray[np.int64]] = []
    at = length = 0
    while at + 2 < len(segments) and length < count:
        code, size = segments[at], segments[at + 1]
        if code == 0:
            part = segments[at + 2 : at + 2 + size]
            at += 2 + int(size)
        elif code == 1 and out:
            ramp = np.linspace(out[-1][-1], segments[at + 2], int(size) + 1)
            part = np.rint(ramp[1:]).astype(np.int64)
            at += 3
        else:
            raise ImageUnreadable("a segmented palette has segments that are not read", param="image")
        if len(part):
            out.append(part)
            length += len(part)
        elif not size:
            raise ImageUnreadable("a segmented palette has an empty segment", param="image")
    return np.concatenate(out)[:count].astype(np.uint16) if out else None


def _said(instances: Sequence[Instance]) -> tuple[Concern, ...]:
    """What the files themselves give cause for: several examinations, drawn-in text and lossy compression."""
    studies = {str(uid).strip() for one in instances if (uid := one.dataset.get("StudyInstanceUID"))}
    causes = {
        Concern.SEVERAL_STUDIES: len(studies) > 1,
        Concern.BURNED_IN_TEXT: any(map(identity.may_hold_text, instances)),
        Concern.LOSSY_COMPRESSED: any(one.is_lossy for one in instances),
    }
    return tuple(concern for concern, given in causes.items() if given)


def _facts(instances: Sequence[Instance], sliced: Sequence[Instance]) -> tuple[tuple[str, str], ...]:
    """The first file's facts; of several files without the hash of the one, and with how many there are."""
    of = sliced or instances
    found = dict(identity.facts(of[0]))
    found["files"] = str(len(of))
    if len(of) > 1:
        found.pop("instance", None)
    if sliced and (declared := of[0].value("SliceThickness", "PixelMeasuresSequence")) is not None:
        thickness = numbers(declared, 1, "SliceThickness")
        found["declared_slice_thickness_mm"] = f"{thickness[0]:g}" if thickness else "unknown"
    spacing = numbers(of[0].dataset.get("ImagerPixelSpacing"), 2, "ImagerPixelSpacing")
    if spacing is not None:
        found["detector_pixel_spacing_mm"] = f"{spacing[0]:g} x {spacing[1]:g}"
    return tuple(found.items())
