"""The event loop's seconds pass when a test says so, and then at once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

Passes = Callable[[float], Awaitable[None]]


@pytest.fixture
async def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Lets so many seconds pass, and what is then due happen."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def passes(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):  # a timer that is due wakes a task, which may wake another
            await asyncio.sleep(0)

    return passes
