"""A chest film is described, anatomy is boxed in it on request, and a prior film is compared with the current one.

Boxes come in the model's own form: four numbers from 0 to 1000, the row first, relative to the picture as the model
sees it, which is padded to a square. They are given in the film's own pixels, with the padding taken away, and a box
that lies in the padding is no box. What is found is the model's word throughout: nothing is measured on a film.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from medserve import guard
from medserve.flags import Flag
from medserve.images import Image, Modality, Study
from medserve.imaging import overlay
from medserve.imaging.preprocess import padding
from medserve.readers import json_of, one_of, plain
from medserve.reports import PLACE, Box, Conclusion, Figure, Finding
from medserve.threads import in_thread
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow, listed, once

HEART = Question(
    "Heart enlarged",
    "Is the heart enlarged? Answer yes or no.",
    one_of("yes", "no"),
    score=("yes", "no"),
    otherwise="Do you see an enlarged heart? Answer yes or no.",
)
DESCRIBE = "Describe what is visible in this picture."
CHANGES = ("consolidation", "edema", "pleural effusion", "pneumonia", "pneumothorax")
"""What the model was trained to compare between two films (MedGemma 1.5's model card)."""
COURSES = ("improved", "stable", "worsened", "absent")
"""The three classes of that training, and a way out for what neither film shows: none of the three would be true."""
SCALE = 1000
"""Boxes are written in thousandths of the padded square's side."""
BOXES: dict[str, Any] = {
    "type": "array",
    "maxItems": 8,
    "items": {
        "type": "object",
        "properties": {
            "box_2d": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": SCALE},
                "minItems": 4,
                "maxItems": 4,
            },
            "label": {"type": "string", "minLength": 1, "maxLength": 60},
        },
        "required": ["box_2d", "label"],
        "additionalProperties": False,
    },
}
"""What an answer about one structure looks like: most have one box, ribs and clavicles several."""


class ChestOptions(Options):
    """What a caller may choose about a chest film; two films are compared, the prior one first."""

    locate: tuple[str, ...] = Field((), max_length=16, description="anatomy to be boxed, such as right clavicle, heart")
    compare: tuple[str, ...] = Field(CHANGES, max_length=16, description="what is compared between two films")

    @field_validator("locate", "compare", mode="before")
    @classmethod
    def _listed_too(cls, names: object) -> object:
        return listed(names)

    @field_validator("locate", "compare")
    @classmethod
    def _short(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() or len(name) > 100 for name in names):
            raise ValueError("names must have 1 to 100 characters")
        return names


async def run(study: Study, consult: Consult, options: ChestOptions) -> Conclusion:
    """The heart, a description and the boxes of the current film; beside a prior one, what became of each finding."""
    current = len(study.images) - 1
    heart, look = await consult.ask_all(
        [
            replace(HEART, pictures=(current,)),
            Question("Description", DESCRIBE, plain(), max_tokens=500, pictures=(current,)),
        ]
    )
    located = [await _located(study.images[current], consult, name, current) for name in options.locate]
    compared = await consult.ask_all([_comparison(name) for name in options.compare]) if current else []
    boxes = tuple(box for found, _finding in located for box in found)
    findings = (heart.finding(), *(finding for _found, finding in located), *(one.finding() for one in compared))
    same = (Flag.SAME_PICTURE,) if len({image.sha256 for image in study.images}) <= current else ()
    return Conclusion(
        findings=findings,
        description=look.value or "",
        removed=look.left_out,
        boxes=boxes,
        figures=await in_thread(_figures, study.images[current], boxes, current),
        flags=once((*same, *(flag for finding in findings for flag in finding.flags))),
    )


def _comparison(name: str) -> Question[str]:
    """What became of one finding; the step's name states which film is taken to be which."""
    return Question(
        f"{name.capitalize()} in picture 2 (current) against picture 1 (prior)",
        "The first picture is a prior chest film and the second one the current film of the same patient. "
        f"What became of {name}? Answer with one word: {', '.join(COURSES[:-1])} or {COURSES[-1]}.",
        one_of(*COURSES),
        otherwise=f"The prior chest film comes first, the current one second. How has {name} changed? "
        f"Answer with one word: {', '.join(COURSES[:-1])} or {COURSES[-1]}.",
        traced="Comparison",
    )


async def _located(film: Image, consult: Consult, name: str, place: int) -> tuple[tuple[Box, ...], Finding]:
    """The boxes of one structure in the film's pixels, and what is to be said about how they were read."""
    prompt = (
        f"Where is: {name}? Left and right are the patient's own. Answer with a JSON list of boxes only, each as "
        f'{{"box_2d": [y0, x0, y1, x1], "label": "..."}} with whole numbers from 0 to {SCALE} relative to the picture.'
    )
    question: Question[list[dict[str, Any]]] = Question(
        f"{PLACE}{name}",
        prompt,
        json_of(BOXES),
        max_tokens=500,
        constrain=True,
        pictures=(place,),
        traced="Location",
    )
    answer: Answer[list[dict[str, Any]]] = (await consult.ask_all([question]))[0]
    said = answer.value or []
    boxes = tuple(box for one in said if (box := unpadded(one["box_2d"], one["label"], film, place)) is not None)
    lost = (Flag.OUTSIDE_PICTURE,) if len(boxes) < len(said) else ()
    value = None if answer.value is None else tuple(map(_place, boxes))
    finding = Finding(name=question.step, value=value, step=answer.step, flags=(*answer.flags, *lost))
    return boxes, finding


def _place(box: Box) -> str:
    """A box in words, in whole pixels of the film."""
    return f"rows {box.top:.0f} to {box.bottom:.0f}, columns {box.left:.0f} to {box.right:.0f}"


def unpadded(box: Sequence[int], label: str, film: Image, place: int = 0) -> Box | None:
    """A box [y0, x0, y1, x1] in thousandths of the padded square, in the film's pixels; None where nothing is left.

    What reaches into the padding is cut off. Where the film lies in the square is told by the very code that pads it
    for the model.
    """
    y0, x0, y1, x1 = box
    top, left, bottom, right = padding(film.width, film.height).restore((y0, x0, y1, x1))
    top, bottom = (min(max(edge, 0.0), film.height) for edge in (top, bottom))
    left, right = (min(max(edge, 0.0), film.width) for edge in (left, right))
    if bottom <= top or right <= left:
        return None
    return Box(label=label, picture=place, top=top, left=left, bottom=bottom, right=right)


def _figures(film: Image, boxes: Sequence[Box], place: int) -> tuple[Figure, ...]:
    if not boxes:
        return ()
    caption = "Where the model places: " + ", ".join(box.label for box in boxes)
    return (Figure(name="boxes", caption=caption, png=overlay.boxes(film, boxes), picture=place),)


workflow = Workflow(
    name="chest-xray",
    title="Chest X-ray report",
    summary="A description of a chest film, boxes around anatomy on request, and a comparison with a prior film.",
    modality=Modality.XRAY,
    run=run,
    options=ChestOptions,
    max_images=2,
    domain=Domain(
        takes="a frontal chest film, or a prior and a current one in this order",
        modalities=frozenset({Modality.XRAY}),
        looks=(guard.grey,),
        kind="chest X-ray",
        each=True,
    ),
)
