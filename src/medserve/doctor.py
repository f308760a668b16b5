"""What this machine can run and what it lacks, in plain words and without starting a model."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medserve import machine
from medserve.errors import ModelFailed
from medserve.hub import fitting, picking
from medserve.hub.store import Pulled, Store
from medserve.settings import ModelSpec, Settings

GIB = 2**30
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
    """All checks, the general ones first, then one for each declared or pulled model."""
    kept = Store(settings.home).kept()
    pulled = {model.name: model for model in kept.models}
    return [
        _python(),
        _processor(),
        _memory(),
        _disk(),
        _engine(),
        _hub(),
        *(Check("pulled models", False, fault) for fault in kept.faults),
        *(_model(spec, pulled.get(spec.name), settings) for spec in settings.models),
    ]


def _python() -> Check:
    return Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("processor", True, f"{cores} core(s); the llama.cpp engine uses them, no GPU is needed")


def _memory() -> Check:
    total = machine.memory_total()
    fits = "the demonstration model" if total < NEEDED_FOR_MEDGEMMA else "MedGemma 4B as Q4 GGUF (needs about 4 GiB)"
    return Check("memory", total > GIB / 2, f"{total / GIB:.1f} GiB; enough for {fits}")


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


def _hub() -> Check:
    """Never an obstacle: MedGemma's GGUF files need no token. The token itself is not shown."""
    from medserve.hub.remote import Hub  # the client takes a while to import

    hub = Hub()
    token = "a token is there" if hub.has_token else "no HF_TOKEN, which only repositories behind terms need"
    return Check("model hub", True, f"{hub.endpoint}; {token}; downloads go to {hub.cache}")


def _model(spec: ModelSpec, pulled: Pulled | None, settings: Settings) -> Check:
    what = f"model {spec.name}"
    if spec.path is None:
        return Check(what, True, f"runs on the {spec.engine} engine without files of its own")
    files = [path for path in (spec.path, spec.projector) if path is not None]
    if missing := [str(path) for path in files if not path.exists()]:
        mend = f"pull it again: medserve pull {pulled.repo}" if pulled and pulled.repo else "check the paths"
        return Check(what, False, f"not there: {' and '.join(missing)}; {mend}")
    try:
        picking.runnable(spec)
        choice = picking.choose(spec)
        held = f"runs on the {spec.engine} engine" + (f": {choice.reason}" if choice.engine == spec.engine else "")
        if spec.engine != "llama-cpp":
            return Check(what, True, held)
        need = fitting.need_of(spec)
    except ModelFailed as error:
        return Check(what, False, error.message)
    choices = pulled.choices if pulled else ()
    words = fitting.misfit(need.total, fitting.room(settings), need.weights, choices)
    return Check(what, words is None, f"{held}; takes {need.words}" + (f"; {words}" if words else ""))
