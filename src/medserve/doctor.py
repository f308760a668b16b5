"""What this machine can run and what it lacks, in plain words and without starting a model."""

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medserve.settings import ModelSpec, Settings

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
NEEDED_FOR_MEDGEMMA = 6 * GIB
"""Memory from which MedGemma 4B is recommended.

Its Q4_0 file with vision was measured at 3.7 GB resident with a context of 4096 tokens, which is the "about 4 GiB" told
below; the system and a longer context take the rest.
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is in order, and what to do if it is not."""

    what: str
    good: bool
    words: str


def examine_machine(settings: Settings) -> list[Check]:
    """All checks, the general ones first, then one for each declared model."""
    return [_python(), _processor(), _memory(), _disk(), _engine(), *(_model(spec) for spec in settings.models)]


def _python() -> Check:
    return Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("processor", True, f"{cores} core(s); the llama.cpp engine uses them, no GPU is needed")


def _memory() -> Check:
    total = memory()
    fits = "the demonstration model" if total < NEEDED_FOR_MEDGEMMA else "MedGemma 4B as Q4 GGUF (needs about 4 GiB)"
    return Check("memory", total > GIB / 2, f"{total / GIB:.1f} GiB; enough for {fits}")


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less inside a container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # there is no such file, or it says "max"
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total


def _disk() -> Check:
    """Never an obstacle: the demonstration model is on the disk already.

    Files of MedGemma 4B with the vision part: 3.3 GB as Q4_K_M, 5.0 GB as Q8_0, 8.6 GB in bf16.
    """
    free = shutil.disk_usage(Path.cwd()).free
    return Check("disk", True, f"{free / GIB:.0f} GiB free here; the files of MedGemma 4B take 3 to 9 GiB")


def _engine() -> Check:
    try:
        return Check("llama.cpp engine", True, f"xllamacpp {version('xllamacpp')} is installed")
    except PackageNotFoundError:
        return Check("llama.cpp engine", False, "xllamacpp is not installed; run: pip install medserve")


def _model(spec: ModelSpec) -> Check:
    what = f"model {spec.name}"
    if spec.path is None:
        return Check(what, True, f"runs on the {spec.engine} engine without files of its own")
    files = [path for path in (spec.path, spec.projector) if path is not None]
    if missing := [str(path) for path in files if not path.is_file()]:
        return Check(what, False, f"not there: {' and '.join(missing)}; check the paths in your settings")
    size = sum(path.stat().st_size for path in files)
    return Check(what, True, f"{size / 2**20:.1f} MiB of weights for the {spec.engine} engine")
