"""A calibration is judged on cases that it was not fitted to, and kept only where it makes those better."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from pydantic import Field

from medserve import calibration
from medserve.calibration import Calibration, Case, Method
from medserve.evaluation.measures import Proper, proper
from medserve.evaluation.outcomes import Outcome
from medserve.reports import Record
from medserve.workflow import Workflow

FOLDS = 5
"""Parts of the cases, each of which is judged by a fit to the other four."""


class Fitted(Record):
    """A calibration, and the scores of unseen cases without it and with it; the calibration itself has seen them all.

    Before and after are both of the same cases. `helps` says whether they got better in the score that is fitted.
    """

    calibration: Calibration
    before: Proper
    after: Proper = Field(description="each case by a fit to the other parts")
    helps: bool


def usable(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose question gave a log-probability to what is true, in the order of their content."""
    found = [one for one in outcomes if one.logprobs is not None and one.truth in one.logprobs]
    steps = [one.step for one in found]
    asked = max(set(steps), key=lambda step: (steps.count(step), step or ""), default=None)
    return sorted((one for one in found if one.step == asked), key=lambda one: one.sha256 or "")


def fitted(
    outcomes: Sequence[Outcome],
    method: Method,
    workflow: Workflow,
    options: Mapping[str, Any],
    *,
    weights: str,
    dataset: str,
) -> Fitted:
    """A fit to all cases that can be used; raises InvalidRequest where they cannot be fitted to."""
    used = usable(outcomes)
    cases = [Case(one.logprobs or {}, one.truth) for one in used]
    labels = calibration.check(cases, method)
    unseen = crossed(cases, labels, method)
    truths = [case.truth for case in cases]
    own = [calibration.applied("temperature", {"temperature": 1.0}, labels, case.logprobs) for case in cases]
    before, after = proper(own, truths), proper(unseen, truths)
    made = Calibration(
        step=used[0].step or "",
        labels=labels,
        method=method,
        parameters=calibration.parameters(cases, labels, method),
        dataset=dataset,
        n=len(cases),
        workflow=workflow.name,
        version=workflow.version,
        options=workflow.own(options),
        weights=weights,
        before=before.nll,
        after=after.nll,
        folds=FOLDS,
    )
    return Fitted(calibration=made, before=before, after=after, helps=after.nll < before.nll and _same_way(made))


def crossed(cases: Sequence[Case], labels: Sequence[str], method: Method) -> list[dict[str, float]]:
    """Each case's probabilities by a fit to the parts that it is not in."""
    parts = folds([case.truth for case in cases])
    found: dict[int, dict[str, float]] = {}
    for part in parts:
        inside = set(part)
        others = [case for place, case in enumerate(cases) if place not in inside]
        fit = calibration.parameters(others, labels, method)
        found |= {place: calibration.applied(method, fit, labels, cases[place].logprobs) for place in part}
    return [found[place] for place in range(len(cases))]


def folds(truths: Sequence[str]) -> list[list[int]]:
    """The places of the cases in five parts that hold about equally many of each label."""
    by_truth = [[place for place, one in enumerate(truths) if one == truth] for truth in sorted(set(truths))]
    dealt = list(chain.from_iterable(by_truth))
    return [dealt[start::FOLDS] for start in range(FOLDS)]


def _same_way(made: Calibration) -> bool:
    """Whether the label that the model favours more is still the likelier one: a turned sigmoid would contradict it."""
    return made.parameters.get("slope", 1.0) > 0
