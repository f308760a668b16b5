"""In a workflow only answers in words of their own are thought about, when asked for; a record keeps it apart."""

from dataclasses import replace
from typing import Any

import pytest

from medserve.engines import Capabilities
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest, NotSupported
from medserve.examination import examine
from medserve.flags import Flag
from medserve.generation import Finish
from medserve.images import Study
from medserve.imaging import raster
from medserve.replay import replayed
from medserve.reports import Report
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from tests.pictures import drawn

LOOK = "The shape is consistent with the picture. In addition, arborizing vessels are visible."
MUSING = "<unused94>thought\n" + "Perhaps a border. " * 40 + "<unused95>"
LOGPROBS = {"MEL": -3.0, "NV": -2.0, "BCC": -0.25, "BKL": -4.0}
OBSERVED = ("dermoscopy", "Irregular.", "yes", "dots and streaks", "brown, red")
CLASS = Reply("BCC", label_logprobs=LOGPROBS)


def thinker(look: str | Reply = MUSING + LOOK) -> Scripted:
    """A model that thinks at length before every answer, as MedGemma 1.5 does unasked."""
    closed = [replace(CLASS, text=MUSING + "BCC")]
    return Scripted([*(MUSING + words for words in OBSERVED), look, *closed])


async def report(engine: Any, **options: Any) -> Report:
    return await examine(find("dermoscopy"), drawn("lesion-mel"), engine, options=options)


async def test_a_short_answer_is_not_all_thought() -> None:
    """Observations have 32 tokens, which such a model would think away: it is not let to begin."""
    engine = thinker()
    made = await report(engine)

    assert {0} == {request.thinking for request in engine.history}
    assert not any(step.thinking for step in made.steps)
    assert not any(Flag.TRUNCATED in step.flags for step in made.steps)
    assert "BCC" == made.conclusion.label


async def test_closed_questions_never_think_and_open_ones_within_the_budget() -> None:
    """The second look is in words of its own; the answer has all of its own tokens beside the thought."""
    engine = thinker()
    made = await report(engine, thinking=64)
    thoughts = {step.name: step.thinking for step in made.steps if step.thinking}
    (open_one,) = [request for request in engine.history if request.thinking]

    assert ["Second look"] == list(thoughts)
    assert 64 == len(thoughts["Second look"].split())
    assert (64, 256 + 64) == (open_one.thinking, open_one.max_tokens)


async def test_a_thought_that_was_cut_short_is_no_answer_that_was() -> None:
    """Only words that miss their end are flagged `truncated`; what was thought is in the record and nowhere else."""
    whole = await report(thinker(), thinking=8)
    cut = await report(thinker(MUSING + "It is consistent with " + "many " * 400), thinking=8)
    look, cut_look = (next(step for step in made.steps if step.name == "Second look") for made in (whole, cut))

    assert (LOOK, 8, Finish.STOP) == (look.reply, len(look.thinking.split()), look.finish)
    assert Flag.TRUNCATED not in look.flags
    assert Flag.TRUNCATED in cut_look.flags
    assert 8 == look.tokens.thinking
    assert "Perhaps a border" not in whole.model_dump_json(exclude={"steps"})


async def test_a_report_with_thoughts_is_replayed_word_for_word() -> None:
    """The budget is one of the options that it was made with; a report without one does not speak of it."""
    made, plain = await report(thinker(), thinking=8), await report(thinker())

    assert 8 == made.provenance.options["thinking"]
    assert "thinking" not in plain.provenance.options
    assert (await replayed(made, drawn("lesion-mel"))).same_answers(made)
    again = Report.model_validate_json(made.model_dump_json())
    assert [step.tokens for step in made.steps] == [step.tokens for step in again.steps]


def test_thoughts_are_part_of_what_a_calibration_holds_for() -> None:
    """With them the model says other things; without them it is the calibration that it was."""
    workflow = find("dermoscopy")

    assert 8 == workflow.own({"thinking": 8})["thinking"]
    assert workflow.own({}) == workflow.own({"thinking": 0})
    assert "thinking" not in workflow.own({})


@pytest.mark.parametrize("budget", [-1, 8192, "much"])
def test_a_budget_that_cannot_be_is_refused(budget: object) -> None:
    """With the name of the option."""
    with pytest.raises(InvalidRequest, match="options"):
        find("dermoscopy").chosen({"thinking": budget})


async def test_a_budget_that_leaves_no_answer_names_its_option() -> None:
    """8192 tokens are the longest answer with its thought, of which the second look has 256."""
    with pytest.raises(InvalidRequest, match="7936") as refused:
        await report(thinker(), thinking=8000)
    assert "options.thinking" == refused.value.param


class Free(Scripted):
    """An engine that thinks or not as it likes."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, thinking=False)


async def test_what_cannot_be_told_is_not_told() -> None:
    """An engine without a switch is asked as ever, and refuses a budget instead of ignoring it."""
    engine = Free([*OBSERVED, LOOK, CLASS])
    made = await report(engine)

    assert {None} == {request.thinking for request in engine.history}
    assert "BCC" == made.conclusion.label
    with pytest.raises(NotSupported) as refused:
        await report(Free([*OBSERVED, LOOK, CLASS]), thinking=8)
    assert "options.thinking" == refused.value.param


async def test_the_demonstration_model_thinks_about_its_second_look_only(engine: LlamaCpp) -> None:
    """The same observations and the same class as without; the picture is encoded once for each system message."""
    image = raster.decode((DEMO / "drawings" / "lesion-bcc.png").read_bytes(), Limits())
    plain, thoughtful = [
        await examine(find("dermoscopy"), Study((image,)), engine, options=options)
        for options in ({}, {"thinking": 24})
    ]
    thoughts = {step.name: step.tokens.thinking for step in thoughtful.steps if step.thinking}

    assert ["Second look"] == list(thoughts)
    assert 1 <= (thoughts["Second look"] or 0) <= 24
    assert [step.value for step in plain.steps if step.images][:4] == [
        step.value for step in thoughtful.steps if step.images
    ][:4]
    assert 2 >= thoughtful.tokens.encodes
    assert not any(step.thinking for step in plain.steps)
