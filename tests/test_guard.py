"""The guard lets in what a workflow takes and refuses what it does not, before anything is asked about it."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from medserve import guard, workflows
from medserve.engines.scripted import Reply, Scripted
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Image, Modality, Source, Study
from medserve.imaging import intake, raster
from medserve.imaging.intake import Wanted
from medserve.readers import one_of
from medserve.reports import Conclusion, Report, as_text
from medserve.settings import DEMO, Limits
from medserve.workflow import Consult, Domain, Options, Question, Workflow
from tests.imaging import phantoms
from tests.pictures import drawn, picture, study

DATA = Path(__file__).parent / "data"
PHOTOGRAPHS = sorted((DATA / "dermoscopy").glob("*.jpg"))
DRAWN = sorted(file.stem for file in (DEMO / "drawings").glob("*.png"))
TAKEN = {"lesion": "skin", "colon": "stained", "kidney": "windowed_ct", "chest": "grey"}
"""The look that is meant for each kind of drawing."""


def read(file: Path) -> Study:
    return Study((raster.decode(file.read_bytes(), Limits()),))


def shown(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Study:
    height, width = pixels.shape[:2]
    return Study((Image(pixels.copy(), Source("PNG", "RGB", width, height)),))


def page(paper: int = 252, ink: int = 20) -> Study:
    """Text on paper."""
    sheet = PIL.Image.new("RGB", (500, 600), (paper,) * 3)
    pen = PIL.ImageDraw.Draw(sheet)
    for row in range(20, 580, 16):
        pen.text((20, row), "Potassium 4.1 mmol/L (3.5 to 5.1)", (ink,) * 3)
    return shown(np.asarray(sheet))


def glass() -> Study:
    """A slide without tissue: light, uneven, with dust."""
    rng = np.random.default_rng(5)
    pixels = np.clip(rng.normal(238, 3, (256, 256, 3)), 0, 255).astype(np.uint8)
    pixels[40:60, 90:110] = 110
    return shown(pixels)


async def _says(of: Study, consult: Consult, options: Options) -> Conclusion:
    (answer,) = await consult.ask_all([Question("Anything", "Is anything visible?", one_of("yes", "no"))])
    return Conclusion(findings=(answer.finding(),), label=answer.value)


def taking(look: str = "", kind: str = "", modalities: Sequence[Modality] = ()) -> Workflow:
    """A workflow of one question with a domain."""
    looks = (guard.LOOKS[look],) if look else ()
    domain = Domain("what is asked for", frozenset(modalities), looks, kind)
    return Workflow("one", "One question", "", Modality.XRAY, _says, labels={"yes": "", "no": ""}, domain=domain)


async def report(workflow: Workflow, of: Study, *replies: str | Reply, guarded: bool = True) -> Report:
    return await examine(workflow, of, Scripted(replies), options={"guard": guarded})


# --- looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", PHOTOGRAPHS, ids=lambda file: file.stem)
def test_real_dermoscopic_photographs_have_the_colours_of_skin(file: Path) -> None:
    """And of nothing else that is looked for."""
    of = read(file)

    assert ["skin"] == [name for name, look in guard.LOOKS.items() if look(of).passed is not False]


@pytest.mark.parametrize("name", [name for name in DRAWN if name.split("-")[0] in TAKEN])
def test_each_kind_of_drawing_passes_its_own_look(name: str) -> None:
    """A film is grey, as much else is: of it, and of nothing else, it cannot be told."""
    let_in = {look for look, hold in guard.LOOKS.items() if hold(drawn(name)).passed is not False}

    assert TAKEN[name.split("-")[0]] in let_in
    assert let_in <= {TAKEN[name.split("-")[0]], "windowed_ct", "grey"}
    assert (None if name.startswith("chest") else True) is guard.LOOKS[TAKEN[name.split("-")[0]]](drawn(name)).passed


@pytest.mark.parametrize("look", guard.LOOKS)
@pytest.mark.parametrize("name", ["cat", "coffee"])
def test_an_everyday_photograph_passes_no_look(name: str, look: str) -> None:
    """A ginger cat and a brown table have the colours of skin, but not its calm."""
    assert guard.LOOKS[look](read(DATA / "guard" / f"{name}.jpg")).passed is False


def test_a_real_film_is_grey_and_nothing_more_can_be_told() -> None:
    """So that neither is skin nor a section, and a CT without its tags cannot be ruled out."""
    film = read(DATA / "guard" / "chest-film.jpg")

    assert [False, False, None, None] == [look(film).passed for look in guard.LOOKS.values()]


@pytest.mark.parametrize(("paper", "ink"), [(252, 20), (200, 40)])
def test_a_page_of_text_is_no_film_and_no_ct(paper: int, ink: int) -> None:
    """It is as grey as they are."""
    assert [False] * 4 == [look(page(paper, ink)).passed for look in guard.LOOKS.values()]


def test_a_ct_in_three_windows_is_known_by_its_arithmetic() -> None:
    """Green and blue follow from red; with red and green exchanged the same colours are no CT."""
    windows = drawn("kidney-left").images[0].pixels

    assert guard.windowed_ct(shown(windows)).passed
    assert guard.windowed_ct(shown(windows[..., [1, 0, 2]])).passed is False


def test_a_slide_is_judged_by_most_of_its_patches() -> None:
    """One that shows fat is none against it; empty glass is."""
    tissue, empty = drawn("colon-normal").images[0], glass().images[0]

    assert guard.stained(Study((tissue, tissue, empty))).passed
    assert "empty glass" in guard.stained(Study((empty, empty, tissue))).detail


# --- what is decided -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, one in workflows.workflows().items() if one.domain])
def test_every_workflow_says_what_it_takes(name: str) -> None:
    """In words, and its own modality is among those that it takes."""
    workflow = workflows.find(name)

    assert workflow.takes
    assert not workflow.modalities or workflow.modality in workflow.modalities


@pytest.mark.parametrize("name", [name for name, one in workflows.workflows().items() if one.domain])
@pytest.mark.parametrize("shade", [0, 128, 255])
async def test_a_picture_of_one_shade_is_not_assessable_anywhere(name: str, shade: int) -> None:
    """Nothing was asked, so nothing could be answered."""
    made = await report(workflows.find(name), study(shade))

    assert Flag.NOT_ASSESSABLE in made.flags
    assert made.conclusion == Conclusion(flags=(Flag.NOT_ASSESSABLE,))
    assert ((), True) == (made.steps, made.needs_review)


@pytest.mark.parametrize("name", ["dermoscopy", "histology", "chest-xray", "kidney-stones"])
@pytest.mark.parametrize("what", ["cat", "glass", "page"])
async def test_a_cat_empty_glass_and_a_page_never_get_a_diagnosis(name: str, what: str) -> None:
    """Told by what is computed, whatever a model would have said."""
    of = {"cat": read(DATA / "guard" / "cat.jpg"), "glass": glass(), "page": page()}[what]
    made = await report(workflows.find(name), of)

    assert made.conclusion == Conclusion(flags=(Flag.NOT_ASSESSABLE,))
    assert not made.steps


async def test_a_chest_film_in_dermoscopy_is_not_assessable() -> None:
    """The report says what the workflow takes and what was found instead."""
    made = await report(workflows.find("dermoscopy"), read(DATA / "guard" / "chest-film.jpg"))

    assert Flag.NOT_ASSESSABLE in made.flags
    assert made.conclusion.label is None
    assert "NOT ASSESSABLE: this workflow takes a dermoscopic photograph of one skin lesion" in as_text(made)
    assert "colours of skin: the picture has no colours" in as_text(made)


@pytest.mark.parametrize(("name", "taken"), [("kidney-stones", True), ("chest-xray", False), ("histology", False)])
async def test_what_a_dicom_file_states_is_believed(name: str, taken: bool) -> None:
    """A CT is a CT by its tags; an MR of the same pixels is none."""
    workflow = workflows.find(name)
    series = phantoms.series(phantoms.abdomen())
    slices = (await intake.reading(series, Limits(), Wanted(workflow.modality))).study
    (stated, *_rest) = (
        await guard.assess(Domain("", workflow.modalities), slices, Consult(Scripted(()), slices))
    ).checks

    assert taken is stated.passed
    assert "stated to be CT" == stated.detail


async def test_an_mr_is_no_ct() -> None:
    """Though both are grey slices of the same body."""
    of = replace(drawn("kidney-left"), modality=Modality.MR, facts=(("modality", "MR"),))
    made = await report(workflows.find("kidney-stones"), of)

    assert made.conclusion == Conclusion(flags=(Flag.NOT_ASSESSABLE,))
    assert "stated modality: stated to be MR" in as_text(made)


async def test_a_modality_that_no_workflow_knows_is_no_exception() -> None:
    """A mammogram states MG, which is neither a film of the chest nor unsaid."""
    of = replace(read(DATA / "guard" / "chest-film.jpg"), facts=(("modality", "MG"),))

    assert Flag.NOT_ASSESSABLE in (await report(workflows.find("chest-xray"), of)).flags


async def test_the_senders_word_counts_as_the_files() -> None:
    """Whoever says that a plain picture is an MR is not told what its kidneys show."""
    of = replace(drawn("kidney-left"), modality=Modality.MR)

    assert Flag.NOT_ASSESSABLE in (await report(workflows.find("kidney-stones"), of)).flags


async def test_where_something_speaks_for_the_picture_the_models_word_is_a_doubt() -> None:
    """A model that errs about the kind may still be asked, and somebody has to look."""
    made = await report(taking("skin", "dermoscopy"), drawn("lesion-nv"), "other", "yes")

    assert "yes" == made.conclusion.label
    assert (Flag.DOMAIN_DOUBT,) == made.flags
    assert made.needs_review
    assert "A doubt: this workflow takes what is asked for" in as_text(made)


async def test_without_a_doubt_there_is_no_flag() -> None:
    """A flag is worth something only if it can be absent."""
    made = await report(taking("skin", "dermoscopy"), drawn("lesion-nv"), "dermoscopy", "yes")

    assert ((), False) == (made.flags, made.needs_review)
    assert "doubt" not in as_text(made)


def _kind(word: str, taken: float) -> Reply:
    """A word for the kind, and the probability of a chest film."""
    shares = dict.fromkeys(guard.KINDS, (1 - taken) / 4) | {"chest X-ray": taken}
    return Reply(word, label_logprobs={kind: float(np.log(share)) for kind, share in shares.items()})


@pytest.mark.parametrize(("taken", "assessable"), [(0.09, False), (0.11, True)])
async def test_where_nothing_can_be_told_the_models_word_decides(taken: float, assessable: bool) -> None:
    """A grey picture without tags is refused if the model leaves a chest film less than one part in ten."""
    film = read(DATA / "guard" / "chest-film.jpg")
    made = await report(taking("grey", "chest X-ray"), film, _kind("other", taken), Reply("yes"))

    assert made.domain is not None
    assert assessable is made.domain.assessable
    assert (Flag.DOMAIN_DOUBT if assessable else Flag.NOT_ASSESSABLE) in made.flags
    assert "taken for other, and chest X-ray with a probability of" in made.domain.checks[-1].detail


async def test_a_stated_film_is_not_refused_by_the_models_word() -> None:
    """The file says DX; what the model takes it for is a doubt."""
    film = replace(read(DATA / "guard" / "chest-film.jpg"), modality=Modality.XRAY, facts=(("modality", "DX"),))
    made = await report(taking("grey", "chest X-ray", [Modality.XRAY]), film, _kind("other", 0.001), Reply("yes"))

    assert (Flag.DOMAIN_DOUBT,) == made.flags


async def test_a_word_that_cannot_be_read_decides_nothing() -> None:
    """It is neither for nor against the picture."""
    made = await report(taking("skin", "dermoscopy"), drawn("lesion-nv"), "I cannot tell.", "yes")

    assert made.domain is not None
    assert (None, "not readable") == (made.domain.checks[-1].passed, made.domain.checks[-1].detail)
    assert Flag.DOMAIN_DOUBT not in made.flags


async def test_a_threshold_is_for_the_workflows_own_answers() -> None:
    """An unsure word for the kind is no indeterminate answer."""
    engine = Scripted((_kind("chest X-ray", 0.4), Reply("yes", label_logprobs={"yes": -0.01, "no": -5.0})))
    film = read(DATA / "guard" / "chest-film.jpg")
    made = await examine(taking("grey", "chest X-ray"), film, engine, options={"threshold": 0.9})

    assert ("yes", ()) == (made.conclusion.label, made.flags)


async def test_the_guard_can_be_left_out() -> None:
    """Then the workflow's own questions are all that is asked, and the report has no domain."""
    made = await report(taking("skin", "dermoscopy"), study(), "yes", guarded=False)

    assert (None, 1) == (made.domain, len(made.steps))


