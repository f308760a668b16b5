"""An evaluation says how often the answers are right and how sure of that one may be, of every study and of each label.

A study that was not answered is not right. Accuracy is told over all studies, over those whose truth is a label that
can be concluded at all, and over those that were answered; beside it stands what the commonest truth alone would score.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field

from medserve import __version__
from medserve.evaluation.fitting import Fitted
from medserve.evaluation.labels import OTHER, Counts
from medserve.evaluation.measures import (
    NONE,
    Covered,
    Estimate,
    Proper,
    Share,
    auroc,
    coverage,
    mean_of,
    proper,
)
from medserve.evaluation.outcomes import WITHHELD, Outcome, Status
from medserve.images import Modality
from medserve.reports import Record, is_demonstration, notice_for
from medserve.workflow import Workflow

STUCK = 10
"""From so many answered studies on, an answer that is always the same is told of."""
CONTAMINATION = (
    "MedGemma 1.5 was trained on 40,269 dermoscopic pictures of the ISIC archive, by its model card. On pictures that "
    "are public there, HAM10000 among them, this may measure what it remembers; use pictures that were never public."
)
NO_MEANING = (
    "This was measured of the demonstration model, which knows drawings only: whatever the numbers, they have no "
    "clinical meaning."
)


class Majority(Record):
    """What is reached without looking: by always answering with the commonest label, and by guessing evenly."""

    label: str | None
    share: float | None
    guessing: float | None


class OfLabel(Record):
    """How one label is told from all others. What was not answered counts as not found, and as not taken for it."""

    label: str
    n: int
    sensitivity: Share
    specificity: Share
    ppv: Share
    npv: Share
    auroc: Estimate = Field(description="by its probability, among the studies that have probabilities")


class Table(Record):
    """Truth in rows, answers in columns; what was not answered has columns of its own."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[int, ...]]


class Control(Record):
    """The same studies with the picture or the words exchanged: how often the answer stayed, and how often it is right.

    An accuracy that hardly suffers without the picture was not read from the picture.
    """

    kind: str
    same: Share
    accuracy: Share
    distance: float | None = Field(description="mean total variation between the label probabilities, 0 to 1")


class Seconds(Record):
    """How long an examination took."""

    median: float
    longest: float
    total: float


class Evaluation(Record):
    """A workflow measured on labelled studies."""

    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    medserve: str = __version__
    workflow: str
    workflow_version: str
    target: str = Field("label", description="what was held against the truth: the label, or a finding by name")
    options: dict[str, Any]
    model: str
    facts: dict[str, str]
    weights: str
    dataset: str = Field(description="SHA-256 of the studies' content hashes with their labels")
    counts: Counts
    labels: tuple[str, ...]
    n: int
    statuses: dict[str, int]
    accuracy: Share
    accuracy_of_labels: Share = Field(description="without the studies whose truth is none of the labels")
    accuracy_of_answered: Share
    majority: Majority
    better_than_majority: bool | None = Field(description="whether the whole interval of accuracy lies above it")
    balanced_accuracy: Estimate
    others: Share = Field(description="studies of another truth that were rightly not answered")
    classes: tuple[OfLabel, ...]
    confusion: Table
    probabilities: Proper | None = Field(None, description="as the reports have them, of the studies that have a label")
    before_calibration: Proper | None = Field(None, description="the model's own, where a calibration was applied")
    calibrated_on: str | None = Field(None, description="the data set of the calibration that was applied")
    fitted: Fitted | None = None
    unfitted: str | None = Field(None, description="why no calibration could be fitted that was asked for")
    coverage: tuple[Covered, ...] = ()
    clean: Share = Field(description="reports without any flag but those of the model itself")
    flags: dict[str, Share]
    answers: dict[str, dict[str, int]] = Field(description="how often each answer was given, of label and findings")
    stuck: tuple[str, ...] = Field((), description="what was answered alike for every study")
    controls: tuple[Control, ...] = ()
    depends_on_picture: Share | None = None
    seconds: Seconds | None
    notes: tuple[str, ...] = ()
    notice: str
    studies: tuple[Outcome, ...]


