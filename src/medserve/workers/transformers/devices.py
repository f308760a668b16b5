"""A process that says where torch would compute a model, and ends: the gateway never imports torch.

One JSON line in, as the engine's worker takes it, one out: `{"torch": version, "gpus": [name], "room": bytes}`, of all
GPUs that torch sees and of the memory of those that the model would be on (0: it would be on the processor); or
`{"error": {"code": ..., "message": ...}}`.
"""

from medserve.workers.parent import answer
from medserve.workers.transformers.folder import Spec
from medserve.workers.transformers.loading import packages, place_of


def main() -> None:
    """Answer what standard input asks."""
    answer(lambda asked: seen(Spec.of(asked)))


def seen(spec: Spec) -> dict[str, object]:
    """What torch sees for a model; raises ModelFailed when nothing there can compute it as wanted."""
    with packages():
        import torch

        place = place_of(spec)
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return {
            "torch": torch.__version__,
            "gpus": [torch.cuda.get_device_name(number) for number in range(there)],
            "room": sum(torch.cuda.get_device_properties(number).total_memory for number in place.gpus),
        }


if __name__ == "__main__":
    main()
