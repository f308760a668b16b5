"""A recorded report runs again without a model: its answers go through today's reading, cleaning and concluding."""

from pathlib import Path

from medserve import workflows
from medserve.calibration import Fit
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.generation import Sampling, Timings
from medserve.images import Study
from medserve.reports import Report, Step
from medserve.threads import in_thread
from medserve.workflow import usage_of


def changed(recorded: Report, folder: Path | None = None) -> str:
    """In words, that the workflow is another one now than when the report was made; empty while it is the same."""
    made = recorded.provenance
    now = workflows.find(made.workflow, folder).version
    if now == made.workflow_version:
        return ""
    return f"{made.workflow} has changed: version {made.workflow_version} made the report, {now} replays it"


async def replayed(recorded: Report, study: Study, folder: Path | None = None) -> Report:
    """The report that the recorded answers make now; `recorded.same_answers` compares it with the old one.

    `folder` holds workflow files; whether today's workflow is the one that made the report is told by `changed`.

    Raises InvalidRequest when the study's pictures are not the recorded ones, by content, and EngineError when today's
    workflow asks more questions than were recorded.
    """
    if await in_thread(lambda: study.sha256) != recorded.study.sha256:
        raise InvalidRequest(
            "these are not the pictures that the report is about: their content differs", param="files"
        )
    made, fit = recorded.provenance, recorded.conclusion.calibrated
    return await examine(
        workflows.find(made.workflow, folder),
        study,
        script(recorded),
        options=made.options,
        sampling=_sampling(recorded.steps),
        calibrations={fit.step: Fit.recorded(fit)} if fit else None,
    )


def script(recorded: Report) -> Scripted:
    """An engine that gives the report's answers in their order."""
    controls = (step for control in recorded.controls for step in control.steps)
    return Scripted([_reply(step) for step in (*recorded.steps, *controls)], name=recorded.provenance.model)


def _reply(step: Step) -> Reply:
    return Reply(
        text=step.reply,
        thinking=step.thinking,
        finish=step.finish,
        label_logprobs=step.label_logprobs,
        usage=usage_of(step),
        timings=Timings(step.prompt_seconds, step.completion_seconds),
    )


def _sampling(steps: tuple[Step, ...]) -> Sampling:
    return Sampling(temperature=steps[0].temperature, seed=steps[0].seed) if steps else Sampling()
