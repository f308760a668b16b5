"""What a process on an event loop tells the one that started it, and when that is no more."""

import asyncio
import os
from typing import TextIO

from medserve.workers.parent import Pipe


class AsyncParent(Pipe):
    """Who started this process, to a process on an event loop; see `medserve.workers.parent.Parent`."""

    def __init__(self, pipe: TextIO) -> None:
        super().__init__(pipe)
        self._lines = asyncio.Semaphore(0)

    async def ask_for(self, memory_bytes: int) -> None:
        """Return once so much memory may be taken; where it may not, the parent ends this process."""
        self._need(memory_bytes)
        await self._lines.acquire()

    async def listen(self) -> None:
        """Return when the parent has closed its end of standard input, or is no more; on the way each line is a go."""
        lines = await reader(os.dup(0))
        while await lines.readline():
            self._lines.release()


async def reader(pipe: int) -> asyncio.StreamReader:
    """Reads a pipe without blocking, and closes it in the end."""
    reading = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reading)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(pipe, "rb", buffering=0))
    return reading
