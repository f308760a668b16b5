"""The built-in histology workflow, written as a file, makes the same report of a tile whatever is answered."""

from itertools import product
from typing import Any

import pytest

from medserve import protocols
from medserve.engines import Engine
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.scripted import Reply, Scripted
from medserve.examination import examine
from medserve.generation import Finish, Usage
from medserve.outline import START
from medserve.reports import Report
from medserve.workflow import Workflow
from medserve.workflows import find
from tests.pictures import drawn, study

FILE = protocols.read(START.with_name("histology.yaml").read_bytes(), "histology.yaml")
BUILT_IN = find("histology")

SURE = {"yes": -0.05, "no": -3.5}
UNSURE = {"yes": -3.5, "no": -0.05}
NEITHER = {"yes": -6.0, "no": -7.0}
CLOSED = (
    Reply("yes", label_logprobs=SURE),
    Reply("No.", label_logprobs=UNSURE),
    Reply("yes", label_logprobs=UNSURE),
    Reply("no", label_logprobs=NEITHER),
    Reply("yes and no", label_logprobs=SURE),
    Reply("It is a cat.", label_logprobs=SURE),
    Reply("", label_logprobs=SURE),
    Reply("yes", label_logprobs=SURE, finish=Finish.LENGTH),
    Reply("no", label_logprobs=UNSURE, finish=Finish.STOP, usage=Usage(40, 1, 0, 0)),
)
EXPLAINED = (
    "yes. The glands are crowded.",
    "No, the glands are round.",
    "The glands are round.",
    "Yesterday's glands. <unused95>",
    "I'm sorry, I cannot assist with that.",
    "",
)


def made(report: Report) -> dict[str, Any]:
    """The report without what tells runs and workflows apart."""
    facts: dict[str, Any] = report.model_dump(mode="json", exclude={"id", "created", "seconds", "provenance"})
    for step in facts["steps"]:
        del step["prompt_seconds"], step["completion_seconds"]
    return facts


@pytest.mark.parametrize("tissue", CLOSED, ids=range(len(CLOSED)))
async def test_the_same_report_for_every_combination_of_replies(tissue: Reply) -> None:
    """Sure, doubtful, contradictory, cut off, blind, unreadable and empty ones, in each of the three places."""
    for changes, explanation in product(CLOSED, EXPLAINED):
        replies = (tissue, changes, explanation)
        one = await examine(BUILT_IN, study(), Scripted(replies), options={"guard": False})
        other = await examine(FILE, study(), Scripted(replies), options={"guard": False})

        assert made(one) == made(other)


@pytest.mark.parametrize("threshold", [0.5, 0.99])
async def test_the_same_report_under_a_threshold(threshold: float) -> None:
    """The caller's options act on a file's questions as on any other."""
    options = {"guard": False, "threshold": threshold, "controls": ["blank", "paraphrase"]}
    replies = CLOSED[:1] * 9
    one = await examine(BUILT_IN, study(), Scripted(replies), options=options)
    other = await examine(FILE, study(), Scripted(replies), options=options)

    assert [None, "yes"][threshold < 0.9] == other.conclusion.label
    assert made(one) == made(other)


async def on(engine: Engine, workflow: Workflow, name: str) -> dict[str, Any]:
    """The report on a drawing, without what the engine counts: a second run reuses the work of the first."""
    facts = made(await examine(workflow, drawn(name), engine, options={"controls": ["paraphrase"]}))
    for step in [facts, *facts["steps"], *(step for control in facts["controls"] for step in control["steps"])]:
        for count in ("tokens", "prompt_seconds", "completion_seconds"):
            step.pop(count, None)
    return facts


@pytest.mark.parametrize(
    "name", ["colon-tumour", "colon-normal", "lesion-mel", "kidney-left", "chest-normal", "page", "cat"]
)
async def test_the_same_report_on_the_demonstration_model(name: str, engine: LlamaCpp) -> None:
    """Guard, questions, probabilities and all, on drawings of every kind."""
    assert await on(engine, BUILT_IN, name) == await on(engine, FILE, name)


def test_both_say_the_same_of_themselves() -> None:
    """Title, labels, domain; a file takes one tile, and the built-in workflow slides too."""
    assert (BUILT_IN.title, BUILT_IN.labels, BUILT_IN.domain, 1) == (
        FILE.title,
        FILE.labels,
        FILE.domain,
        FILE.max_images,
    )
