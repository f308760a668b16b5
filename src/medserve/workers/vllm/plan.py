"""A process that holds a folder and a build of vLLM against the settings, says what that takes, and ends.

Nothing is loaded or started. One JSON line in, as the engine's worker takes it, one out: `{"need": {...}, "build":
version, "cpu": whether it computes on processors}`, or `{"error": {"code": ..., "message": ...}}`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medserve.workers.parent import answer
from medserve.workers.transformers import folder as safetensors
from medserve.workers.transformers.folder import WIDTHS, Examined
from medserve.workers.vllm.build import Build, agree, build_of
from medserve.workers.vllm.environment import environment
from medserve.workers.vllm.memory import cache_bytes, need
from medserve.workers.vllm.spec import Spec


@dataclass(frozen=True)
class Plan:
    """What is known before vLLM is started: the folder, the build, the precision to compute in, what it inherits.

    `memory_bytes` is what that takes of the machine's memory.
    """

    found: Examined
    build: Build
    precision: str
    inherits: Mapping[str, str]
    memory_bytes: int


async def planned(spec: Spec) -> Plan:
    """The plan of a spec; raises ModelFailed with the reason why it cannot be followed."""
    found = safetensors.examine(spec.weights)
    build = await build_of(spec.python)
    agree(spec, build)
    precision = safetensors.precision(spec.weights, gpu=not build.cpu)
    inherits = environment(spec, cpu=build.cpu)
    return Plan(found, build, precision, inherits, need(spec, found, build, WIDTHS[precision]))


def main() -> None:
    """Answer what standard input asks."""
    answer(lambda asked: _answer(Spec.of(asked)))


def _answer(spec: Spec) -> dict[str, Any]:
    return told(spec, asyncio.run(planned(spec)))


def told(spec: Spec, plan: Plan) -> dict[str, Any]:
    """The plan as it is told to the gateway."""
    width = WIDTHS[plan.precision]
    vision = weights = cache = 0
    if plan.build.cpu:  # on GPUs vLLM looks after all of this by itself
        sizes = {name: tensor.numbers * width for name, tensor in plan.found.tensors.items()}
        vision = sum(size for name, size in sizes.items() if name.startswith(("vision_tower.", "multi_modal_")))
        weights = sum(sizes.values()) - vision
        cache = cache_bytes(spec, plan.found, width)
    parts = {
        "weights": weights,
        "vision": vision,
        "cache": cache,
        "working": plan.memory_bytes - weights - vision - cache,
        "context": plan.found.context,
        "precision": plan.precision,
    }
    return {"need": parts, "build": plan.build.vllm, "cpu": plan.build.cpu}


if __name__ == "__main__":
    main()
