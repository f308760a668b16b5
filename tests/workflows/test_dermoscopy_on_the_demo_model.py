"""Dermoscopy on the real engine: drawings are read right, a picture is encoded once, and reuse changes no word."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from medserve.engines import llama_cpp
from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Study
from medserve.imaging import raster
from medserve.reports import DEMO_NOTICE, Report, as_text
from medserve.settings import DEMO, DEMO_MODEL, Limits, Settings
from medserve.workflows import find


async def examined(path: Path, engine: LlamaCpp, **options: Any) -> Report:
    image = raster.decode(path.read_bytes(), Limits())
    return await examine(find("dermoscopy"), Study((image,)), engine, options=options)


@pytest.mark.parametrize("kind", ["mel", "nv", "bcc", "bkl"])
async def test_a_drawing_is_given_its_class(kind: str, engine: LlamaCpp) -> None:
    """The model knows drawings, and the whole protocol brings its knowledge out."""
    report = await examined(DEMO / "drawings" / f"lesion-{kind}.png", engine, signs=True)

    assert kind.upper() == report.conclusion.label
    assert report.conclusion.probabilities is not None
    assert report.conclusion.label == max(
        report.conclusion.probabilities, key=report.conclusion.probabilities.__getitem__
    )


async def test_the_picture_is_encoded_once_for_all_questions(engine: LlamaCpp, dermoscopy: Path) -> None:
    """Nine questions show it and one encode serves them; each question after the first reuses its tokens."""
    report = await examined(dermoscopy, engine, signs=True)

    shown = [step for step in report.steps if step.images]
    assert 9 == len(shown)
    assert 1 == report.tokens.encodes
    assert all(step.tokens.cached >= step.tokens.image > 0 for step in shown[1:])


async def test_reuse_changes_no_word(engine: LlamaCpp, dermoscopy: Path) -> None:
    """Without reuse every question encodes the picture anew, and the report is the same word for word."""
    cold = await llama_cpp.start(DEMO_MODEL.model_copy(update={"reuse": False}), Settings())
    try:
        afresh = await examined(dermoscopy, cold)
    finally:
        await cold.close()

    assert 6 == afresh.tokens.encodes
    assert (await examined(dermoscopy, engine)).same_answers(afresh)


async def test_a_report_of_the_demonstration_model_always_needs_review(engine: LlamaCpp, dermoscopy: Path) -> None:
    """However sure of itself: it knows drawings, and the report says so in its flags and in its notice."""
    report = await examined(dermoscopy, engine)

    assert report.needs_review
    assert Flag.DEMONSTRATION in report.flags
    assert DEMO_NOTICE in report.notice


async def test_provenance_names_the_weights_by_their_content(engine: LlamaCpp, dermoscopy: Path) -> None:
    """Two files of one name are told apart by their fingerprint."""
    made = (await examined(dermoscopy, engine)).provenance

    assert ("llama-cpp", "medserve-demo") == (made.engine, made.facts["weights"])
    assert {"fingerprint", "build", "quantisation", "context"} <= set(made.facts)


async def test_the_readme_shows_a_report_as_it_is(engine: LlamaCpp) -> None:
    """Of the bundled photograph: every part, finding and flag, as many questions; numbers differ with processors."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```text\n")[1].split("```")[0]
    with resources.as_file(resources.files("medserve") / "examples" / "dermoscopy.jpg") as photograph:
        made = as_text(await examined(photograph, engine))

    assert parts(made) == parts(shown)


def parts(text: str) -> list[str]:
    """How each part of a report's text begins, and the names of the findings and flags in them."""
    begins = r"^(?:\d+ questions|[A-Z]\w*(?: \w+)*|  [A-Z]\w*(?: \w+)*(?=  )|  [a-z_]+(?=:))"
    return re.findall(begins, text, re.MULTILINE)
