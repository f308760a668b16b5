"""One real worker for all tests that leave it as they found it."""

from collections.abc import AsyncIterator

import pytest

from medserve.engines import openai
from medserve.engines._chat import OpenAIEngine
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.transformers import Transformers
from medserve.engines.vllm.own import OwnVllm
from medserve.settings import ModelSpec, Settings
from tests.engines.servers import port_of
from tests.engines.subjects import VLLM_PYTHON, batching, computing, running


@pytest.fixture(scope="session")
async def llama(anyio_backend: str) -> AsyncIterator[LlamaCpp]:
    """An engine that many tests share."""
    async with running() as engine:
        yield engine


@pytest.fixture(scope="session")
async def tensors(anyio_backend: str) -> AsyncIterator[Transformers]:
    """The same weights on the transformers engine, in float32 on one thread."""
    async with computing() as engine:
        yield engine


@pytest.fixture(scope="session")
async def remote(llama: LlamaCpp) -> AsyncIterator[OpenAIEngine]:
    """The same worker as somebody else's server: probed, and asked in OpenAI's dialect over TCP."""
    async with port_of(llama) as port:
        spec = ModelSpec(name="remote", engine="openai", url=f"http://127.0.0.1:{port}")
        engine = await openai.start(spec, Settings())
        try:
            yield engine
        finally:
            await engine.close()


@pytest.fixture(scope="session")
async def real_vllm(anyio_backend: str) -> AsyncIterator[OwnVllm | None]:
    """The same weights on a real vLLM, in float32; None where none is installed (see `make vllm-contract`)."""
    if VLLM_PYTHON is None:
        yield None
        return
    async with batching() as engine:
        yield engine
