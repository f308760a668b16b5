"""Which processes a test has started, and when the last of them is gone."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import psutil


def family(pid: int) -> list[psutil.Process]:
    """All that a process started, and all that those did."""
    return psutil.Process(pid).children(recursive=True)


async def gone(processes: Iterable[psutil.Process], seconds: float = 20.0) -> None:
    """Return when none of them lives any more; raises TimeoutError when one still does after so many seconds."""
    async with asyncio.timeout(seconds):
        while any(_lives(one) for one in processes):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.02)


def _lives(one: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    return False
