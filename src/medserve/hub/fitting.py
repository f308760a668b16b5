"""What a model takes of this machine's memory, said before it is loaded, and what would fit in its place.

The numbers are the very ones by which the engine's worker asks for room: weights and vision part, what the slots keep
of what they have read (KV), and room to compute in.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve import machine
from medserve.engines import transformers
from medserve.engines.llama_cpp import projector_beside
from medserve.errors import ModelFailed
from medserve.process import failure, inherited
from medserve.residency import size
from medserve.settings import ModelSpec, Settings

GGUF_READER = "medserve.workers.gguf_plan"
SAFETENSORS_READER = "medserve.workers.transformers.plan"
SECONDS = 60.0
"""Far more than headers take; a disk that is asleep or far away may need some of it."""


@dataclass(frozen=True)
class Need:
    """Bytes of memory by what takes them; `cache` is for `context` tokens in every slot.

    Of safetensors also: the precision they are computed in, whether the memory is that of the GPUs, and settings that
    take less, with the bytes of each, the nearest first.
    """

    weights: int
    vision: int
    cache: int
    working: int
    context: int
    precision: str = ""
    gpu: bool = False
    smaller: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        return self.weights + self.vision + self.cache + self.working

    @property
    def words(self) -> str:
        """The sum and its parts."""
        return (
            f"{size(self.total)} of {'GPU ' if self.gpu else ''}memory: weights {size(self.weights)}"
            f"{f' ({self.precision})' if self.precision else ''}, vision {size(self.vision)}, "
            f"KV {size(self.cache)} (context {self.context}), working {size(self.working)}"
        )


def room(settings: Settings, *, gpu: bool = False) -> int:
    """The bytes that models may take together at the most: of memory, or of all GPUs' own."""
    if gpu:
        return sum(device.total_bytes for device in machine.gpus().devices)
    return settings.limits.memory_bytes or machine.memory_total()


def need_of(model: ModelSpec) -> Need:
    """What a model of files takes once it is loaded; raises ModelFailed when its files are no model.

    A process of its own reads the headers: files from elsewhere are never parsed in this one.
    """
    if model.path is None:
        raise ModelFailed(f"{model.name} has no path; name its GGUF file or its folder of safetensors", param="path")
    if model.engine == "transformers":
        said = _ask(SAFETENSORS_READER, {**transformers.order(model), "directory": ""})
    else:
        said = _ask(GGUF_READER, _gguf(model, model.path))
    if "need" not in said:
        error = said.get("error") or {"code": "", "message": f"the files of {model.name} could not be read"}
        raise failure(error["code"], error["message"])
    told = said["need"]
    return Need(**{**told, "smaller": tuple((setting, number) for setting, number in told.get("smaller", ()))})


def _gguf(model: ModelSpec, weights: Path) -> dict[str, Any]:
    projector = model.projector or projector_beside(weights)
    return {
        "directory": "",
        "weights": str(weights),
        "projector": str(projector) if projector else None,
        "context": model.context,
        "slots": model.slots,
        "threads": 1,
    }


def _ask(reader: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What the reader says of files; nothing where it failed in a way that it did not foresee."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", reader],
            input=json.dumps(spec).encode() + b"\n",
            capture_output=True,
            timeout=SECONDS,
            env=inherited(),
            check=True,
        )
        said: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return {}
    return said


def obstacle(need: Need, settings: Settings, choices: Sequence[tuple[str, int]] = ()) -> str | None:
    """Why a model cannot be loaded here, with the next smaller choice that can; None when it can itself.

    `choices` are the other quantisations of a GGUF model's repository, with their bytes.
    """
    most = room(settings, gpu=need.gpu)
    if not need.smaller or need.total <= most:
        return misfit(need.total, most, need.weights, choices)
    whose = "the GPUs have" if need.gpu else "models may take"
    said = f"it cannot be loaded here: it needs {size(need.total)} and {whose} {size(most)}"
    for setting, number in need.smaller:
        if number <= most:
            return f"{said}; the next smaller choice that fits is to set {setting} ({size(number)})"
    return f"{said}; no smaller setting fits either: take a smaller model, or GGUF files, such as: medserve pull 1.5-4b"


def misfit(need: int, most: int, weights: int, choices: Sequence[tuple[str, int]]) -> str | None:
    """Why a model cannot be loaded here, with the next smaller choice that can; None when it can itself.

    `weights` are the bytes of its GGUF file, in place of which one of `choices` (quantisation, bytes) would be read.
    """
    if need <= most:
        return None
    fitting = [(bytes_, quant) for quant, bytes_ in choices if bytes_ < weights and need - weights + bytes_ <= most]
    said = f"it cannot be loaded here: it needs {size(need)} and models may take {size(most)}"
    if fitting:
        bytes_, quant = max(fitting)
        return f"{said}; the next smaller choice that fits is --quant {quant} (weights {size(bytes_)})"
    if any(bytes_ < weights for _, bytes_ in choices):
        return f"{said}; no smaller quantisation fits either: take a smaller model or a smaller context"
    return f"{said}; take a smaller model, a smaller context or more memory"