async def test_a_series_is_known_by_its_first_picture() -> None:
    """The model's word costs one picture and not eighty-five."""
    film = read(DATA / "guard" / "chest-film.jpg").images[0]
    workflow = replace(taking("grey", "chest X-ray"), max_images=2)
    made = await report(workflow, Study((film, picture(90))), _kind("chest X-ray", 0.9), Reply("yes"))

    assert (film.sha256,) == made.steps[0].images


async def test_radiology_takes_every_modality_without_a_concern() -> None:
    """A CT is not the wrong modality of a workflow to which that does not matter."""
    slices = (await intake.reading(phantoms.series(phantoms.abdomen()), Limits(), Wanted())).study
    made = await report(workflows.find("radiology"), slices, "A body.")

    assert "wrong_modality" not in [one.name for one in made.study.concerns]
    assert Flag.NOT_ASSESSABLE not in made.flags


@pytest.mark.parametrize("name", [name for name in DRAWN if name.split("-")[0] in TAKEN])
@pytest.mark.parametrize("quality", [95, 85])
def test_a_lossy_copy_is_let_in_where_the_original_is(name: str, quality: int) -> None:
    """JPEG blurs colours, so that a CT may no longer be known; its own look does not refuse it, and others do."""
    copy = BytesIO()
    PIL.Image.fromarray(np.asarray(drawn(name).images[0].pixels)).save(copy, "JPEG", quality=quality)
    again = Study((raster.decode(copy.getvalue(), Limits()),))
    let_in = {look for look, hold in guard.LOOKS.items() if hold(again).passed is not False}

    assert TAKEN[name.split("-")[0]] in let_in
    assert let_in <= {TAKEN[name.split("-")[0]], "windowed_ct", "grey"}
