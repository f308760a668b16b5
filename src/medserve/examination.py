"""One examination: a study is held against what the workflow takes, the protocol is run, and all of it is reported."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from medserve import calibration, controls, guard, observation
from medserve.calibration import Fit
from medserve.certificates import is_unverified
from medserve.engines import Engine, leased
from medserve.flags import Flag
from medserve.generation import GREEDY, Sampling, Usage
from medserve.images import Concern, Modality, Study
from medserve.reports import Conclusion, Provenance, Report, StudyFacts, is_demonstration, notice_for
from medserve.threads import in_thread
from medserve.workflow import Consult, Options, Progress, Workflow, counts, once, quiet, usage_of


@observation.examination
async def examine(
    workflow: Workflow,
    study: Study,
    engine: Engine,
    *,
    options: Mapping[str, Any] | None = None,
    sampling: Sampling = GREEDY,
    progress: Progress = quiet,
    calibrations: Mapping[str, Fit] | None = None,
    other: Study | None = None,
) -> Report:
    """Run `workflow` on `study` with `engine` and report all of it; `other` is shown by the swapped-picture control.

    Raises InvalidRequest when the study or the options are not what the workflow takes, ModelError or EngineError
    when the model cannot answer; an answer that cannot be read is no error but a flag.
    """
    chosen = workflow.chosen(options or {})
    workflow.check(study)
    study = seen_as(study, workflow)
    consult = Consult(engine, study, sampling=sampling, progress=progress, options=chosen, calibrations=calibrations)
    async with leased(engine):  # one load for all its questions
        return await _reported(workflow, study, engine, consult, chosen, other)


async def calibrations_of(
    workflow: Workflow, options: Mapping[str, Any], engine: Engine, home: Path
) -> Mapping[str, Fit]:
    """What was fitted, and is kept in `home`, for this version of the workflow and the weights that the engine has."""
    facts, own = dict(engine.capabilities.facts), workflow.own(options)
    return await in_thread(calibration.find, home, workflow.name, workflow.version, own, facts)


async def _reported(
    workflow: Workflow, study: Study, engine: Engine, consult: Consult, chosen: Options, other: Study | None
) -> Report:
    began = perf_counter()
    told = await in_thread(StudyFacts.of, study)  # hashes every picture, once for all steps
    domain = await guard.assess(workflow.domain, study, consult) if workflow.domain and chosen.guard else None
    if domain is None or domain.assessable:
        conclusion = await workflow.run(study, consult, chosen)
        runs = await controls.rerun(workflow, study, consult, chosen, conclusion, other)
    else:
        conclusion, runs = Conclusion(flags=(Flag.NOT_ASSESSABLE,)), ()
    seconds = perf_counter() - began
    facts = dict(engine.capabilities.facts)
    noticed = [*guard.flags(domain), *controls.flags(runs), *of_engine(facts)]
    flags = once([*(flag for step in consult.steps for flag in step.flags), *conclusion.flags, *noticed])
    asked = [*consult.steps, *(step for run in runs for step in run.steps)]
    usage = sum(map(usage_of, asked), Usage())
    return Report(
        title=workflow.title,
        study=told,
        domain=domain,
        conclusion=conclusion,
        controls=runs,
        depends_on_picture=controls.depends(runs),
        flags=flags,
        needs_review=bool(flags or study.concerns) or (bool(workflow.labels) and conclusion.label is None),
        steps=tuple(consult.steps),
        tokens=counts(usage),
        seconds=seconds,
        provenance=Provenance(
            workflow=workflow.name,
            workflow_version=workflow.version,
            options=chosen.model_dump(mode="json"),
            model=engine.name,
            engine=facts.get("engine", "unknown"),
            facts=facts,
        ),
        notice=notice_for(facts),
    )


def of_engine(facts: Mapping[str, str]) -> list[Flag]:
    """What is noticed of every answer of an engine with these facts."""
    judged = {Flag.UNVERIFIED: is_unverified(facts), Flag.DEMONSTRATION: is_demonstration(facts)}
    return [flag for flag, true in judged.items() if true]


def seen_as(study: Study, workflow: Workflow) -> Study:
    """The study with what its files say of their making; what contradicts the workflow is a concern, not a change.

    Only where the files say nothing is it taken to be what the workflow is for.
    """
    stated = dict(study.facts).get("modality", "")
    if study.modality is Modality.OTHER and stated in guard.UNSAID:
        return replace(study, modality=workflow.modality)
    if not workflow.modalities or study.modality in workflow.modalities:
        return study
    return study.concerned(Concern.WRONG_MODALITY)
