"""Controls find out an answer that does not depend on the picture, or that depends on the words."""

from typing import Any

import numpy as np
import pytest

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest, NotSupported
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Modality, Study
from medserve.readers import one_of
from medserve.replay import replayed
from medserve.reports import Conclusion, Finding, Report, as_text
from medserve.workflow import Consult, Options, Question, Workflow
from medserve.workflows import find
from tests.pictures import drawn, study
from tests.workflows.test_dermoscopy import ANSWERS, TAKEN

LESION = drawn("lesion-mel")
SIZE = Finding(name="Size", value=12.0, unit="mm", source="measured")


def asking(otherwise: str = "Do you see a stone?") -> Workflow:
    """A workflow of one closed question, with a measurement beside it that no picture changes."""

    async def run(_study: Study, consult: Consult, _options: Options) -> Conclusion:
        question = Question("Stone", "Is a stone visible?", one_of("yes", "no"), otherwise=otherwise)
        (answer,) = await consult.ask_all([question])
        return Conclusion(findings=(answer.finding(), SIZE), label=answer.value)

    return Workflow("one", "One question", "", Modality.CT, run, labels={"yes": "", "no": ""})


def sure(word: str, share: float) -> Reply:
    """An answer, and the probability of yes."""
    return Reply(word, label_logprobs={"yes": float(np.log(share)), "no": float(np.log(1 - share))})


async def controlled(kinds: Any, *replies: str | Reply, workflow: Workflow | None = None, **options: Any) -> Report:
    chosen = {"controls": kinds, **options}
    return await examine(workflow or asking(), study(), Scripted(replies), options=chosen)


@pytest.mark.parametrize("kind", ["blank", "swapped"])
async def test_an_answer_that_stays_without_its_picture_is_flagged(kind: str) -> None:
    """The same word as before: whatever it was read from, it was not the picture."""
    made = await controlled([kind], "yes", "yes")

    assert Flag.PICTURE_IGNORED in made.flags
    assert made.depends_on_picture is False
    assert made.needs_review
    assert (("Stone", "label"), ()) == (made.controls[0].same, made.controls[0].changed)
    assert "THE ANSWERS DO NOT DEPEND ON THE PICTURE" in as_text(made)


@pytest.mark.parametrize("kind", ["blank", "swapped"])
async def test_an_answer_that_changes_with_the_picture_is_not(kind: str) -> None:
    """And the report says so."""
    made = await controlled([kind], "yes", "no")

    assert ((), True, False) == (made.flags, made.depends_on_picture, made.needs_review)
    assert ("Stone", "label") == made.controls[0].changed
    assert "the answers depend on the picture" in as_text(made)


@pytest.mark.parametrize(("before", "after", "depends"), [(0.02, 0.30, True), (0.02, 0.04, False)])
async def test_the_same_word_with_another_probability_depends_on_the_picture(
    before: float, after: float, depends: bool
) -> None:
    """An empty picture has no stone either: that the word is the same says nothing, where the probability moved."""
    made = await controlled(["blank"], sure("no", before), sure("no", after))

    assert depends is made.depends_on_picture
    assert pytest.approx(after - before) == made.controls[0].distance
    assert (Flag.PICTURE_IGNORED in made.flags) is not depends


async def test_one_picture_control_without_effect_is_enough() -> None:
    """The picture has to matter every time."""
    made = await controlled(["blank", "swapped"], "yes", "no", "yes")

    assert (["blank", "swapped"], False) == ([run.kind for run in made.controls], made.depends_on_picture)
    assert Flag.PICTURE_IGNORED in made.flags


async def test_another_answer_to_other_words_is_flagged() -> None:
    """What was asked otherwise is named; nothing is said about the picture."""
    made = await controlled(["paraphrase"], "yes", "no")

    assert (Flag.WORDING_MATTERS,) == made.flags
    assert (("Stone",), ("Stone", "label")) == (made.controls[0].reworded, made.controls[0].changed)
    assert "Do you see a stone?" == made.controls[0].steps[0].prompt
    assert made.depends_on_picture is None


async def test_the_same_answer_to_other_words_is_not_flagged() -> None:
    """Words alone changed nothing."""
    made = await controlled(["paraphrase"], "yes", "yes")

    assert ((), ("Stone", "label")) == (made.flags, made.controls[0].same)


async def test_a_question_without_other_words_is_not_said_to_have_passed() -> None:
    """Nothing was asked otherwise, so nothing was compared."""
    made = await controlled(["paraphrase"], "yes", "yes", workflow=asking(otherwise=""))

    assert ((), (), ()) == (made.controls[0].same, made.controls[0].changed, made.controls[0].reworded)
    assert "no question of this workflow has other words" in as_text(made)


async def test_answers_that_cannot_be_read_are_not_compared() -> None:
    """Twice nothing is not the same answer."""
    made = await controlled(["blank"], "It is hard to tell.", "It is hard to tell.")

    assert made.depends_on_picture is None
    assert Flag.PICTURE_IGNORED not in made.flags


