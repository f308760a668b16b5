"""What a model would be shown of these files, without a model: facts, warnings and a contact sheet.

Nothing here decides anything. It reads the files through the same door as everything else and says what came out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medserve.errors import InvalidRequest
from medserve.images import Image, Modality, Study, Volume
from medserve.imaging import intake
from medserve.imaging.intake import Material, Wanted
from medserve.imaging.preprocess import VisionInput
from medserve.imaging.sheet import contact_sheet
from medserve.imaging.sheet import picture as as_png
from medserve.settings import Limits
from medserve.threads import in_thread

SEEN_BY_MEDGEMMA = VisionInput(896)
TOKENS = 256
"""Tokens that a picture becomes in MedGemma's prompt."""


class Caution(BaseModel):
    """One thing that a reader of a report on these files must know."""

    model_config = ConfigDict(frozen=True)

    name: str
    meaning: str


class Picture(BaseModel):
    """One picture as it was read; `label` follows it in a prompt."""

    model_config = ConfigDict(frozen=True)

    format: str
    mode: str
    width: int
    height: int
    bits: int
    frames: int
    label: str = ""
    notes: tuple[str, ...] = ()
    sha256: str

    @classmethod
    def of(cls, image: Image, label: str) -> "Picture":
        source = image.source
        return cls(
            format=source.format,
            mode=source.mode,
            width=image.width,
            height=image.height,
            bits=source.bits,
            frames=source.frames,
            label=label,
            notes=source.notes,
            sha256=image.sha256,
        )


class Voxels(BaseModel):
    """The volume behind the pictures: its size in voxels, its spacing in mm and the range of its values."""

    model_config = ConfigDict(frozen=True)

    slices: int
    rows: int
    columns: int
    spacing: tuple[float, float, float]
    unit: str
    least: float
    greatest: float

    @classmethod
    def of(cls, volume: Volume) -> "Voxels":
        slices, rows, columns = volume.values.shape
        return cls(
            slices=slices,
            rows=rows,
            columns=columns,
            spacing=volume.spacing,
            unit=volume.unit,
            least=float(volume.values.min()),
            greatest=float(volume.values.max()),
        )


class Inspection(BaseModel):
    """All that is known of a study before a model sees it; it names no person."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    modality: str
    pictures: tuple[Picture, ...]
    spacing: tuple[float, float, float] | None = None
    volume: Voxels | None = None
    facts: dict[str, str] = {}
    warnings: tuple[Caution, ...] = ()
    input_size: int
    image_tokens: int

    @classmethod
    def of(cls, study: Study, vision: VisionInput, tokens: int) -> "Inspection":
        labels = study.labels or ("",) * len(study.images)
        return cls(
            sha256=study.sha256,
            modality=study.modality,
            pictures=tuple(Picture.of(image, label) for image, label in zip(study.images, labels, strict=True)),
            spacing=study.spacing,
            volume=Voxels.of(study.volume) if study.volume else None,
            facts=dict(study.facts),
            warnings=tuple(Caution(name=concern.value, meaning=concern.meaning) for concern in study.concerns),
            input_size=vision.size,
            image_tokens=tokens * len(study.images),
        )


@dataclass(frozen=True)
class Inspected:
    """An inspection, and pictures of it as PNG files that are made when somebody asks, and once. Asking blocks."""

    inspection: Inspection
    reading: intake.Reading = field(repr=False)
    vision: VisionInput

    @cached_property
    def sheet(self) -> bytes:
        """Every picture as the model gets it."""
        return contact_sheet(self.reading.study, self.vision)

    @cached_property
    def overview(self) -> bytes | None:
        """Of a slide, where its patches lie."""
        return as_png(self.reading.overview) if self.reading.overview else None


async def inspect(
    materials: Sequence[Material],
    limits: Limits,
    wanted: Wanted | None = None,
    vision: VisionInput = SEEN_BY_MEDGEMMA,
    tokens: int = TOKENS,
) -> Inspected:
    """Read the materials as one study and show it as `vision` gets it; raises what `intake.read` raises."""
    return await shown(await intake.reading(materials, limits, wanted or Wanted()), vision, tokens)


async def shown(reading: intake.Reading, vision: VisionInput = SEEN_BY_MEDGEMMA, tokens: int = TOKENS) -> Inspected:
    """What was read already, as `vision` gets it."""
    return Inspected(await in_thread(Inspection.of, reading.study, vision, tokens), reading, vision)


def modality(name: str) -> Modality:
    """The modality of that name, DICOM's code (CT) or ours (xray), in whatever case; raises InvalidRequest."""
    for known in Modality:
        if name.upper() in (known.value, known.name):
            return known
    names = ", ".join(known.value for known in Modality)
    raise InvalidRequest(f"there is no such modality; there are: {names}", param="modality")


def save(found: Inspected, target: Path) -> tuple[Path, ...]:
    """Write the contact sheet to `target` and a slide's overview beside it; the files that were written."""
    target.write_bytes(found.sheet)
    if found.overview is None:
        return (target,)
    beside = target.with_name(f"{target.stem}-overview.png")
    beside.write_bytes(found.overview)
    return target, beside


def as_text(inspection: Inspection) -> str:
    """The inspection for a person at a terminal."""
    return "\n".join(_lines(inspection))


def _lines(inspection: Inspection) -> Iterator[str]:
    count = len(inspection.pictures)
    yield f"study {inspection.sha256[:16]}  modality {inspection.modality}  {count} picture{'s' * (count != 1)}"
    yield (
        f"  the model sees {count} x {inspection.input_size} x {inspection.input_size} pixels, "
        f"{inspection.image_tokens} tokens"
    )
    if inspection.volume:
        yield f"  volume    {_volume_words(inspection.volume)}"
    for name, value in inspection.facts.items():
        yield f"  {name.replace('_', ' '):<9} {value}"
    yield from _picture_lines(inspection.pictures)
    for warning in inspection.warnings:
        yield f"warning: {warning.meaning}"


def _volume_words(volume: Voxels) -> str:
    between, down, across = volume.spacing
    unit = " HU" if volume.unit == "HU" else ""
    return (
        f"{volume.slices} slices of {volume.rows} x {volume.columns}, {between:g} x {down:g} x {across:g} mm, "
        f"values {volume.least:g} to {volume.greatest:g}{unit}"
    )


def _picture_lines(pictures: Sequence[Picture]) -> Iterator[str]:
    """One line a picture, or one for all where they are alike in everything but what they show."""
    alike = {picture.model_copy(update={"sha256": "", "label": ""}) for picture in pictures}
    for place, picture in enumerate(pictures[:1] if len(alike) == 1 else pictures, start=1):
        number = f"1-{len(pictures)}" if len(alike) == 1 < len(pictures) else str(place)
        yield (
            f"  {number:>6}  {picture.format} {picture.mode}, {picture.width} x {picture.height}, {picture.bits} bits"
            + "".join(f"; {note}" for note in picture.notes)
        )