def dataset_of(outcomes: Sequence[Outcome]) -> str:
    """SHA-256 of what the studies show and what is true of them, whatever the files are called and their order."""
    lines = sorted(f"{one.sha256 or one.code} {one.truth}" for one in outcomes)
    return sha256("\n".join(lines).encode()).hexdigest()


def evaluated(
    workflow: Workflow,
    outcomes: Sequence[Outcome],
    counts: Counts,
    *,
    model: str,
    facts: Mapping[str, str],
    weights: str,
    options: Mapping[str, Any],
    finding: str = "",
    calibrated_on: str | None = None,
    fitted: Fitted | None = None,
    unfitted: str | None = None,
) -> Evaluation:
    """Everything that can be said of the outcomes."""
    labels = _labels(workflow, outcomes, finding)
    known = [one for one in outcomes if one.truth in labels]
    answered = [one for one in outcomes if one.status is Status.ANSWERED]
    others = [one for one in outcomes if one.truth not in labels]
    accuracy = _right(outcomes)
    majority = _majority(outcomes, labels)
    classes = tuple(_of_label(label, outcomes) for label in labels)
    weighed = [one for one in known if one.probabilities and one.truth in one.probabilities]
    truths = [one.truth for one in weighed]
    reported = [one for one in outcomes if one.code is None]
    return Evaluation(
        workflow=workflow.name,
        workflow_version=workflow.version,
        target=finding or "label",
        options=dict(options),
        model=model,
        facts=dict(facts),
        weights=weights,
        dataset=dataset_of(outcomes),
        counts=counts,
        labels=labels,
        n=len(outcomes),
        statuses={status: sum(one.status is status for one in outcomes) for status in Status},
        accuracy=accuracy,
        accuracy_of_labels=_right(known),
        accuracy_of_answered=_right(answered),
        majority=majority,
        better_than_majority=_exceeds(accuracy.low, majority.share),
        balanced_accuracy=mean_of([one.sensitivity for one in classes]),
        others=Share.of(sum(one.status in WITHHELD for one in others), len(others)),
        classes=classes,
        confusion=_confusion(outcomes, labels),
        probabilities=proper([one.probabilities or {} for one in weighed], truths) if weighed else None,
        before_calibration=proper([one.own or {} for one in weighed], truths) if weighed and calibrated_on else None,
        calibrated_on=calibrated_on,
        fitted=fitted,
        unfitted=unfitted,
        coverage=_coverage(answered, len(outcomes)),
        clean=Share.of(sum(not one.flags for one in reported), len(reported)),
        flags=_flags(reported),
        answers=_answers(reported, finding),
        stuck=_stuck(reported, finding),
        controls=_controls(reported),
        depends_on_picture=_depends(reported),
        seconds=_seconds(reported),
        notes=tuple(_notes(workflow, outcomes, model, facts, calibrated_on)),
        notice=notice_for(facts),
        studies=tuple(outcomes),
    )


def _labels(workflow: Workflow, outcomes: Sequence[Outcome], finding: str) -> tuple[str, ...]:
    """What may be concluded: the workflow's labels, or of a finding the answers that were weighed, given or true."""
    if not finding:
        return tuple(workflow.labels)
    weighed = next((tuple(one.probabilities) for one in outcomes if one.probabilities), ())
    return weighed or tuple(sorted({one.truth for one in outcomes} | {one.answer for one in outcomes if one.answer}))


def _right(outcomes: Sequence[Outcome]) -> Share:
    return Share.of(sum(one.right for one in outcomes), len(outcomes))


