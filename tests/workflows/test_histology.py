"""The histology protocol: what it asks, when it gives no verdict, and that no verdict is anybody's guess."""

from typing import Any

import pytest

from medserve.engines.scripted import Reply, Scripted
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import Finish, Usage
from medserve.images import Study
from medserve.imaging import intake, raster
from medserve.imaging.intake import Wanted
from medserve.reports import Report
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.histology import Verdict, in_words, verdict
from tests.golden_reports import keep, kept, steady
from tests.imaging import phantoms

GOLDEN = "histology"
DRAWING = DEMO / "drawings" / "colon-tumour.png"

SURE = {"yes": -0.05, "no": -3.5}
UNSURE = {"yes": -3.5, "no": -0.05}
EXPLAINED = "yes. The glands are crowded and irregular with large dark nuclei."
TISSUE = Reply("yes", label_logprobs=SURE)
MALIGNANT = Reply("yes", label_logprobs=SURE)
ANSWERS = (TISSUE, MALIGNANT, EXPLAINED)


TILE = raster.decode(DRAWING.read_bytes(), Limits())


async def report(*replies: str | Reply) -> Report:
    """A report on a drawn tile, made of these replies."""
    return await examine(find("histology"), Study((TILE,)), Scripted(replies))


async def golden() -> Any:
    """The whole report on a drawing as JSON, without what differs from run to run."""
    tile = await intake.read([DRAWING.read_bytes()], Limits(), Wanted(find("histology").modality))
    made = await examine(find("histology"), tile, Scripted(ANSWERS))
    return steady(made)


async def test_the_golden_report() -> None:
    """The whole report on a drawing, prompts included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_histology
    """
    assert kept(GOLDEN) == await golden()


async def test_first_what_it_is_then_the_closed_question_then_one_sentence() -> None:
    """Each a conversation of its own that shows the picture."""
    made = await report(*ANSWERS)

    assert ["Stained section of colon", "Malignant gland changes", "Explanation"] == [step.name for step in made.steps]
    assert [1, 1, 1] == [len(step.images) for step in made.steps]


@pytest.mark.parametrize(("word", "logprobs", "expected"), [("Yes.", SURE, Verdict.YES), ("no", UNSURE, Verdict.NO)])
async def test_words_and_probabilities_that_agree_are_a_verdict(
    word: str, logprobs: dict[str, float], expected: Verdict
) -> None:
    """With the share of each answer, and no flag."""
    made = await report(TISSUE, Reply(word, label_logprobs=logprobs), f"{word.strip('.')}. The glands show it.")

    assert expected == verdict(made.conclusion) == made.conclusion.label
    assert made.conclusion.probabilities is not None
    assert expected == max(made.conclusion.probabilities, key=made.conclusion.probabilities.__getitem__)
    assert ((), False) == (made.flags, made.needs_review)


@pytest.mark.parametrize(
    "tissue",
    [
        Reply("no", label_logprobs=UNSURE),
        Reply("It is a cat.", label_logprobs=SURE),
        Reply("yes", label_logprobs=UNSURE),
        Reply("yes", label_logprobs={"yes": -6.0, "no": -7.0}),
        Reply("yes", label_logprobs=SURE, finish=Finish.STOP, usage=Usage(40, 1, 0, 0)),
        Reply("", label_logprobs=SURE),
    ],
    ids=["no", "unreadable", "improbable", "neither", "blind", "empty"],
)
async def test_defect_001_2_what_is_not_known_to_be_colon_is_not_assessable(tissue: Reply) -> None:
    """System 001 asked for cancer in any picture; here a doubt about the picture ends the protocol."""
    made = await report(tissue, MALIGNANT, EXPLAINED)

    assert Verdict.NOT_ASSESSABLE == verdict(made.conclusion)
    assert 1 == len(made.steps)
    assert (None, None) == (made.conclusion.label, made.conclusion.probabilities)
    assert Flag.NOT_ASSESSABLE in made.flags
    assert made.needs_review


