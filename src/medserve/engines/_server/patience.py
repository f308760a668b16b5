"""A question that may be asked again without harm is, while its server is busy, loading or just gone."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from random import uniform
from typing import TypeVar

from medserve.errors import ModelBusy, ModelLoading, ServerLost

PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
LOST = 2
"""How often more a question is asked that the server has hung up on."""

T = TypeVar("T")


async def patiently(work: Callable[[], Awaitable[T]], until: float) -> T:
    """What comes of a question that may be asked again: it is while the server is busy or loading, and twice when lost.

    The server's own time to wait is kept to; else it is waited longer and longer. `until` is a time of the loop.
    """
    for tried in count():
        try:
            return await work()
        except (ModelBusy, ModelLoading, ServerLost) as error:
            if isinstance(error, ServerLost) and tried >= LOST:
                raise
            pause = min(PAUSE_SECONDS * 2.0 ** min(tried, 10), LONGEST_PAUSE_SECONDS) * uniform(0.5, 1.5)  # noqa: S311
            pause = max(pause, error.retry_after or 0.0)
            if asyncio.get_running_loop().time() + pause > until:
                raise
            await asyncio.sleep(pause)
    raise AssertionError  # `count` has no end
