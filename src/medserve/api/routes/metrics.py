"""What Prometheus scrapes: what was counted since the start, and the state of models, jobs and GPUs as it is now."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.metrics_core import Metric

from medserve import machine, metrics
from medserve.api.access import JobsOf, ModelsOf
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.errors import DatabaseFailed
from medserve.jobs import Jobs
from medserve.keys import Scope
from medserve.metrics import gauge
from medserve.models import Models, State, Status
from medserve.threads import in_thread

SCOPE = Scope.METRICS

router = APIRouter(tags=["operations"], responses=documented(*LOOK_ERRORS))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
)
async def show_metrics(models: ModelsOf, jobs: JobsOf, accept: Annotated[str, Header()] = "") -> Response:
    """Metrics as Prometheus' text, or as OpenMetrics where `Accept` asks for that."""
    await models.weigh()
    now = [*of_models(models), *await of_jobs(jobs)]
    text, kind = await in_thread(_written, now, accept)
    return Response(text, headers={"Content-Type": kind, "Cache-Control": "no-store"})


def _written(now: list[Metric], accept: str) -> tuple[bytes, str]:
    return metrics.exposition([*now, *of_gpus(machine.gpus())], accept)


def of_models(models: Models) -> Iterable[Metric]:
    """The declared models as they are now."""
    known = [handle.status for handle in models]
    states = {(status.name, str(state)): float(status.state is state) for status in known for state in State}
    yield gauge("model_state", "1 for the state that a model is in, 0 for the others.", states, "model", "state")
    yield _each(known, "model_blind", "1 for a model that failed its sight test.", lambda of: of.blind is not None)
    yield _each(known, "model_memory_bytes", "Memory that a loaded model's worker holds.", lambda of: of.memory_bytes)
    yield _each(known, "answers_in_progress", "Answers being written.", lambda of: of.answering)
    yield _each(known, "answers_waiting", "Requests that wait for a place.", lambda of: of.waiting)
    yield _each(known, "answer_slots", "Answers that can be written at once.", lambda of: of.slots)


def _each(known: Iterable[Status], name: str, words: str, read: Callable[[Status], float | None]) -> Metric:
    """One value for each model that has it."""
    values = {(status.name,): read(status) for status in known}
    return gauge(name, words, {place: value for place, value in values.items() if value is not None}, "model")


async def of_jobs(jobs: Jobs) -> Iterable[Metric]:
    """The jobs that are kept; nothing while the database does not answer, for the other metrics tell of that too."""
    with suppress(DatabaseFailed):
        return [
            gauge("jobs", "Jobs that are kept, ended ones until they expire.", await jobs.counts(), "state", "kind")
        ]
    return []


def of_gpus(found: machine.Gpus) -> Iterable[Metric]:
    """The GPUs that may be used; nothing where there is none."""
    used = {(str(gpu.index),): float(gpu.used_bytes) for gpu in found.devices}
    total = {(str(gpu.index),): float(gpu.total_bytes) for gpu in found.devices}
    busy = {(str(gpu.index),): gpu.utilisation / 100 for gpu in found.devices}
    yield gauge("gpu_memory_used_bytes", "GPU memory in use, by whomever.", used, "gpu")
    yield gauge("gpu_memory_total_bytes", "GPU memory that there is.", total, "gpu")
    yield gauge("gpu_utilisation_ratio", "Share of the last moment with work on the GPU, 0 to 1.", busy, "gpu")
