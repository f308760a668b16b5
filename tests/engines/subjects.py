"""What engine tests share: a real worker on the demo model, noise to look at, and questions."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np

from medserve.engines import llama_cpp, transformers, vllm
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.transformers import Transformers
from medserve.engines.vllm.own import OwnVllm
from medserve.generation import GenerationRequest, Message, Part
from medserve.images import Image, Source
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings

SPEC = DEMO_MODEL
SAFETENSORS = ModelSpec(
    name="medserve-demo", engine="transformers", path=DEMO, context=2048, threads=1, precision="float32"
)
"""The same weights in the other form; in float32, where an answer is exact whatever it is computed with."""

VLLM_PYTHON = Path(os.environ["VLLM_PYTHON"]) if os.environ.get("VLLM_PYTHON") else None
"""The Python of an environment with a real vLLM, by `make vllm-contract`."""

Running = Callable[..., AbstractAsyncContextManager[LlamaCpp]]


@asynccontextmanager
async def running(**changes: object) -> AsyncIterator[LlamaCpp]:
    """A llama.cpp engine of one's own for as long as the context lasts: the demo model with some settings changed."""
    engine = await llama_cpp.start(SPEC.model_copy(update=changes), Settings())
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def computing(**changes: object) -> AsyncIterator[Transformers]:
    """A transformers engine of one's own: the demo model's safetensors with some settings changed."""
    engine = await transformers.start(SAFETENSORS.model_copy(update=changes), Settings())
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def batching(**changes: object) -> AsyncIterator[OwnVllm]:
    """A real vLLM of one's own: the demo model's safetensors with some settings changed."""
    spec = SAFETENSORS.model_copy(update={"engine": "vllm", "python": VLLM_PYTHON, **changes})
    engine = await vllm.start(spec, Settings())
    assert isinstance(engine, OwnVllm)
    try:
        yield engine
    finally:
        await engine.close()


def picture(seed: int, width: int = 90, height: int = 70) -> Image:
    """A picture of noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(pixels, Source("PNG", "RGB", width, height))


def ask(*parts: Part, **wishes: object) -> GenerationRequest:
    """One question in a conversation of its own."""
    return GenerationRequest((Message("user", parts),), **{"max_tokens": 24, **wishes})  # type: ignore[arg-type]
