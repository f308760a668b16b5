"""vLLM and all that it starts end with this process, whichever of them ends first and however suddenly.

Who ends them:
- this process, when its standard input ends or vLLM does;
- the warden, a fork of this process that does nothing else, when this process is killed;
- the kernel (PR_SET_PDEATHSIG), for vLLM's first process, should both be killed at once.
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from medserve.workers.vllm.parent import reader
from medserve.workers.vllm.warden import Warden, signal_group

STOP_SECONDS = 3.0
"""How long vLLM may take to end by itself; the gateway waits for five."""
LAST_SECONDS = 1.0
"""How long its last words are waited for, which its children may hold back."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Follow = Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]]
"""Reads to its end what a family writes."""


@dataclass(frozen=True)
class Family:
    """vLLM's first process, and who listens to all of them."""

    process: asyncio.subprocess.Process
    listener: asyncio.Task[None]

    @property
    def status(self) -> int | None:
        """How the first process ended, negative for a signal; None while it runs."""
        return self.process.returncode

    async def heard(self) -> None:
        """Return once the last words of an ended family were read."""
        await asyncio.wait({self.listener}, timeout=LAST_SECONDS)

    async def ended(self) -> None:
        """Wait until it ends, for whatever reason."""
        await self.process.wait()


@asynccontextmanager
async def started(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, *, warden: Warden, follow: Follow
) -> AsyncIterator[Family]:
    """vLLM and all that it starts, in a group of its own, for as long as the context lasts."""
    # A pipe of our own: asyncio would take a process for alive as long as any child of it holds one of asyncio's.
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        env=environment,
        cwd=directory,
        umask=0o077,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )
    os.close(write)
    warden.guard(process.pid)
    listener = asyncio.create_task(follow(await reader(read)))
    try:
        yield Family(process, listener)
    finally:
        await _stop(process)
        listener.cancel()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the whole group: asked first, then made to."""
    if process.returncode is None:
        signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _die_with_parent() -> Callable[[], None] | None:
    """What a child of ours does first, so that the kernel ends it with us; None where there is no such kernel."""
    if sys.platform != "linux":
        return None
    prctl, ours = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != ours:
            os._exit(1)

    return prepare


def adopt() -> None:
    """Become the parent of what vLLM leaves behind, so that its end can be waited for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap() -> None:
    """End what is left of the family, whatever group it is in, so that its memory is free when this process ends."""
    with suppress(ChildProcessError):
        while True:
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    child.kill()
            os.wait()
