"""The dermoscopy protocol: what it asks, what it makes of the answers, and what it never does."""

from pathlib import Path
from typing import Any

import pytest

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import Finish, Usage
from medserve.images import Modality
from medserve.imaging import intake
from medserve.imaging.intake import Wanted
from medserve.reports import Report, Step, as_text
from medserve.settings import Limits
from medserve.workflows import find
from medserve.workflows.dermoscopy import CLASSES
from tests.golden_reports import keep, kept, steady
from tests.pictures import drawn, study

GOLDEN = "dermoscopy"
LOOK = (
    "The shape is consistent with the picture. The pigment network is inconsistent with the picture. "
    "In addition, arborizing vessels are visible."
)
TAKEN = "dermoscopy"
"""What the guard hears first: what kind of picture it is."""
LOGPROBS = {"MEL": -3.0, "NV": -2.0, "BCC": -0.25, "BKL": -4.0}
ANSWERS = ("Irregular.", "yes", "dots and streaks", "brown, red", LOOK, Reply("BCC", label_logprobs=LOGPROBS))


async def report(*replies: str | Reply, **options: Any) -> Report:
    """A report made of these replies."""
    return await examine(find("dermoscopy"), drawn("lesion-mel"), Scripted((TAKEN, *replies)), options=options)


async def with_observation(place: int, reply: str | Reply) -> Report:
    """A report in which one observation was answered with `reply`."""
    return await report(*ANSWERS[:place], reply, *ANSWERS[place + 1 :])


def asked(made: Report, name: str) -> Step:
    """The step of that name."""
    return next(step for step in made.steps if step.name == name)


def value(made: Report, name: str) -> object:
    return next(finding.value for finding in made.conclusion.findings if finding.name == name)


async def golden(photograph: Path) -> Any:
    """The whole report on a photograph as JSON, without what differs from run to run."""
    study = await intake.read([photograph.read_bytes()], Limits(), Wanted(Modality.DERMOSCOPY))
    made = await examine(find("dermoscopy"), study, Scripted((TAKEN, *ANSWERS)))
    return steady(made)


async def test_the_golden_report(dermoscopy: Path) -> None:
    """The whole report on a real photograph, prompts included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_dermoscopy
    """
    assert kept(GOLDEN) == await golden(dermoscopy)


async def test_four_observations_a_second_look_and_a_class() -> None:
    """Six questions after the guard's, in the order of the protocol; the last is asked without the picture."""
    made = await report(*ANSWERS)

    course = ("Kind of picture", "Shape", "Pigment network", "Structures", "Colours", "Second look", "Classification")
    assert course == tuple(step.name for step in made.steps)
    assert [1, 1, 1, 1, 1, 1, 0] == [len(step.images) for step in made.steps]


async def test_each_observation_is_one_question_of_at_most_32_tokens() -> None:
    """A small question leaves little room to wander."""
    made = await report(*ANSWERS)

    assert {32} == {step.max_tokens for step in made.steps[:5]}


async def test_signs_are_asked_for_on_request() -> None:
    """Vessels, regression and keratosis are three questions more."""
    signs = ("arborizing", "no", "yes")

    made = await report(*ANSWERS[:4], *signs, *ANSWERS[4:], signs=True)

    assert (("arborizing",), "no", "yes") == tuple(finding.value for finding in made.conclusion.findings[4:])


async def test_the_second_look_is_given_what_was_observed() -> None:
    """It compares the words that were read, not the raw replies."""
    made = await report(*ANSWERS)

    expected = "- Shape: irregular\n- Pigment network: yes\n- Structures: dots, streaks\n- Colours: brown, red\n"
    assert expected in asked(made, "Second look").prompt


async def test_label_probabilities_are_normalised_logits() -> None:
    """The report shows the share of each label, and how much the labels have together."""
    found = (await report(*ANSWERS)).conclusion

    assert ("BCC", "basal cell carcinoma") == (found.label, found.label_meaning)
    assert found.probabilities is not None
    assert pytest.approx(1.0) == sum(found.probabilities.values())
    assert "BCC" == max(found.probabilities, key=found.probabilities.__getitem__)
    assert pytest.approx(0.982, abs=0.001) == found.label_mass


async def test_a_class_that_the_probabilities_contradict_needs_review() -> None:
    """The words say NV and the logits say BCC: both are reported, and somebody has to look."""
    made = await report(*ANSWERS[:5], Reply("NV", label_logprobs=LOGPROBS))

    assert "NV" == made.conclusion.label
    assert Flag.LABEL_DISAGREEMENT in made.flags
    assert made.needs_review


async def test_labels_that_the_model_did_not_want_are_flagged() -> None:
    """The labels have little probability together; the text says how little."""
    rare = {label: value - 3 for label, value in LOGPROBS.items()}
    made = await report(*ANSWERS[:5], Reply("BCC", label_logprobs=rare))

    assert (Flag.LOW_LABEL_MASS,) == made.flags
    assert made.needs_review
    assert "any of the labels: 0.049" in as_text(made)


async def test_defect_000_6_red_stays_red() -> None:
    """System 000 rewrote every red to brown; here what was seen is what is said."""
    made = await with_observation(3, "red and purple")

    assert ("red", "purple") == value(made, "Colours")
    assert "Colours: red, purple" in asked(made, "Second look").prompt


