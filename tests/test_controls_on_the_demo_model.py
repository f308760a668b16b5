"""On the real engine: drawings are answered by looking at them, and every closed question has its probabilities."""

from pathlib import Path
from typing import Any

import pytest

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import GenerationRequest, Message
from medserve.images import Study
from medserve.imaging import raster
from medserve.reports import Report
from medserve.settings import Limits
from medserve.workflow import Question
from medserve.workflows import dermoscopy, find, histology
from tests.pictures import drawn
from tools.demo_model import questions
from tools.demo_model.accounts import WAYS_TO_ASK

DATA = Path(__file__).parent / "data"


async def examined(engine: LlamaCpp, workflow: str, name: str, **options: Any) -> Report:
    return await examine(find(workflow), drawn(name), engine, options=options)


@pytest.mark.parametrize(
    ("workflow", "name"),
    [("dermoscopy", "lesion-nv"), ("dermoscopy", "lesion-bkl"), ("histology", "colon-normal")],
)
async def test_the_answers_about_a_drawing_depend_on_it(engine: LlamaCpp, workflow: str, name: str) -> None:
    """Without the picture, and with another one, something else is said; in other words, the same."""
    made = await examined(engine, workflow, name, controls="blank,swapped,paraphrase")
    paraphrase, blank, swapped = made.controls

    assert made.depends_on_picture is True
    assert Flag.PICTURE_IGNORED not in made.flags
    assert blank.changed
    assert swapped.changed
    assert blank.distance is not None
    assert blank.distance > 0.5
    assert ((), True) == (paraphrase.changed, bool(paraphrase.reworded))
    assert Flag.WORDING_MATTERS not in made.flags


async def test_each_picture_of_a_control_is_encoded_once(engine: LlamaCpp) -> None:
    """The paraphrase uses the work on the picture once more; an exchanged picture costs one encode."""
    made = await examined(engine, "dermoscopy", "lesion-bcc", controls="paraphrase,blank,swapped")
    encodes = [sum(step.tokens.encodes for step in run.steps) for run in made.controls]

    assert sum(step.tokens.encodes for step in made.steps) <= 1
    assert 0 == encodes[0]
    assert max(encodes[1:]) <= 1  # none where the engine keeps that very picture from an earlier control
    assert all(step.tokens.image for run in made.controls for step in run.steps if step.images)


async def test_every_closed_question_has_probabilities_that_are_those_of_the_logits(engine: LlamaCpp) -> None:
    """They add up to one, and are what `score` says of the same prompt."""
    made = await examined(engine, "dermoscopy", "lesion-mel", signs=True, probabilities=True)
    given = {one.name: one.probabilities for one in made.conclusion.findings if one.probabilities}
    picture = drawn("lesion-mel").images[0]
    scored = await engine.score(
        GenerationRequest((Message("user", (picture, dermoscopy.NETWORK)),), max_tokens=32), ("yes", "no")
    )

    assert {
        "Shape",
        "Pigment network",
        "Regression or blue-white veil",
        "Comedo-like openings or milia-like cysts",
    } == set(given)
    assert all(pytest.approx(1.0) == sum(shares.values()) for shares in given.values())
    assert scored.probabilities == pytest.approx(given["Pigment network"], abs=1e-4)
    assert made.conclusion.probabilities is not None
    assert pytest.approx(1.0) == sum(made.conclusion.probabilities.values())


@pytest.mark.parametrize(("threshold", "sure"), [(0.5, True), (1.0, False)])
async def test_no_answer_is_more_probable_than_a_threshold_of_one(
    engine: LlamaCpp, threshold: float, sure: bool
) -> None:
    """Under the threshold an answer is none and flagged; over it nothing changes."""
    made = await examined(engine, "dermoscopy", "lesion-nv", threshold=threshold)

    assert ("NV" if sure else None) == made.conclusion.label
    assert sure is (Flag.INDETERMINATE not in made.flags)


async def test_a_cat_and_a_drawn_cat_get_no_class(engine: LlamaCpp) -> None:
    """The photograph by its pixels; a drawn one too, or else with the model's doubt on it."""
    cat = Study((raster.decode((DATA / "guard" / "cat.jpg").read_bytes(), Limits()),))
    photograph = await examine(find("dermoscopy"), cat, engine)
    drawing = await examined(engine, "dermoscopy", "cat")

    assert (None, 0) == (photograph.conclusion.label, len(photograph.steps))
    assert Flag.NOT_ASSESSABLE in photograph.flags
    assert {Flag.NOT_ASSESSABLE, Flag.DOMAIN_DOUBT} & set(drawing.flags)


@pytest.mark.parametrize("name", ["ISIC_0000071", "ISIC_0000166", "ISIC_0000198", "ISIC_0000548"])
async def test_a_real_photograph_is_not_refused_by_a_model_that_knows_drawings(engine: LlamaCpp, name: str) -> None:
    """Whatever the model takes it for: it ends in a report."""
    of = Study((raster.decode((DATA / "dermoscopy" / f"{name}.jpg").read_bytes(), Limits()),))

    assert Flag.NOT_ASSESSABLE not in (await examine(find("dermoscopy"), of, engine)).flags


async def test_a_film_is_no_ct_and_a_ct_no_film(engine: LlamaCpp) -> None:
    """Grey drawings without tags, of which only the model can tell what they are."""
    film = await examined(engine, "kidney-stones", "chest-normal")
    right = await examined(engine, "chest-xray", "chest-normal")

    assert film.domain is not None
    assert ("the model's own word", False) == (film.domain.checks[-1].name, film.domain.checks[-1].passed)
    assert (True, False) == tuple(Flag.NOT_ASSESSABLE in one.flags for one in (film, right))


def test_the_other_words_are_those_that_the_model_was_trained_on() -> None:
    """So that the paraphrase control of a drawing tests the control and not the model's reading."""
    asked: tuple[Question[Any], ...] = (*dermoscopy.FEATURES, *dermoscopy.SIGNS, histology.TISSUE, histology.MALIGNANT)
    known = (*questions.OBSERVED, questions.TISSUE, questions.MALIGNANT)
    for question, trained in zip(asked, known, strict=True):
        assert trained.own == question.prompt
        assert question.otherwise in {f"{stem} {end}" for stem in trained.trained for end in trained.endings}

    assert {dermoscopy.WHICH, dermoscopy.WHICH_OTHERWISE} <= set(WAYS_TO_ASK)
