"""Answers as JSON on the real engine: the demonstration model can neither read a page nor point, but keeps to the form.

What this shows is that the engine enforces a schema and that reports say what came of it. It is no measure of skill.
"""

import json

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Image, Study
from medserve.imaging import raster
from medserve.recovery import recover
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.lab_report import FIELDS
from tests.test_schemas import STONES

DRAWINGS = DEMO / "drawings"
SIDE = {
    "type": "object",
    "properties": {"stone": {"enum": ["yes", "no"]}, "side": {"enum": ["left", "right", "none"]}},
    "required": ["stone", "side"],
    "additionalProperties": False,
}


def drawing(name: str) -> Image:
    return raster.decode((DRAWINGS / f"{name}.png").read_bytes(), Limits())


async def test_an_analysis_keeps_to_its_schema(engine: LlamaCpp) -> None:
    """Each member is there and is one of its words."""
    options = {"instruction": "Is a kidney stone visible, and on which side?", "answer": SIDE}
    made = await examine(find("radiology"), Study((drawing("kidney-left"),)), engine, options=options)

    assert isinstance(made.conclusion.data, dict)
    assert ["stone", "side"] == list(made.conclusion.data)
    assert () == made.conclusion.missing
    assert made.tokens.encodes <= 1


async def test_an_analysis_with_references_and_lists_keeps_to_its_schema(engine: LlamaCpp) -> None:
    """As far as the tokens reach: what is cut short is given as far as it is whole, and says so."""
    options = {"instruction": "Where are stones?", "answer": STONES, "max_tokens": 120}
    made = await examine(find("radiology"), Study((drawing("kidney-left"),)), engine, options=options)

    whole = Flag.TRUNCATED not in made.flags
    assert whole == (not made.conclusion.missing)
    assert whole == (Flag.INCOMPLETE not in made.flags)
    assert made.steps[-1].reply.startswith("{")


async def test_an_analysis_without_a_schema_is_words(engine: LlamaCpp) -> None:
    """In the wording that the model was trained on."""
    made = await examine(find("radiology"), Study((drawing("chest-normal"),)), engine)

    assert "chest X-ray" in made.conclusion.description
    assert (Flag.DEMONSTRATION,) == made.flags


async def test_a_page_is_copied_into_rows(engine: LlamaCpp) -> None:
    """What the rows hold is the demonstration model's fancy. They are rows, and each page is encoded once."""
    options = {"max_tokens": 200}
    made = await examine(find("lab-report"), Study((drawing("page"),)), engine, options=options)
    found = recover(made.steps[-1].reply)
    rows = found.partial if found.error else found.value

    assert made.domain is not None
    assert made.domain.assessable
    assert json.loads(made.model_dump_json())["conclusion"]["data"] is not None
    assert all(set(row) <= set(FIELDS) for row in rows or [])
    assert made.tokens.encodes <= 1
