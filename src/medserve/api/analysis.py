"""An instruction and the pictures it is about become JSON that the model wrote, or the reason why there is none."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, JsonValue

from medserve import inspection
from medserve.api import studies
from medserve.api.access import held
from medserve.api.asking import Asked, Told, answered
from medserve.api.conversation import Tokens
from medserve.images import Concern, Modality, Study
from medserve.imaging import raster
from medserve.imaging.intake import Wanted
from medserve.models import ModelHandle
from medserve.recovery import recover
from medserve.settings import Settings

SLICED = (Modality.CT, Modality.MR)
"""Modalities whose pictures the model was trained to see as slices, each with its label after it."""


class Instruction(Asked):
    """What to find out, and the files: pictures, DICOM files, a zip of a series, as base64, data URIs or references.

    `modality` is how pictures that do not say it were made. A DICOM file's own word stands, and a series is shown
    through the windows of its modality, slice by slice with its label.
    """

    images: list[str] = Field([])
    modality: Annotated[str, Field(min_length=1, max_length=20, description="CT, MR, DX, SM, XC, ...")] = "CT"
    max_tokens: Tokens = 2000

    @property
    def made(self) -> Modality:
        """The stated modality; raises InvalidRequest when there is none of that name."""
        return inspection.modality(self.modality)


class Analysis(Told):
    """The answer as JSON. Nothing in `result` was added: no confidence and no field that the model did not write.

    Where the answer is no whole JSON, `parse_error` says why and `result` holds that and the answer's words, as the
    older service had it. Of JSON that breaks off, `recovered` is what stood whole before the break and `missing` are
    the JSON pointers of what does not.
    """

    result: JsonValue = Field(description="the JSON object or list of the answer; a bare list stays a list")
    recovered: JsonValue = None
    missing: list[str] = Field([])
    raw_output: str = Field(description="the answer word for word, without the thinking")
    parse_error: str | None = None


async def analysed(order: Instruction, handle: ModelHandle, settings: Settings, param: str = "") -> Analysis:
    """Read the files, ask the model, and read its answer; errors name their fields after `param`."""
    order.check(settings)
    handle.refuse_full()
    study = await _study(order, settings, f"{param}images")
    await held(handle, settings)
    given = await answered(
        handle, order.prompt, order.tokens(handle), study, thinking=order.thinking, names=order.names
    )
    words = given.result.text
    found = recover(words)
    broken: dict[str, Any] = {"raw_output": words, "parse_error": found.error}
    return Analysis(
        **given.told.model_dump(),
        result=broken if found.error else found.value,
        recovered=found.partial,
        missing=list(found.missing),
        raw_output=words,
        parse_error=found.error or None,
    )


async def _study(order: Instruction, settings: Settings, param: str) -> Study | None:
    made = order.made
    if not order.images:
        return None
    reading = await studies.read(order.images, settings, Wanted(made, volume=False), param)
    return seen_as(reading.study, made, stated="modality" in order.model_fields_set)


def seen_as(study: Study, made: Modality, *, stated: bool) -> Study:
    """The study with what is to be said about its modality; several plain pictures of a CT or MR become slices.

    Where a file says how it was made, its word stands; that the sender `stated` another is a concern.
    """
    if all(image.source.format in raster.FORMATS for image in study.images) and not dict(study.facts):
        hounsfield = [Concern.NOT_HOUNSFIELD] if made is Modality.CT else []
        return replace(study, labels=_labels(study, made)).concerned(Concern.MODALITY_STATED, *hounsfield)
    if stated and study.modality not in (made, Modality.OTHER):
        return study.concerned(Concern.WRONG_MODALITY)
    return study


def _labels(study: Study, made: Modality) -> tuple[str, ...]:
    if study.labels or made not in SLICED or len(study.images) == 1:
        return study.labels
    return tuple(f"SLICE {number}" for number in range(1, len(study.images) + 1))
