"""One real worker for all tests that leave it as they found it."""

from collections.abc import AsyncIterator

import pytest

from medserve.engines.llama_cpp import LlamaCpp
from tests.engines.subjects import running


@pytest.fixture(scope="session")
async def llama(anyio_backend: str) -> AsyncIterator[LlamaCpp]:
    """An engine that many tests share."""
    async with running() as engine:
        yield engine
