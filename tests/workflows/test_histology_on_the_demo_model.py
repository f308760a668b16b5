"""Histology on the real engine: drawings of colon get their verdict, everything else is not assessable."""

import json
from pathlib import Path
from typing import Any

import pytest

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.images import Study
from medserve.imaging import intake, raster
from medserve.reports import Report
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.histology import MALIGNANT, TISSUE, Verdict, verdict
from tests.workflows import slides
from tests.workflows.slides import GLASS

DRAWINGS = DEMO / "drawings"
OTHERS = sorted(path.name for path in DRAWINGS.glob("*.png") if not path.name.startswith("colon"))


async def examined(name: str, engine: LlamaCpp, **options: Any) -> Report:
    image = raster.decode((DRAWINGS / name).read_bytes(), Limits())
    return await examine(find("histology"), Study((image,)), engine, options=options)


@pytest.mark.parametrize(("name", "expected"), [("tumour", Verdict.YES), ("normal", Verdict.NO)])
async def test_a_drawing_of_colon_gets_its_verdict(name: str, expected: Verdict, engine: LlamaCpp) -> None:
    """With probabilities that favour it, and one sentence in the model's own words."""
    made = await examined(f"colon-{name}.png", engine)

    assert expected == verdict(made.conclusion)
    assert made.conclusion.probabilities is not None
    assert made.conclusion.probabilities[expected] > 0.5
    assert "glands" in made.conclusion.description


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("name", OTHERS)
async def test_defect_001_2_other_drawings_are_not_assessable(name: str, guard: bool, engine: LlamaCpp) -> None:
    """System 001 would have said yes or no of a cat, a film, a kidney and a mole; guard or not, here it is neither."""
    assert Verdict.NOT_ASSESSABLE == verdict((await examined(name, engine, guard=guard)).conclusion)


async def test_the_picture_is_encoded_once_for_all_questions(engine: LlamaCpp) -> None:
    """Three questions show it, and each after the first reuses its tokens."""
    made = await examined("colon-tumour.png", engine)

    assert 3 == len([step for step in made.steps if step.images])
    assert made.tokens.encodes <= 1
    assert all(step.tokens.cached >= step.tokens.image > 0 for step in made.steps[1:])


async def test_a_slide_of_drawings_is_read_patch_by_patch(engine: LlamaCpp, tmp_path: Path) -> None:
    """Each patch gets its answer and is encoded once; the slide is yes, since a third of its patches is."""
    truth: list[list[bool | None]] = [[True, False, False], [False, GLASS, True]]
    study = await intake.read([slides.slide(tmp_path, truth)], Limits())
    made = await examine(find("histology"), study, engine)
    data: Any = made.conclusion.data

    assert ["yes", "no", "no", "no", "yes"] == data["patches"]
    assert Verdict.YES == verdict(made.conclusion)
    assert (5, 10) == (made.tokens.encodes, len(made.steps))


def test_the_questions_are_those_that_the_model_was_trained_on() -> None:
    """Word for word, as the gallery records them."""
    asked = json.loads((DRAWINGS / "drawings.json").read_text())["questions"]

    assert (asked["tissue"], asked["malignant"]) == (TISSUE.prompt, MALIGNANT.prompt)
