"""A report tells what the files give cause for, to people and to programs, and nothing of it is lost on the way."""

from dataclasses import replace
from typing import Any

import pytest

from medserve.engines.scripted import Scripted
from medserve.examination import examine
from medserve.exports.document import with_unit
from medserve.images import Concern, Modality, Study
from medserve.imaging import intake
from medserve.imaging.intake import Wanted
from medserve.reports import Conclusion, Finding, Report, as_text, in_words
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from tests.hostile import samples
from tests.imaging import phantoms
from tests.pictures import drawn
from tests.workflows.test_dermoscopy import ANSWERS, TAKEN

WORKFLOW = find("dermoscopy")
LARGE = replace(WORKFLOW, modality=Modality.CT, max_images=85, domain=None)


async def report(of: Study, workflow: Any = WORKFLOW) -> Report:
    """A clean dermoscopy report of a study."""
    return await examine(workflow, of, Scripted((TAKEN, *ANSWERS) if workflow.domain else ANSWERS))


async def test_concerns_are_in_the_record_and_in_the_text_and_need_review() -> None:
    """By name and in words; without them the same report is complete."""
    made = await report(replace(drawn("lesion-mel"), concerns=(Concern.LOSSY_COMPRESSED, Concern.BURNED_IN_TEXT)))
    text = " ".join(as_text(made).split())

    assert made.needs_review
    assert ["lossy_compressed", "burned_in_text"] == [one.name for one in made.study.concerns]
    assert "Concerns lossy_compressed: the pixels were compressed with loss" in text
    assert "burned_in_text: text, perhaps a name, may be drawn into the picture" in text
    assert not (await report(drawn("lesion-mel"))).needs_review


async def test_a_measure_without_a_value_was_not_measured_and_has_no_unit() -> None:
    """A single slice has no volume. Nobody failed to read it, so that only what the model said is "not readable"."""
    volume = Finding(name="Stone 1: volume", value=None, unit="mm3", source="measured")
    side = Finding(name="Side", value=None)
    made = (await report(drawn("lesion-mel"))).model_copy(update={"conclusion": Conclusion(findings=(volume, side))})
    lines = [line.strip() for line in as_text(made).split("\n")]

    assert "Stone 1: volume  not measured" in lines
    assert "Side             not readable" in lines
    assert ("not measured", "not readable") == (with_unit(volume), with_unit(side))


async def test_a_volumes_geometry_is_in_the_report() -> None:
    """Spacing, labels, slice numbers and what the files say; and it survives its JSON."""
    read = await intake.read(phantoms.series(phantoms.abdomen()), Limits(), Wanted(Modality.CT))
    made = await report(read, LARGE)

    assert (2.0, 0.8, 0.7) == pytest.approx(made.study.spacing)
    assert "SLICE 12" == made.study.labels[-1]
    assert tuple(range(12)) == made.study.slices
    assert "CT" == made.study.facts["modality"]
    assert made.study == Report.model_validate_json(made.model_dump_json()).study
    assert "(12 pictures) 2 x 0.8 x 0.7 mm" in " ".join(as_text(made).split())
    assert not any(secret in made.model_dump_json() for secret in phantoms.SECRETS.values())


async def test_a_file_of_another_modality_is_said_to_be_one() -> None:
    """A chest CT in a dermoscopy workflow keeps its modality, is flagged and needs a review."""
    read = await intake.read([samples.dicom()], Limits(), Wanted(Modality.DERMOSCOPY))
    made = await report(read)

    assert Modality.CT is made.study.modality
    assert "wrong_modality" in [one.name for one in made.study.concerns]
    assert made.needs_review


@pytest.mark.parametrize(
    ("stated", "wrong"), [("XC", False), ("DMS", False), ("OT", False), ("MG", True), ("CT", True), ("SM", True)]
)
async def test_what_a_dicom_file_says_is_compared_with_what_the_workflow_is_for(stated: str, wrong: bool) -> None:
    """Photographs are dermoscopy's old name; a file that says nothing contradicts nothing."""
    pixels = samples.drawing(64, 64)
    data = phantoms.dicom(pixels, sop_class=phantoms.SCREENSHOT, modality=stated, BurnedInAnnotation="NO")
    made = await report(await intake.read([data], Limits(), Wanted(WORKFLOW.modality)))

    assert wrong == ("wrong_modality" in [one.name for one in made.study.concerns])


async def test_a_plain_picture_is_what_the_workflow_is_for() -> None:
    """It does not say how it was made, so the workflow's word stands."""
    made = await report(await intake.read([DEMO / "drawings" / "lesion-mel.png"], Limits(), Wanted(WORKFLOW.modality)))

    assert (Modality.DERMOSCOPY, (), False) == (made.study.modality, made.study.concerns, made.needs_review)


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "yes"), (False, "no"), (2.5, "2.5"), (("dots", "streaks"), "dots, streaks"), ((), "none")],
)
async def test_a_finding_is_told_in_the_same_words_in_the_text_and_in_documents(value: Any, words: str) -> None:
    finding = Finding(name="Streaks", value=value)
    made = await report(drawn("lesion-mel"))
    told = as_text(made.model_copy(update={"conclusion": Conclusion(findings=(finding,))}))
    assert in_words(value) == with_unit(finding) == words
    assert f"Streaks  {words}" in told