@pytest.mark.parametrize(
    ("changes", "explanation", "flag"),
    [
        (Reply("no", label_logprobs=SURE), "no. The glands are round.", Flag.LABEL_DISAGREEMENT),
        (Reply("I cannot tell.", label_logprobs=SURE), EXPLAINED, Flag.UNREADABLE),
        (Reply("Consult your doctor.", label_logprobs={"yes": -9.0, "no": -9.5}), EXPLAINED, Flag.UNREADABLE),
        (Reply("yes", label_logprobs={"yes": -6.0, "no": -7.0}), EXPLAINED, Flag.LOW_LABEL_MASS),
        (Reply("yes and no", label_logprobs=SURE), EXPLAINED, Flag.CONTRADICTION),
        (MALIGNANT, "No. The glands are round and regular.", Flag.CONTRADICTION),
    ],
    ids=["disagreement", "unreadable", "evasion", "neither", "both", "explained away"],
)
async def test_defect_001_2_what_does_not_agree_is_indeterminate(changes: Reply, explanation: str, flag: Flag) -> None:
    """System 001's verdict was whatever text came; here words, probabilities and explanation have to agree."""
    made = await report(TISSUE, changes, explanation)

    assert Verdict.INDETERMINATE == verdict(made.conclusion)
    assert made.conclusion.label is None
    assert made.conclusion.probabilities is not None
    assert flag in made.flags
    assert made.needs_review


async def test_a_file_that_says_it_is_a_ct_is_not_asked_about() -> None:
    """What a file states is believed before any model is."""
    slices = await intake.read([phantoms.series(phantoms.abdomen())[0]], Limits())
    engine = Scripted(ANSWERS)
    made = await examine(find("histology"), slices, engine)

    assert Verdict.NOT_ASSESSABLE == verdict(made.conclusion)
    assert not engine.history


async def test_the_verdict_is_told_in_words() -> None:
    """With the model's explanation after a yes or a no, and without it where there is no verdict."""
    sure = (await report(*ANSWERS)).conclusion
    unsure = (await report(TISSUE, Reply("yes and no", label_logprobs=SURE), EXPLAINED)).conclusion
    cat = (await report(Reply("no", label_logprobs=UNSURE))).conclusion

    assert f"Yes: malignant gland changes are visible. {EXPLAINED}" == in_words(sure)
    assert in_words(unsure).startswith("Indeterminate: ")
    assert "crowded" not in in_words(unsure)
    assert in_words(cat).startswith("Not assessable: ")


async def test_defect_001_5_nobody_is_played_and_nothing_is_prescribed() -> None:
    """System 001 had a doctor prescribe with dosages; here no prompt has a system turn or asks for treatment."""
    engine = Scripted(ANSWERS)
    await examine(find("histology"), Study((TILE,)), engine)
    words = " ".join(str(part) for asked in engine.history for turn in asked.messages for part in turn.parts).lower()

    assert {"user"} == {turn.role for asked in engine.history for turn in asked.messages}
    assert not any(word in words for word in ("you are", "doctor", "dr.", "medication", "treat", "dos"))


async def test_facts_are_not_sampled_and_answers_are_short() -> None:
    """Greedy, and the explanation has as many tokens as system 001 had for everything."""
    made = await report(*ANSWERS)

    assert {0.0} == {step.temperature for step in made.steps}
    assert 100 == max(step.max_tokens for step in made.steps)


async def test_an_unfit_sentence_of_the_explanation_is_left_out_and_kept() -> None:
    """A refusal takes its own sentence with it."""
    made = await report(TISSUE, MALIGNANT, f"{EXPLAINED} I'm sorry, I cannot assist with that.")

    assert EXPLAINED == made.conclusion.description
    assert [Flag.REFUSAL] == [gone.reason for gone in made.conclusion.removed]
    assert Flag.REFUSAL in made.flags


if __name__ == "__main__":
    keep(GOLDEN, golden())
