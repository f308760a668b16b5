"""What this machine has and what a process takes of it, asked of the kernel and the driver, never guessed.

Everything here blocks for milliseconds; the gateway calls it through `threads.in_thread`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
PROCESSOR = Path("/proc/cpuinfo")
UNSET = 2**60
"""The first version of control groups writes a number near 2^63 where no limit is set."""


@dataclass(frozen=True)
class ProcessUse:
    """What a process and all that it started hold: bytes of memory in RAM, and seconds of processor time so far."""

    memory_bytes: int
    cpu_seconds: float


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver reports it: `utilisation` is the share of the last moments with work on it, 0 to 100.

    `used_bytes` counts what every process holds there, not only ours. `pids` are the processes that compute on it, as
    far as the driver says it: inside a container it may name none, or the host's numbers.
    """

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    utilisation: float
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Gpus:
    """The GPUs that this process may use; `reason` says why there are none, and is empty when there are."""

    devices: tuple[Gpu, ...]
    reason: str = ""


def memory_total() -> int:
    """Bytes of RAM that this process may use: the machine's, or less where its container has a limit."""
    return min([psutil.virtual_memory().total, *_container_limits()])


def memory_available() -> int:
    """Bytes of RAM that this process and its children could still take without anything being swapped out."""
    return max(0, min([psutil.virtual_memory().available, *_container_rooms()]))


def processors() -> int:
    """Processors that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 itself; where it does not, float32 is faster."""
    try:
        said = PROCESSOR.read_text()
    except OSError:  # not Linux
        return False
    flags = next((line.split(":", 1)[1].split() for line in said.splitlines() if re.match("flags|Features", line)), [])
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def use_of(pid: int) -> ProcessUse | None:
    """What a process and its descendants use now; None when there is no such process, or it may not be looked at.

    Pages that several of them share are counted once for each.
    """
    try:
        process = psutil.Process(pid)
        return _sum([_use(process), *_uses(process.children(recursive=True))])
    except psutil.Error:
        return None


def bytes_read(pid: int) -> int | None:
    """Bytes that a process has read so far from files, pipes and sockets; None where the system does not tell."""
    try:
        return int(psutil.Process(pid).io_counters().read_chars)
    except (psutil.Error, AttributeError, OSError):
        return None


def gpus() -> Gpus:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, in the order of the PCI bus."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus((), f"no NVIDIA driver answers: {error}")
    try:
        visible = _visible(_identities(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        devices = tuple(_gpu(index) for index in visible)
    except pynvml.NVMLError as error:
        return Gpus((), f"the NVIDIA driver does not say what there is: {error}")
    finally:
        pynvml.nvmlShutdown()
    return Gpus(devices, "" if devices else "no GPU is visible; CUDA_VISIBLE_DEVICES may hide those there are")


def computing(devices: Sequence[Gpu], pid: int) -> tuple[Gpu, ...]:
    """Those of the GPUs that a process or one of its descendants computes on; empty where the driver tells of none."""
    try:
        family = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return ()
    return tuple(gpu for gpu in devices if gpu.pids & family)


# --- processes -----------------------------------------------------------------------------------------------------


def _use(process: psutil.Process) -> ProcessUse:
    with process.oneshot():
        times = process.cpu_times()
        return ProcessUse(process.memory_info().rss, times.user + times.system)


def _uses(processes: Iterable[psutil.Process]) -> Iterator[ProcessUse]:
    """Of those that have not ended since they were listed."""
    for process in processes:
        with suppress(psutil.Error):
            yield _use(process)


def _sum(uses: Iterable[ProcessUse]) -> ProcessUse:
    known = tuple(uses)
    return ProcessUse(sum(use.memory_bytes for use in known), sum(use.cpu_seconds for use in known))


# --- containers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """What the two versions of control groups call the same numbers."""

    limit: str
    used: str
    cache: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def _container_limits() -> Iterator[int]:
    """Every limit on memory that this process's control groups set, their ancestors' too."""
    for folder, names in _groups():
        if (limit := _number(folder / names.limit)) is not None:
            yield limit


def _container_rooms() -> Iterator[int]:
    """What each limit leaves: files that were read and may be forgotten do not count as used."""
    for folder, names in _groups():
        limit, used = _number(folder / names.limit), _number(folder / names.used)
        if limit is not None and used is not None:
            yield limit - max(0, used - _cache(folder, names))


def _groups() -> Iterator[tuple[Path, _Names]]:
    """The folders of this process's groups, up to the root; one that is not shown in this namespace is just absent."""
    try:
        memberships = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from ((folder, _V2) for folder in _upwards(CGROUPS, group))
        elif "memory" in controllers.split(","):
            yield from ((folder, _V1) for folder in _upwards(CGROUPS / "memory", group))


def _upwards(root: Path, group: str) -> Iterator[Path]:
    place = root / group.lstrip("/")
    for folder in (place, *place.parents):
        yield folder
        if folder == root:
            return


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or it stands for no limit ("max", or one near 2^63)."""
    try:
        number = int(file.read_text())
    except (OSError, ValueError):
        return None
    return number if number < UNSET else None


def _cache(folder: Path, names: _Names) -> int:
    try:
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(told.get(names.cache, 0))
    except (OSError, ValueError):
        return 0


# --- GPUs ----------------------------------------------------------------------------------------------------------


def _identities() -> list[str]:
    """The UUIDs of all GPUs, in the order of the PCI bus."""
    return [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(pynvml.nvmlDeviceGetCount())
    ]


def _visible(identities: list[str], wanted: str | None) -> list[int]:
    """Which GPUs CUDA would use: by number or by the beginning of a UUID, up to the first entry that is neither."""
    if wanted is None:
        return list(range(len(identities)))
    chosen: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        found = _place(entry, identities)
        if found is None or found in chosen:
            break
        chosen.append(found)
    return chosen


def _place(entry: str, identities: list[str]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < len(identities) else None
    named = [index for index, identity in enumerate(identities) if entry and identity.startswith(entry)]
    return named[0] if len(named) == 1 else None


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    load = pynvml.nvmlDeviceGetUtilizationRates(handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return Gpu(index, str(name), int(memory.total), int(memory.used), float(load.gpu), _pids(handle))


def _pids(handle: Any) -> frozenset[int]:
    """The processes that compute on a GPU; none where the driver may not or cannot tell."""
    try:
        return frozenset(int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        return frozenset()
