"""The one door through which blocking work leaves the event loop."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread of the shared pool and wait for it; it is not abandoned when the caller is cancelled."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))
