"""What became of each study: answered, or why not, beside what is true of it."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import isclose

from pydantic import Field

from medserve.errors import MedserveError
from medserve.evaluation.labels import OTHER, Case
from medserve.flags import Flag
from medserve.generation import LabelScores
from medserve.reports import NEAR, Finding, Record, Report, Step, in_words, lacking


class Status(StrEnum):
    """Whether a study was answered. Only an answered one can be right."""

    ANSWERED = "answered"
    INDETERMINATE = "indeterminate"
    """An answer was read and not stood by: below the threshold, or other answers spoke against it."""
    UNREADABLE = "unreadable"
    NOT_ASSESSABLE = "not_assessable"
    REFUSED = "refused"
    """The file cannot be read, or is not what the workflow takes."""
    FAILED = "failed"
    """The model or its engine failed on it."""


OF_THE_MODEL = frozenset({Flag.DEMONSTRATION, Flag.UNVERIFIED})
"""Flags that every report of a model has, whatever the study is."""
WITHHELD = tuple(status for status in Status if status is not Status.ANSWERED)


class Controlled(Record):
    """The answer with the picture or the words exchanged, and how far the label probabilities moved."""

    kind: str
    answer: str | None
    distance: float | None


class Outcome(Record):
    """One study's answer and truth. `id` is the table's own, or the beginning of the hash of the study's content.

    `probabilities` are those of the report, `own` the model's before a calibration; `logprobs` what a calibration is
    fitted to, and `calibrated_on` the data set of the one that was applied. `code` says why there is no report.
    """

    row: int
    id: str
    sha256: str | None = None
    truth: str
    stated: str
    status: Status
    answer: str | None = None
    probabilities: dict[str, float] | None = None
    own: dict[str, float] | None = None
    logprobs: dict[str, float] | None = None
    step: str | None = None
    flags: tuple[Flag, ...] = ()
    findings: dict[str, str] = Field({}, description="what else the report found, by name")
    seconds: float | None = None
    controls: tuple[Controlled, ...] = ()
    depends_on_picture: bool | None = None
    calibrated_on: str | None = None
    code: str | None = None

    @property
    def right(self) -> bool:
        """Whether it was answered with what is true; of a truth that is no label no answer is right."""
        return self.status is Status.ANSWERED and self.answer == self.truth != OTHER

    @property
    def confidence(self) -> float | None:
        """The probability of the answer that was given."""
        return (self.probabilities or {}).get(self.answer or "")


def of_report(report: Report, case: Case, finding: str = "") -> Outcome:
    """What a report says of the label, or of one of its findings by name."""
    judged = next((one for one in report.conclusion.findings if one.name == finding), None)
    shares = report.conclusion.probabilities if not finding else judged.probabilities if judged else None
    step = _asked(report, judged) if finding else _scored(report, shares)
    answer = _words(judged.value) if finding and judged else report.conclusion.label
    fit = None if finding else report.conclusion.calibrated
    return Outcome(
        row=case.row,
        id=case.id or report.study.sha256[:16],
        sha256=report.study.sha256,
        truth=case.truth,
        stated=case.stated,
        status=_status(report, answer, step),
        answer=answer,
        probabilities=shares,
        own=fit.before if fit else shares,
        logprobs=step.label_logprobs if step else None,
        step=step.name if step else None,
        flags=tuple(flag for flag in report.flags if flag not in OF_THE_MODEL),
        findings={one.name: _words(one.value) or lacking(one) for one in report.conclusion.findings},
        seconds=report.seconds,
        controls=() if finding else _controls(report),
        depends_on_picture=report.depends_on_picture,
        calibrated_on=fit.dataset if fit else None,
    )


def of_error(error: MedserveError, case: Case, status: Status) -> Outcome:
    """A study without a report."""
    identity = case.id or f"row {case.row}"
    return Outcome(row=case.row, id=identity, truth=case.truth, stated=case.stated, status=status, code=error.code)


def spelled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of a finding with truths as the workflow spells its answers; what is none of these is `other`.

    Its closed answers are those that were weighed; where none were, those that were given.
    """
    weighed = next((tuple(one.probabilities) for one in outcomes if one.probabilities), ())
    known = {answer.casefold(): answer for answer in weighed or (one.answer for one in outcomes if one.answer)}
    otherwise = OTHER if weighed else None
    return [
        one.model_copy(update={"truth": known.get(one.truth.casefold(), otherwise or one.truth)}) for one in outcomes
    ]


def _status(report: Report, answer: str | None, step: Step | None) -> Status:
    if answer is not None:
        return Status.ANSWERED
    if Flag.NOT_ASSESSABLE in report.flags:
        return Status.NOT_ASSESSABLE
    asked = step.flags if step else report.flags
    read = step is not None and step.value is not None
    return Status.INDETERMINATE if read or Flag.INDETERMINATE in asked else Status.UNREADABLE


def _words(value: str | float | bool | tuple[str, ...] | None) -> str | None:
    """A finding's value as a table states it."""
    return None if value is None else in_words(value)


def _asked(report: Report, judged: Finding | None) -> Step | None:
    return next((step for step in report.steps if judged is not None and step.name == judged.step), None)


def _scored(report: Report, shares: Mapping[str, float] | None) -> Step | None:
    """The step from whose scores the label probabilities come, a calibration's own word first."""
    fit = report.conclusion.calibrated
    if fit is not None:
        return next((step for step in report.steps if step.name == fit.step), None)
    return next((step for step in reversed(report.steps) if _agree(step, shares)), None)


def _agree(step: Step, shares: Mapping[str, float] | None) -> bool:
    """Whether the probabilities are those of this step: what differs between logarithms is what they have in common."""
    if not shares or not step.label_logprobs or step.label_logprobs.keys() != shares.keys():
        return False
    own = LabelScores(step.label_logprobs).probabilities
    return all(isclose(own[label], shares[label], abs_tol=NEAR) for label in shares)


def _controls(report: Report) -> tuple[Controlled, ...]:
    return tuple(Controlled(kind=run.kind, answer=run.label, distance=run.distance) for run in report.controls)
