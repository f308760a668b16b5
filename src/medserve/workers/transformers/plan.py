"""A process that reads the headers of a folder of safetensors, says what the model needs, and ends: it loads nothing.

One JSON line in, as the engine's worker takes it, one out: `{"need": {...}}` with bytes of memory and tokens of
context, the precision, whether the memory is a GPU's, and smaller settings with what they take; or `{"error": {"code":
..., "message": ...}}`.
"""

from dataclasses import asdict

from medserve import machine
from medserve.workers.parent import answer
from medserve.workers.transformers.folder import Spec, examine, precision, smaller


def main() -> None:
    """Answer what standard input asks."""
    answer(lambda asked: planned(Spec.of(asked)))


def planned(spec: Spec) -> dict[str, object]:
    """What the model of a spec needs where it would compute; raises ModelFailed when its folder is no model."""
    found = examine(spec)
    gpu = spec.device != "cpu" and bool(machine.gpus().devices)
    chosen = precision(spec, gpu=gpu)
    need = asdict(found.need(spec, chosen))
    parts = {name: need[name] for name in ("weights", "vision", "cache", "working", "context")}
    less = [(said, need.total) for said, need in smaller(found, spec, chosen)]
    return {"need": {**parts, "precision": chosen, "gpu": gpu, "smaller": less}}


if __name__ == "__main__":
    main()
