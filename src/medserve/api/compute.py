"""What one answer cost the machine, measured before and after it; what cannot be measured is null with a reason."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import monotonic
from typing import TypeVar

from pydantic import BaseModel, Field

from medserve import machine
from medserve.machine import Gpu, ProcessUse
from medserve.models import ModelHandle
from medserve.threads import in_thread

T = TypeVar("T")

MEBIBYTE = 2**20
NO_WORKER = "this engine has no worker process on this machine"
WORKER_ENDED = "the worker ended or was replaced while the answer was made"
NOT_TOLD = "the engine does not say which devices it computes on"
ON_CPU = "the worker computes on the processor and uses no GPU"
NO_ALLOCATOR = "only an allocator inside the engine knows this, and this engine tells nothing of it"
NOT_MATCHED = "all visible GPUs together: the driver does not say which of them the worker computes on"
NO_AFFINITY = "this system does not say which processors a process may run on"
SHORTEST_SECONDS = 0.1
"""Below it the steps of 10 ms in which processor time is counted are too coarse."""
TOO_SHORT = "the answer took too short a time for the steps in which the system counts processor time"
OWN_MEMORY = ("replica_gpu_memory_allocated_mb", "replica_gpu_memory_reserved_mb")
DEVICES = ("replica_gpu_memory_total_mb", "replica_gpu_memory_used_mb", "replica_gpu_utilization_percent")
PROCESS = ("replica_cpu_percent", "replica_memory_mb", "replica_num_cpus")


class ComputeMetrics(BaseModel):
    """What the model's worker used for one answer; `mb` counts 2^20 bytes.

    `reasons` says why a number is null, or why it is of more GPUs than the worker's own. A worker that answers several
    requests at once is measured as a whole.
    """

    query_duration_seconds: float = Field(description="from asking the model to the whole answer, waiting included")
    replica_cpu_percent: float | None = Field(description="of one processor: 200 is two of them busy throughout")
    replica_memory_mb: float | None = Field(description="RAM of the worker and its children after the answer")
    replica_num_cpus: int | None = Field(description="processors that the worker may run on")
    replica_gpu_memory_allocated_mb: float | None = Field(description="held by tensors of this worker, on all its GPUs")
    replica_gpu_memory_reserved_mb: float | None = Field(description="held by its allocator, on all its GPUs")
    replica_gpu_memory_total_mb: float | None = Field(description="what all its GPUs have")
    replica_gpu_memory_used_mb: float | None = Field(description="used on all its GPUs by whatever process")
    replica_gpu_utilization_percent: float | None = Field(description="mean over its GPUs, in the answer's last moment")
    reasons: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """A worker at one moment; `use` is None when it is not there, or not ours to look at."""

    at: float
    pid: int | None
    use: ProcessUse | None
    processors: int | None

    @classmethod
    def of(cls, pid: int | None) -> "Sample":
        """Look at the process now; takes milliseconds."""
        if pid is None:
            return cls(monotonic(), None, None, None)
        use, processors = machine.use_of(pid), _processors(pid)
        return cls(monotonic(), pid, use, processors)


async def metered(handle: ModelHandle, work: Callable[[], Awaitable[T]]) -> tuple[T, ComputeMetrics]:
    """The outcome of `work`, which the model's worker does, and what it cost."""
    before = await in_thread(Sample.of, handle.pid)
    began = monotonic()
    outcome = await work()
    seconds = monotonic() - began
    return outcome, await in_thread(_metrics, before, handle.pid, handle.status.facts, seconds)


def _metrics(before: Sample, pid: int | None, facts: Mapping[str, str], seconds: float) -> ComputeMetrics:
    values, reasons = _process(before, Sample.of(pid))
    more, more_reasons = _devices(facts, pid)
    return ComputeMetrics.model_validate(
        {"query_duration_seconds": round(seconds, 3), **values, **more, "reasons": reasons | more_reasons}
    )


Told = tuple[dict[str, float | None], dict[str, str]]
"""Numbers by name, and for those that are None the reasons."""


def _process(before: Sample, after: Sample) -> Told:
    if after.pid is None and before.pid is None:
        return _untold(PROCESS, NO_WORKER)
    if before.use is None or after.use is None or before.pid != after.pid:
        return _untold(PROCESS, WORKER_ENDED)
    seconds = after.at - before.at
    share = (after.use.cpu_seconds - before.use.cpu_seconds) / seconds if seconds >= SHORTEST_SECONDS else None
    values: dict[str, float | None] = {
        "replica_cpu_percent": None if share is None else round(100 * share, 1),
        "replica_memory_mb": _mebibytes(after.use.memory_bytes),
        "replica_num_cpus": after.processors,
    }
    reasons = {"replica_cpu_percent": TOO_SHORT, "replica_num_cpus": NO_AFFINITY}
    return values, {name: reason for name, reason in reasons.items() if values[name] is None}


def _devices(facts: Mapping[str, str], pid: int | None) -> Told:
    """The GPUs that the worker computes on, all together; all that are visible where the driver tells of no process."""
    devices = facts.get("devices")
    if devices is None or devices == "CPU":
        return _untold(OWN_MEMORY + DEVICES, ON_CPU if devices else NOT_TOLD)
    found = machine.gpus()
    if not found.devices:
        return _untold(OWN_MEMORY + DEVICES, found.reason)
    values, reasons = _untold(OWN_MEMORY, NO_ALLOCATOR)
    own = machine.computing(found.devices, pid) if pid is not None else ()
    if not own and len(found.devices) > 1:
        reasons |= dict.fromkeys(DEVICES, NOT_MATCHED)
    return values | together(own or found.devices), reasons


def together(devices: Sequence[Gpu]) -> dict[str, float | None]:
    """The memory and the load of several GPUs as those of one."""
    return {
        "replica_gpu_memory_total_mb": _mebibytes(sum(gpu.total_bytes for gpu in devices)),
        "replica_gpu_memory_used_mb": _mebibytes(sum(gpu.used_bytes for gpu in devices)),
        "replica_gpu_utilization_percent": round(fmean(gpu.utilisation for gpu in devices), 1),
    }


def _untold(names: tuple[str, ...], reason: str) -> Told:
    return dict.fromkeys(names), dict.fromkeys(names, reason)


def _mebibytes(size: int) -> float:
    return round(size / MEBIBYTE, 1)


def _processors(pid: int) -> int | None:
    """How many processors a process may run on, where the system says it."""
    try:
        return len(os.sched_getaffinity(pid))
    except (AttributeError, OSError):
        return None