def _majority(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Majority:
    truths = Counter(one.truth for one in outcomes if one.truth in labels)
    if not truths:
        return Majority(label=None, share=None, guessing=None)
    label, many = min(truths.items(), key=lambda one: (-one[1], one[0]))
    return Majority(label=label, share=many / len(outcomes), guessing=truths.total() / len(outcomes) / len(labels))


def _exceeds(one: float | None, other: float | None) -> bool | None:
    return None if one is None or other is None else one > other


def _of_label(label: str, outcomes: Sequence[Outcome]) -> OfLabel:
    taken = [one.answer == label and one.status is Status.ANSWERED for one in outcomes]
    true = [one.truth == label for one in outcomes]
    found = sum(a and b for a, b in zip(taken, true, strict=True))
    free = sum(not a and not b for a, b in zip(taken, true, strict=True))
    weighed = [
        (one.probabilities[label], one.truth == label)
        for one in outcomes
        if one.probabilities and label in one.probabilities
    ]
    return OfLabel(
        label=label,
        n=sum(true),
        sensitivity=Share.of(found, sum(true)),
        specificity=Share.of(free, len(true) - sum(true)),
        ppv=Share.of(found, sum(taken)),
        npv=Share.of(free, len(taken) - sum(taken)),
        auroc=auroc([share for share, is_one in weighed if is_one], [share for share, is_one in weighed if not is_one])
        if weighed
        else NONE,
    )


def _confusion(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Table:
    said = Counter((one.truth, one.answer if one.status is Status.ANSWERED else one.status.value) for one in outcomes)
    strange = sorted({answer for _, answer in said if answer} - {*labels, *WITHHELD})
    columns = (*labels, *strange, *(status.value for status in WITHHELD))
    truths = (*labels, *sorted({truth for truth, _ in said} - set(labels)))
    return Table(columns=columns, rows={truth: tuple(said[truth, column] for column in columns) for truth in truths})


def _coverage(answered: Sequence[Outcome], n: int) -> tuple[Covered, ...]:
    sure = [(one.confidence, one.right) for one in answered if one.confidence is not None]
    return coverage([share for share, _ in sure], [right for _, right in sure], n) if sure else ()


def _flags(reported: Sequence[Outcome]) -> dict[str, Share]:
    """The commonest first."""
    raised = Counter(flag for one in reported for flag in one.flags)
    return {flag: Share.of(many, len(reported)) for flag, many in raised.most_common()}


def _answers(reported: Sequence[Outcome], finding: str) -> dict[str, dict[str, int]]:
    said: dict[str, Counter[str]] = {}
    for one in reported:
        told = {} if one.status is Status.NOT_ASSESSABLE else {"label": one.answer or one.status.value}
        for name, value in (one.findings if finding else told | one.findings).items():
            said.setdefault(name, Counter())[value] += 1
    return {name: dict(values.most_common()) for name, values in said.items()}


def _stuck(reported: Sequence[Outcome], finding: str) -> tuple[str, ...]:
    """The names of what has had one answer only, however many studies there were."""
    answers = _answers(reported, finding)
    return tuple(name for name, values in answers.items() if len(values) == 1 and sum(values.values()) >= STUCK)


def _controls(reported: Sequence[Outcome]) -> tuple[Control, ...]:
    kinds = dict.fromkeys(run.kind for one in reported for run in one.controls)
    return tuple(_control(kind, reported) for kind in kinds)


def _control(kind: str, reported: Sequence[Outcome]) -> Control:
    runs = [(one, run) for one in reported for run in one.controls if run.kind == kind]
    moved = [run.distance for _, run in runs if run.distance is not None]
    return Control(
        kind=kind,
        same=Share.of(sum(run.answer == one.answer for one, run in runs), len(runs)),
        accuracy=Share.of(sum(run.answer == one.truth != OTHER for one, run in runs), len(runs)),
        distance=float(np.mean(moved)) if moved else None,
    )


def _depends(reported: Sequence[Outcome]) -> Share | None:
    told = [one.depends_on_picture for one in reported if one.depends_on_picture is not None]
    return Share.of(sum(told), len(told)) if told else None


def _seconds(reported: Sequence[Outcome]) -> Seconds | None:
    taken = [one.seconds for one in reported if one.seconds is not None]
    return Seconds(median=median(taken), longest=max(taken), total=sum(taken)) if taken else None


def _notes(
    workflow: Workflow, outcomes: Sequence[Outcome], model: str, facts: Mapping[str, str], calibrated_on: str | None
) -> list[str]:
    named = f"{model} {facts.get('weights', '')}".casefold()
    notes = []
    if is_demonstration(facts):
        notes.append(NO_MEANING)
    if "medgemma" in named and workflow.modality is Modality.DERMOSCOPY:
        notes.append(CONTAMINATION)
    if calibrated_on == dataset_of(outcomes):
        notes.append("The calibration that was applied was fitted to these very studies: its gain here says nothing.")
    if len(outcomes) < 100:
        notes.append(f"{len(outcomes)} studies are few: look at the intervals, not at the shares.")
    return notes
