"""How much was computed while the event loop stood still: time in which nobody else was answered.

Processor time is counted and not the clock's, which on a busy machine also tells what other programs do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import process_time

BEAT_SECONDS = 0.001


class Holds:
    """The most processor time in seconds that was spent, by all threads, before the loop came round again."""

    longest = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Holds]:
    """Looks at the loop for as long as the context lasts."""
    holds = Holds()

    async def beat() -> None:
        last = process_time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = process_time()
            holds.longest, last = max(holds.longest, now - last), now

    beating = asyncio.create_task(beat())
    await asyncio.sleep(2 * BEAT_SECONDS)
    try:
        yield holds
        await asyncio.sleep(2 * BEAT_SECONDS)  # a hold at the very end is seen too
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
