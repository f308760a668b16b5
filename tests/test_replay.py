"""A recorded report comes out again word for word, and any difference is seen."""

from math import inf

import pytest

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import Finish, Sampling
from medserve.replay import replayed
from medserve.reports import Report
from medserve.workflows import find
from tests.pictures import drawn, study
from tests.workflows import test_dermoscopy

STUDY = drawn("lesion-mel")
ANSWERS = (test_dermoscopy.TAKEN, *test_dermoscopy.ANSWERS)


async def recorded() -> Report:
    """A report as it comes back from disk."""
    made = await examine(find("dermoscopy"), STUDY, Scripted(ANSWERS), sampling=Sampling(temperature=0.5, seed=7))
    return Report.model_validate_json(made.model_dump_json())


async def test_the_same_report_comes_out() -> None:
    """Every prompt, reply, value and flag, and the conclusion."""
    report = await recorded()

    again = await replayed(report, STUDY)

    assert report.same_answers(again)
    assert (0.5, 7) == (again.steps[0].temperature, again.steps[0].seed)


async def test_a_changed_reply_is_seen() -> None:
    """Comparing would mean nothing if everything were the same."""
    report = await recorded()
    changed = report.model_copy(
        update={"steps": (report.steps[0].model_copy(update={"reply": "round"}), *report.steps[1:])}
    )

    assert not report.same_answers(await replayed(changed, STUDY))


async def test_another_picture_is_refused() -> None:
    """A report is about the pictures that it was made of."""
    with pytest.raises(InvalidRequest, match="their content differs"):
        await replayed(await recorded(), study(99))


async def test_thinking_is_replayed_too() -> None:
    """It is part of what was said."""
    thoughtful = Reply("irregular", thinking="a notch on the left", finish=Finish.STOP)
    report = await examine(find("dermoscopy"), STUDY, Scripted((ANSWERS[0], thoughtful, *ANSWERS[2:])))

    again = await replayed(report, STUDY)

    assert "a notch on the left" == again.steps[1].thinking
    assert report.same_answers(again)


async def test_a_label_without_any_probability_survives_the_record() -> None:
    """JSON has no minus infinity; what stands for it is read back as a probability of zero."""
    scored = Reply("BCC", label_logprobs={"MEL": -inf, "NV": -inf, "BCC": -0.1, "BKL": -inf})
    made = await examine(find("dermoscopy"), STUDY, Scripted((*ANSWERS[:-1], scored)))
    report = Report.model_validate_json(made.model_dump_json())

    again = await replayed(report, STUDY)

    assert {"MEL": 0.0, "NV": 0.0, "BCC": 1.0, "BKL": 0.0} == again.conclusion.probabilities
    assert report.same_answers(again)


async def test_labels_that_all_have_no_probability_are_no_crash() -> None:
    """Their shares are equal and mean nothing, which a flag says."""
    scored = Reply("BCC", label_logprobs=dict.fromkeys(("MEL", "NV", "BCC", "BKL"), -inf))
    made = await examine(find("dermoscopy"), STUDY, Scripted((*ANSWERS[:-1], scored)))

    assert 0.0 == made.conclusion.label_mass
    assert Flag.LOW_LABEL_MASS in made.flags
