"""How much memory a vLLM takes is reckoned before it is started."""

from medserve.workers.transformers.folder import Examined
from medserve.workers.vllm.build import Build
from medserve.workers.vllm.spec import Spec

PROCESS_BYTES = 700 * 2**20
"""What each process of vLLM holds besides weights and cache: its API, its engine, and one for each GPU (or the CPU).

Measured on a CPU. What the driver of a GPU takes in RAM is not in it.
"""
LEAST_CACHE_BYTES = 64 * 2**20
CPU_BLOCK = 32
"""Tokens in a block of the cache on a CPU: whole blocks are shared, and vLLM's own 128 are more than a question."""


def cache_bytes(spec: Spec, found: Examined, width: int) -> int:
    """What vLLM is told to keep of prompts and answers on a CPU: every slot's context. On GPUs it takes the rest."""
    context = -(-found.context // CPU_BLOCK) * CPU_BLOCK + 2 * CPU_BLOCK
    return max(LEAST_CACHE_BYTES, found.cache_bytes(width) * context * spec.slots)


def need(spec: Spec, found: Examined, build: Build, width: int) -> int:
    """Bytes of RAM: on a CPU all of the model, on GPUs the processes alone; their memory vLLM looks after itself."""
    processes = (2 + spec.parallel) * PROCESS_BYTES
    if not build.cpu:
        return processes
    weights = sum(tensor.numbers for tensor in found.tensors.values()) * width
    return processes + weights + cache_bytes(spec, found, width)
