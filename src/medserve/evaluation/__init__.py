"""A workflow is measured on labelled studies: every study is examined as `run` examines it, and none is left out.

What could not be read, was refused or failed stays in the numbers as what it is. Files are known by the row of the
table that names them and by their content; their names reach neither logs nor results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medserve import calibration
from medserve.calibration import Case as Labelling
from medserve.calibration import Fit, Method
from medserve.engines import Engine
from medserve.errors import EngineError, InvalidRequest, ModelError, NotSupported
from medserve.evaluation.fitting import fitted
from medserve.evaluation.labels import Case, Counts, Labelled, csv_of, read
from medserve.evaluation.outcomes import Outcome, Status, of_error, of_report, spelled
from medserve.evaluation.result import Evaluation, dataset_of, evaluated
from medserve.examination import calibrations_of, examine
from medserve.flags import Flag
from medserve.images import Study
from medserve.imaging import intake
from medserve.imaging.material import DEFAULT, Wanted
from medserve.models import ModelHandle, Models
from medserve.reports import Report
from medserve.settings import Settings
from medserve.threads import in_thread
from medserve.workflow import Workflow

__all__ = ["Evaluation", "Labelled", "Order", "Outcome", "evaluate"]

Told = Callable[[int, int, Outcome], None]
"""Told of each study when it is done: how many are, of how many, and what became of it."""


@dataclass(frozen=True)
class Order:
    """What is measured, on which pictures, and whether a calibration is fitted.

    `finding` holds a finding of that name against the labels in place of the workflow's own label. `picture` and
    `label` name the table's columns where they have names of their own.
    """

    workflow: Workflow
    folder: Path
    table: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    finding: str = ""
    calibrate: Method | None = None
    limit: int | None = None
    picture: str = ""
    label: str = ""
    wanted: Wanted = DEFAULT

    def checked(self) -> "Order":
        """The order once everything that can be refused at once is not; raises InvalidRequest."""
        if not self.folder.is_dir():
            raise InvalidRequest("the pictures to be measured on have to be in a folder; there is none", param="folder")
        if not self.finding and not self.workflow.labels:
            raise InvalidRequest(
                f"{self.workflow.name} concludes with no label; name one of its findings with --finding",
                param="finding",
            )
        if self.finding and self.calibrate:
            raise InvalidRequest("only a workflow's label is calibrated, and no finding", param="calibrate")
        self.workflow.chosen(self.options)
        return self

    @property
    def sought(self) -> Wanted:
        """What is wanted of the files, as `run` wants it."""
        modality = self.wanted.modality or self.workflow.modality
        return replace(self.wanted, modality=modality, volume=self.workflow.measures)


async def evaluate(order: Order, settings: Settings, told: Told) -> tuple[Evaluation, Labelled]:
    """Examine every labelled study, and measure; raises InvalidRequest or, where no model can be loaded, ModelError.

    A calibration that helps is kept in the settings' home, for this version of the workflow and these weights. While
    one is fitted, the one that is kept is not applied.
    """
    labelled = await in_thread(_labelled, order.checked(), settings.home)
    models = Models(settings)
    try:
        handle = models.get()
        await handle.ready()
        options = _options(order, handle)
        fits = await calibrations_of(order.workflow, options, handle, settings.home)
        course = _Course(order, options, handle, settings, fits)
        outcomes = []
        for done, case in enumerate(labelled.cases, start=1):
            outcome = await course.outcome(case)
            if outcome is not None:
                outcomes.append(outcome)
                told(done, len(labelled.cases), outcome)
        facts = dict(handle.capabilities.facts)
        name = handle.name
    finally:
        await models.close()
    counts = labelled.counts
    counts = counts.model_copy(update={"repeated": course.repeated, "conflicts": counts.conflicts + course.conflicts})
    outcomes = spelled(outcomes) if order.finding else outcomes
    return await in_thread(_measured, order, options, outcomes, counts, name, facts, settings.home), labelled


def _labelled(order: Order, home: Path) -> Labelled:
    table = order.table or csv_of(order.folder)
    names = {} if order.finding else order.workflow.labels
    found = read(order.folder, table, names, picture=order.picture, label=order.label, limit=order.limit)
    if order.calibrate:  # before hours of work
        calibration.prepared(home)
        even = dict.fromkeys(names, 0.0)
        calibration.check([Labelling(even, case.truth) for case in found.cases if case.truth in names], order.calibrate)
    return found


def _options(order: Order, engine: Engine) -> dict[str, Any]:
    """The options, with probabilities where a finding's are needed and can be had, and without an old calibration.

    Raises InvalidRequest where a calibration is wanted of an engine that gives no probabilities.
    """
    if order.calibrate and not engine.capabilities.score:
        raise NotSupported(f"{engine.name} gives no probabilities of answers to calibrate", param="calibrate")
    weigh = {"probabilities": True} if order.finding and engine.capabilities.score else {}
    return weigh | dict(order.options) | ({"calibrate": False} if order.calibrate else {})


@dataclass
class _Course:
    """The studies one after another: which contents there were, and the latest picture of each truth."""

    order: Order
    options: Mapping[str, Any]
    engine: ModelHandle
    settings: Settings
    fits: Mapping[str, Fit]
    truths: dict[str, str] = field(default_factory=dict)
    shown: dict[str, Study] = field(default_factory=dict)
    repeated: int = 0
    conflicts: int = 0
    named: bool = False

    async def outcome(self, case: Case) -> Outcome | None:
        """What became of a study; None where an earlier one has the same content."""
        try:
            study = await intake.read([case.path], self.settings.limits, self.order.sought)
            if study.sha256 in self.truths:
                self.repeated += 1
                self.conflicts += self.truths[study.sha256] != case.truth
                return None
            self.truths[study.sha256] = case.truth
            report = await self._report(study, case)
        except NotSupported:  # of this model, and so of every study
            raise
        except InvalidRequest as error:
            return of_error(error, case, Status.REFUSED)
        except (EngineError, ModelError) as error:
            return of_error(error, case, Status.FAILED)
        self._check_named(report)
        return of_report(report, case, self.order.finding)

    async def _report(self, study: Study, case: Case) -> Report:
        """The report; the swapped-picture control shows the latest study of another truth, where there was one."""
        await self.engine.ready()  # again, where its worker ended on an earlier study
        other = next((one for truth, one in reversed(self.shown.items()) if truth != case.truth), None)
        self.shown.pop(case.truth, None)
        self.shown[case.truth] = replace(study, volume=None)
        return await examine(
            self.order.workflow, study, self.engine, options=self.options, calibrations=self.fits, other=other
        )

    def _check_named(self, report: Report) -> None:
        """Refuse, at the first report that says anything, a finding that there is not: hours may follow."""
        names = [one.name for one in report.conclusion.findings]
        if self.order.finding and not self.named and Flag.NOT_ASSESSABLE not in report.flags:
            if self.order.finding not in names:
                raise InvalidRequest(
                    f"{self.order.workflow.name} has no such finding; it has: {', '.join(names)}", param="finding"
                )
            self.named = True


def _measured(
    order: Order,
    options: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    counts: Counts,
    model: str,
    facts: Mapping[str, str],
    home: Path,
) -> Evaluation:
    """The numbers, and the calibration on disk where it is one that helps. Blocking."""
    workflow, weights = order.workflow, calibration.identity(facts)
    fit, unfitted = None, None
    if order.calibrate:
        try:
            fit = fitted(outcomes, order.calibrate, workflow, options, weights=weights, dataset=dataset_of(outcomes))
        except InvalidRequest as error:  # fewer studies were answered than were labelled
            unfitted = error.message
        if fit is not None and fit.helps:
            calibration.keep(home, fit.calibration)
    return evaluated(
        workflow,
        outcomes,
        counts,
        model=model,
        facts=facts,
        weights=weights,
        options=workflow.chosen(options).model_dump(mode="json"),
        finding=order.finding,
        calibrated_on=next((one.calibrated_on for one in outcomes if one.calibrated_on), None),
        fitted=fit,
        unfitted=unfitted,
    )
