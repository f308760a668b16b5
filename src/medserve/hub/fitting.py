"""Whether a model fits into this machine's memory, said before it is loaded, and what would fit in its place."""

from collections.abc import Sequence

from medserve import machine
from medserve.engines import llama_cpp, transformers
from medserve.footprint import Need
from medserve.residency import size
from medserve.settings import ModelSpec, Settings


def room(settings: Settings, *, gpu: bool = False) -> int:
    """The bytes that models may take together at the most: of memory, or of all GPUs' own."""
    if gpu:
        return sum(device.total_bytes for device in machine.gpus().devices)
    return settings.limits.memory_bytes or machine.memory_total()


def need_of(model: ModelSpec) -> Need:
    """What a model of files takes once it is loaded; raises ModelFailed when its engine would not start it."""
    return transformers.need(model) if model.engine == "transformers" else llama_cpp.need(model)


def obstacle(need: Need, settings: Settings, choices: Sequence[tuple[str, int]] = ()) -> str | None:
    """Why a model cannot be loaded here, with the next smaller choice that can; None when it can itself.

    `choices` are the other quantisations of a GGUF model's repository, with their bytes.
    """
    most = need.room or room(settings, gpu=need.gpu)
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
