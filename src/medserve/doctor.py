"""What this machine can run and what it lacks, in plain words and without starting a model."""

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medserve import machine
from medserve.errors import ModelFailed
from medserve.hub import fitting, picking
from medserve.hub.store import Pulled, Store
from medserve.residency import GIB
from medserve.settings import ModelSpec, Settings

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
        _transformers(),
        _gpus(),
        _hub(),
        *(Check("pulled models", False, fault) for fault in kept.faults),
        *(_model(spec, pulled.get(spec.name), settings) for spec in settings.models),
    ]


def _python() -> Check:
    return Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Check:
    return Check("processor", True, f"{machine.processors()} core(s); the llama.cpp engine uses them, no GPU is needed")


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


def _transformers() -> Check:
    """Never an obstacle: GGUF files do without it. Nothing of it is imported here."""
    try:
        found = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    except PackageNotFoundError:
        return Check("transformers engine", True, f"not installed; for models in safetensors run: {picking.INSTALL}")
    return Check("transformers engine", True, f"{' and '.join(found)} are installed")


def _gpus() -> Check:
    """Never an obstacle: the llama.cpp engine does without."""
    gpus = machine.gpus()
    named = ", ".join(f"{gpu.name} with {gpu.total_bytes / GIB:.0f} GiB" for gpu in gpus.devices)
    return Check("GPU", True, named or gpus.reason)


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
        if spec.engine not in {"llama-cpp", "transformers"}:
            return Check(what, True, held)
        need = fitting.need_of(spec)
    except ModelFailed as error:
        return Check(what, False, error.message)
    where = _where(spec, gpu=need.gpu) if spec.engine == "transformers" else Check("", True, "")
    words = fitting.obstacle(need, settings, pulled.choices if pulled else ())
    said = "; ".join(filter(None, (held, where.words, f"takes {need.words}", words)))
    return Check(what, where.good and words is None, said)


def _where(spec: ModelSpec, *, gpu: bool) -> Check:
    """Where a model in safetensors would compute; `gpu` says that it should on one that the driver has."""
    if spec.device == "cpu":
        return Check("device", True, "it computes on the processor, as its device says")
    torch = picking.torch_of(spec)
    if torch is None:
        return Check("device", False, f"torch cannot be imported; run: {picking.INSTALL}")
    if torch.gpus:
        return Check("device", True, f"torch {torch.version} sees {len(torch.gpus)} GPU(s): {', '.join(torch.gpus)}")
    seen = f"torch {torch.version} sees no GPU"
    if spec.device.startswith("cuda"):
        mend = "install a build of torch with CUDA and NVIDIA's driver, or set device to cpu"
        return Check("device", False, f"{seen}, and the model's device is {spec.device}: {mend}")
    if gpu:
        return Check("device", False, f"{seen} although the driver has one: install a build of torch with CUDA")
    return Check("device", True, f"{seen}, so it computes on the processor")