async def test_defect_000_6_arborizing_vessels_stay() -> None:
    """System 000 threw the key sign of basal cell carcinoma away."""
    made = await report(*ANSWERS[:4], "Arborizing vessels are visible.", "no", "no", *ANSWERS[4:], signs=True)

    assert ("arborizing",) == value(made, "Vessels")
    assert "arborizing vessels" in made.conclusion.description


@pytest.mark.parametrize("reply", ["I cannot say.", "INVALID INPUT", "MEL or NV", "", "none of these"])
async def test_defect_000_3_no_class_is_assumed(reply: str) -> None:
    """System 000 called whatever it could not parse a nevus; here it is no class, and somebody has to look."""
    made = await report(*ANSWERS[:5], Reply(reply, label_logprobs=LOGPROBS))

    assert made.conclusion.label is None
    assert made.needs_review
    assert made.flags


async def test_a_class_with_a_control_token_beside_it_needs_review() -> None:
    """It is read, since it says a code and nothing else, and flagged."""
    made = await report(*ANSWERS[:5], Reply("BCC<eos>", label_logprobs=LOGPROBS))

    assert "BCC" == made.conclusion.label
    assert (Flag.SPECIAL_TOKEN_LEAK,) == made.flags
    assert made.needs_review


async def test_defect_000_4_a_denied_class_is_not_the_class() -> None:
    """System 000 read "NV, NOT MEL" as melanoma."""
    made = await report(*ANSWERS[:5], "NV, NOT MEL")

    assert "NV" == made.conclusion.label


async def test_defect_000_5_keratosis_does_not_rule_melanoma_out() -> None:
    """System 000 concluded BKL from one sign before the model was asked; here the model's class stands."""
    made = await report(*ANSWERS[:4], "none", "no", "yes", LOOK, "MEL", signs=True)

    assert "MEL" == made.conclusion.label


@pytest.mark.parametrize("place", range(4))
async def test_an_unreadable_observation_is_said_to_be_so(place: int) -> None:
    """It is None with a flag, and later questions hear "not readable" in place of a default."""
    made = await with_observation(place, "it is hard to tell")

    finding = made.conclusion.findings[place]
    assert finding.value is None
    assert Flag.UNREADABLE in finding.flags
    assert f"- {finding.name}: not readable" in asked(made, "Second look").prompt
    assert made.needs_review


async def test_removed_sentences_are_kept_with_their_reasons() -> None:
    """A refusal takes its own sentence with it and no other, and the reader can see which."""
    look = "The shape is consistent with the picture. I'm sorry, I cannot assist with that. The border is sharp."

    made = await report(*ANSWERS[:4], look, "NV")

    assert "The shape is consistent with the picture. The border is sharp." == made.conclusion.description
    assert [("I'm sorry, I cannot assist with that.", Flag.REFUSAL)] == [
        (gone.sentence, gone.reason) for gone in made.conclusion.removed
    ]
    assert "sorry" not in asked(made, "Classification").prompt


async def test_defect_000_7_the_report_shows_the_cleaned_description() -> None:
    """System 000 cleaned for the classifier and printed the raw text."""
    made = await report(*ANSWERS[:4], "I am an AI. The border is sharp and the shape is consistent.", "NV")

    description = as_text(made).split("Description")[1].split("left out")[0]
    assert "The border is sharp" in description
    assert "I am an AI" not in description


async def test_truncated_thinking_is_no_answer() -> None:
    """An answer that was cut off inside its thinking is flagged and read as nothing."""
    thought = Reply("", thinking="let me see", finish=Finish.LENGTH, usage=Usage(300, 32, 0, 256, 1))

    made = await with_observation(0, thought)

    assert value(made, "Shape") is None
    assert {Flag.TRUNCATED, Flag.EMPTY} <= set(made.flags)


async def test_an_answer_without_image_tokens_is_flagged_blind() -> None:
    """However fluent: what was said without looking is marked so."""
    unseen = Reply("irregular", finish=Finish.STOP, usage=Usage(40, 1, 0, 0))

    assert Flag.BLIND in (await with_observation(0, unseen)).flags
    assert Flag.BLIND not in (await report(*ANSWERS)).flags


async def test_a_clean_run_needs_no_review() -> None:
    """Flags are worth something only if they can be absent."""
    made = await report(*ANSWERS)

    assert ((), False) == (made.flags, made.needs_review)


async def test_every_report_carries_the_notice() -> None:
    """In its JSON and in its text."""
    made = await report(*ANSWERS)

    assert "Research use only" in made.notice
    assert made.notice in " ".join(as_text(made).split())


@pytest.mark.parametrize(
    ("options", "field"), [({"sings": True}, "options.sings"), ({"signs": "maybe"}, "options.signs")]
)
async def test_options_are_checked(options: dict[str, Any], field: str) -> None:
    """A misspelt option is an error with a name, not a silent default."""
    with pytest.raises(InvalidRequest) as caught:
        await report(*ANSWERS, **options)

    assert field == caught.value.param


async def test_one_picture_a_study() -> None:
    """Two lesions are two reports."""
    with pytest.raises(InvalidRequest, match="at most 1 picture"):
        await examine(find("dermoscopy"), study(1, 2), Scripted(ANSWERS))


def test_the_classes_have_names() -> None:
    """Every code is explained where it is shown."""
    assert {"MEL", "NV", "BCC", "BKL"} == set(CLASSES)


if __name__ == "__main__":
    keep(GOLDEN, golden(Path(__file__).parents[1] / "data" / "dermoscopy" / "ISIC_0000166.jpg"))