async def test_measurements_are_not_compared() -> None:
    """They were not made on what the model was shown."""
    made = await controlled(["blank"], "yes", "no")

    assert "Size" not in (*made.controls[0].changed, *made.controls[0].same)


async def test_the_blank_picture_is_grey_and_of_the_same_size_and_the_swapped_one_another() -> None:
    """The model sees what the control says that it sees."""
    engine = Scripted(("yes", "no", "no"))
    await examine(asking(), study(), engine, options={"controls": ["swapped", "blank"]})
    first, blank, swapped = (request.images[0] for request in engine.history)

    assert (first.width, first.height, {128}) == (blank.width, blank.height, set(blank.pixels.ravel().tolist()))
    assert 3 == len({first.sha256, blank.sha256, swapped.sha256})
    assert len(set(swapped.pixels.ravel())) > 2


async def test_a_given_study_is_shown_by_the_swapped_control() -> None:
    """An evaluation swaps the pictures of its own cases."""
    engine = Scripted(("yes", "no"))
    await examine(asking(), study(), engine, options={"controls": ["swapped"]}, other=study(7))

    assert {7} == set(engine.history[1].images[0].pixels.ravel())


async def test_without_controls_nothing_runs_twice() -> None:
    """And nothing is said about the picture."""
    made = await controlled([], "yes")

    assert ((), None, 1) == (made.controls, made.depends_on_picture, made.tokens.encodes)


async def test_what_is_not_assessable_has_no_controls() -> None:
    """Nothing was answered, so nothing can be compared."""
    made = await examine(find("dermoscopy"), study(), Scripted(()), options={"controls": ["blank"]})

    assert (((Flag.NOT_ASSESSABLE,)), ()) == (made.flags, made.controls)


async def test_a_report_with_controls_is_replayed() -> None:
    """Their answers are part of the record, and a changed one is seen."""
    answers = (TAKEN, *ANSWERS[:-1], "MEL")
    engine = Scripted((*answers, *answers[1:-1], "NV", *answers[1:-1], "MEL"))
    made = await examine(find("dermoscopy"), LESION, engine, options={"controls": ["blank", "paraphrase"]})
    kept = Report.model_validate_json(made.model_dump_json())
    blank = kept.controls[1]
    other = blank.model_copy(update={"steps": (*blank.steps[:-1], blank.steps[-1].model_copy(update={"reply": "BCC"}))})

    assert ["paraphrase", "blank"] == [run.kind for run in kept.controls]
    assert (Flag.PICTURE_IGNORED, Flag.WORDING_MATTERS) == kept.flags
    assert kept.same_answers(await replayed(kept, LESION))
    changed = kept.model_copy(update={"controls": (kept.controls[0], other)})
    assert not kept.same_answers(await replayed(changed, LESION))


@pytest.mark.parametrize("given", ["blank,swapped", "blank, swapped,", ["blank", "swapped"]])
async def test_controls_are_a_list_or_names_between_commas(given: Any) -> None:
    """As a command line gives them."""
    assert ("blank", "swapped") == asking().chosen({"controls": given}).controls


@pytest.mark.parametrize("given", ["blink", ["blank", "blink"], 3])
async def test_an_unknown_control_is_named_by_its_field(given: Any) -> None:
    """And nothing runs."""
    with pytest.raises(InvalidRequest) as caught:
        await controlled(given, "yes")

    assert str(caught.value.param).startswith("options.controls")


# --- probabilities and thresholds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "expected", "flags"), [(0.8, "yes", ()), (0.95, None, (Flag.INDETERMINATE,)), (None, "yes", ())]
)
async def test_an_answer_under_the_threshold_is_indeterminate(
    threshold: float | None, expected: str | None, flags: tuple[Flag, ...]
) -> None:
    """With its probabilities still there to be seen."""
    made = await controlled([], sure("yes", 0.9), threshold=threshold, probabilities=True)

    assert (expected, flags) == (made.conclusion.label, made.flags)
    assert made.conclusion.findings[0].probabilities == pytest.approx({"yes": 0.9, "no": 0.1})


async def test_the_threshold_holds_for_the_answer_that_was_given() -> None:
    """The word says yes and its probability is small: that another one is probable does not help it."""
    made = await controlled([], sure("yes", 0.1), threshold=0.8)

    assert {Flag.LABEL_DISAGREEMENT, Flag.INDETERMINATE} == set(made.flags)
    assert made.conclusion.label is None


async def test_nothing_is_scored_unless_it_is_asked_for() -> None:
    """Probabilities cost a prompt each."""
    assert (await controlled([], sure("yes", 0.9))).conclusion.findings[0].probabilities is None


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"probabilities": True}])
async def test_what_an_engine_cannot_give_is_not_silently_left_out(options: dict[str, Any]) -> None:
    """A threshold that holds nothing back would be worse than none."""
    with pytest.raises(NotSupported, match="leave out probabilities and threshold"):
        await controlled([], "yes", **options)
