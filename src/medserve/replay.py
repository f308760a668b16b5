"""A recorded report runs again without a model: its answers go through today's reading, cleaning and concluding."""

from medserve import workflows
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.generation import Sampling, Timings, Usage
from medserve.images import Study
from medserve.reports import Report, Step
from medserve.workflow import examine


async def replayed(recorded: Report, study: Study) -> Report:
    """The report that the recorded answers make now; `recorded.same_answers` compares it with the old one.

    Raises InvalidRequest when the study's pictures are not the recorded ones, by content, and EngineError when today's
    workflow asks more questions than were recorded.
    """
    if study.sha256 != recorded.study.sha256:
        raise InvalidRequest(
            "these are not the pictures that the report is about: their content differs", param="files"
        )
    made = recorded.provenance
    return await examine(
        workflows.find(made.workflow), study, script(recorded), options=made.options, sampling=_sampling(recorded.steps)
    )


def script(recorded: Report) -> Scripted:
    """An engine that gives the report's answers in their order."""
    return Scripted([_reply(step) for step in recorded.steps], name=recorded.provenance.model)


def _reply(step: Step) -> Reply:
    return Reply(
        text=step.reply,
        thinking=step.thinking,
        finish=step.finish,
        label_logprobs=step.label_logprobs,
        usage=Usage(**step.tokens.model_dump()),
        timings=Timings(step.prompt_seconds, step.completion_seconds),
    )


def _sampling(steps: tuple[Step, ...]) -> Sampling:
    return Sampling(temperature=steps[0].temperature, seed=steps[0].seed) if steps else Sampling()
