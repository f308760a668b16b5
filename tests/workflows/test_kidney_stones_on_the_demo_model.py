"""Kidney stones on the real engine: the model finds the slices and the side of a drawn stone, and code measures it."""

from collections.abc import Sequence
from typing import Any

import pytest

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Study
from medserve.imaging import dicom
from medserve.reports import Report
from medserve.settings import Limits
from medserve.workflows import find
from medserve.workflows.kidney_stones import SIDE, STONE
from tests.workflows import kidneys
from tests.workflows.kidneys import Ball
from tools.demo_model import questions

SLICES, MIDDLE, DIAMETER, UNITS = 9, 4, 16.0, 900


def study(sides: Sequence[str], seed: int) -> Study:
    """A series of the drawing number `seed` with a round stone in the kidneys of these sides."""
    stones = [Ball((MIDDLE, *kidneys.inside(side, seed)), DIAMETER, UNITS) for side in sides]
    return dicom.study(kidneys.series(kidneys.abdomen(SLICES, stones, seed)), Limits())


async def examined(engine: LlamaCpp, sides: Sequence[str], seed: int = 6_100_000) -> Report:
    return await examine(find("kidney-stones"), study(sides, seed), engine)


def measured(made: Report) -> dict[str, Any]:
    return {one.name: one.value for one in made.conclusion.findings if one.source == "measured"}


@pytest.mark.parametrize("seed", [6_100_000, 6_100_001])
@pytest.mark.parametrize("side", ["left", "right"])
async def test_a_drawn_stone_is_pointed_at_and_measured(side: str, seed: int, engine: LlamaCpp) -> None:
    """The model says where, on the right side; diameter to 0.6 mm, greatest HU exactly, volume by its voxels."""
    made = await examined(engine, [side], seed)
    numbers = measured(made)
    pointed = [step.name for step in made.steps if step.name.endswith(STONE.step) and step.value == "yes"]

    assert f"SLICE {MIDDLE + 1}: {STONE.step}" in pointed
    assert {f"SLICE {place + 1}: {STONE.step}" for place in range(2, 7)} >= set(pointed)
    assert {side} == {step.value for step in made.steps if step.name.endswith(SIDE.step)}
    assert ("yes", side) == (made.conclusion.label, numbers["Stone 1: side"])
    assert numbers["Stone 1: largest diameter"] == pytest.approx(DIAMETER, abs=0.6)
    assert UNITS == numbers["Stone 1: greatest attenuation"]
    assert numbers["Stone 1: volume"] == pytest.approx(4 / 3 * 3.1416 * (DIAMETER / 2) ** 3, rel=0.2)
    assert Flag.MEASUREMENT_DISAGREEMENT not in made.flags


async def test_no_drawn_stone_is_no_stone(engine: LlamaCpp) -> None:
    """Said by the model of every slice, and borne out by the voxels."""
    made = await examined(engine, [])

    assert "no" == made.conclusion.label
    assert {} == measured(made)
    assert {Flag.DEMONSTRATION} == set(made.flags)


async def test_each_picture_is_encoded_once(engine: LlamaCpp) -> None:
    """However many questions are asked about it."""
    made = await examined(engine, ["left"], 6_100_007)

    assert SLICES == len({step.images for step in made.steps})
    assert SLICES < len(made.steps)
    assert SLICES == made.tokens.encodes


def test_the_questions_are_those_that_the_model_was_trained_on() -> None:
    """Word for word."""
    assert (questions.STONE.own, questions.STONE_SIDE.own) == (STONE.prompt, SIDE.prompt)
