"""The one door through which blocking work leaves the event loop; whoever went through it waits until it is back."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import anyio

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread of the shared pool and wait for it, as `in_lane` does."""
    return await in_lane(anyio.to_thread.current_default_thread_limiter(), work, *args, **kwargs)


async def in_lane(lane: anyio.CapacityLimiter, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread when `lane` has a place for it, and wait for it.

    Who is cancelled while waiting for the place leaves at once, and nothing was done. Who is cancelled later leaves
    when the work has ended: nobody can stop a thread, and its place and the files it uses must be there for as long.
    """
    async with lane:
        own = anyio.CapacityLimiter(1)  # the place is taken already
        return await shielded(anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=own))


async def shielded(work: Awaitable[T]) -> T:
    """Wait for something that must not be left half done; who is cancelled meanwhile, however often, ends after it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):  # a cancelled scope of anyio's would try again without a pause
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at; the caller is no longer interested
        raise
