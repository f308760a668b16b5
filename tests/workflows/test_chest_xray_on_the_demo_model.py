"""Chest films on the real engine: drawings get their answer, and boxes are at least well formed."""

import json

import pytest

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Image, Study
from medserve.imaging import raster
from medserve.readers import json_of
from medserve.reports import Report
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.chest_xray import BOXES, HEART

DRAWINGS = DEMO / "drawings"
OTHERS = sorted(path.name for path in DRAWINGS.glob("*.png") if not path.name.startswith("chest"))


def drawing(name: str) -> Image:
    return raster.decode((DRAWINGS / name).read_bytes(), Limits())


async def examined(engine: LlamaCpp, *names: str, **options: object) -> Report:
    return await examine(find("chest-xray"), Study(tuple(map(drawing, names))), engine, options=options)


@pytest.mark.parametrize(("name", "expected"), [("large-heart", "yes"), ("normal", "no")])
async def test_a_drawing_gets_its_answer(name: str, expected: str, engine: LlamaCpp) -> None:
    """With a description in the model's own words and no flag but that it is a demonstration."""
    made = await examined(engine, f"chest-{name}.png")

    assert expected == made.conclusion.findings[0].value
    assert "chest X-ray" in made.conclusion.description
    assert (Flag.DEMONSTRATION,) == made.flags


@pytest.mark.parametrize("name", OTHERS)
async def test_other_drawings_are_refused_with_the_reason(name: str, engine: LlamaCpp) -> None:
    """A lesion, a tissue, a cat, a page and a grey CT slice: none is asked about its heart."""
    made = await examined(engine, name)

    assert (Flag.NOT_ASSESSABLE,) == made.conclusion.flags
    assert made.domain is not None
    assert [check.detail for check in made.domain.checks if check.passed is False]
    assert {"Kind of picture"} >= {step.name for step in made.steps}


async def test_the_film_is_encoded_once_for_all_questions(engine: LlamaCpp) -> None:
    """The guard's word, the heart, the description and two places: one run of the vision encoder."""
    made = await examined(engine, "chest-large-heart.png", locate=["heart", "left lung"])

    assert 5 == len([step for step in made.steps if step.images])
    assert made.tokens.encodes <= 1
    assert all(step.tokens.cached >= step.tokens.image > 0 for step in made.steps[1:])


async def test_boxes_are_well_formed_though_the_model_cannot_point(engine: LlamaCpp) -> None:
    """The demonstration model was never taught to box. The engine holds it to the form, which is all this shows."""
    made = await examined(engine, "chest-large-heart.png", locate=["heart"])
    (step,) = [step for step in made.steps if step.name == "Place of heart"]

    assert json_of(BOXES).read(step.reply).value is not None
    assert isinstance(json.loads(step.reply), list)
    assert all(0 <= box.top < box.bottom <= 224 for box in made.conclusion.boxes)


async def test_two_films_go_through_every_question(engine: LlamaCpp) -> None:
    """The demonstration model was never taught to compare: what it says is read, or flagged, and nothing is assumed."""
    made = await examined(engine, "chest-normal.png", "chest-large-heart.png")
    compared = [one for one in made.conclusion.findings if "against" in one.name]

    assert 5 == len(compared)
    assert all((one.value is None) == bool(one.flags) for one in compared)
    assert made.tokens.encodes <= 3  # the current film by itself, and again after the prior one


def test_the_question_is_the_one_that_the_model_was_trained_on() -> None:
    """Word for word, as the gallery records it."""
    asked = json.loads((DRAWINGS / "drawings.json").read_text())["questions"]

    assert asked["heart"] == HEART.prompt
