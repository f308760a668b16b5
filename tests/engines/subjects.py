"""What engine tests share: a real worker on the demo model, noise to look at, and questions."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np

from medserve.engines import llama_cpp
from medserve.engines.llama_cpp import LlamaCpp
from medserve.generation import GenerationRequest, Message, Part
from medserve.images import Image, Source
from medserve.settings import DEMO_MODEL, Settings

SPEC = DEMO_MODEL

Running = Callable[..., AbstractAsyncContextManager[LlamaCpp]]


@asynccontextmanager
async def running(**changes: object) -> AsyncIterator[LlamaCpp]:
    """A llama.cpp engine of one's own for as long as the context lasts: the demo model with some settings changed."""
    engine = await llama_cpp.start(SPEC.model_copy(update=changes), Settings())
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
