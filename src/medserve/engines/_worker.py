"""What all engines with a worker process share: one that hangs is ended, one that dies is missed at once."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import structlog

from medserve.engines import Capabilities
from medserve.engines._chat import OpenAIEngine
from medserve.errors import EngineError, MedserveError, WorkerCrashed
from medserve.imaging.preprocess import VisionInput
from medserve.process import Child
from medserve.settings import ModelSpec
from medserve.unix_http import NoSocket, UnixClient

log = structlog.get_logger()

LAST_SECONDS = 2.0
"""How long a worker that hung up may take to be known as dead."""
PROBE_SECONDS = 10.0
"""How often the worker is asked whether it is there, and how long it may take to say so. It does not compute there."""
MISSED = 2
"""Probes in a row without an answer after which a worker is ended: one may be late on a machine under load."""


def capabilities(engine: str, facts: Mapping[str, Any], model: ModelSpec) -> Capabilities:
    """What every worker of our own honours with the model that it says it has loaded."""
    vision = facts["vision"]
    record = {"engine": engine, **facts["record"], "slots": str(model.slots)}
    if vision:
        record |= {"image_size": str(vision["size"]), "image_tokens": str(vision["tokens"]), "resample": model.resample}
    return Capabilities(
        context=facts["context"],
        vision=VisionInput(vision["size"], model.resample) if vision else None,
        image_tokens=vision["tokens"] if vision else 0,
        schema=True,
        choices=True,
        logprobs=True,
        score=True,
        prefix=True,
        facts=tuple(sorted(record.items())),
    )


class WorkerEngine(OpenAIEngine):
    """A model in a worker process of its own, which answers HTTP at the unix socket that its facts name."""

    def __init__(self, model: ModelSpec, child: Child, capabilities: Capabilities, *, seconds: float) -> None:
        super().__init__(model, UnixClient(child.facts["socket"]), capabilities, seconds=seconds)
        self._child = child
        self._watch: asyncio.Task[None] | None = None

    async def introduce(self) -> None:
        """Learn from the worker what its facts do not tell; most need not."""

    def watch(self) -> None:
        """From now on end the worker when it no longer says that it is there: all its work fails, and it is not alive.

        A worker may be stopped by a person, or hang with all its threads; its requests would wait for their own limit,
        as they do where only the thread that computes hangs, which nobody can tell from long work.
        """
        self._watch = asyncio.create_task(self._watched(), name=f"watch {self.name}")

    async def _watched(self) -> None:
        missed = 0
        while missed < MISSED:
            await asyncio.sleep(PROBE_SECONDS)
            missed = 0 if await self._responds() else missed + 1
        log.error("worker.hung", model=self.name, seconds=PROBE_SECONDS * MISSED)
        await self._child.stop(grace=0)

    async def _responds(self) -> bool:
        """Whether the worker's listener answers at all, be it busy or not. That nobody can ask is not its fault."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._client.get("/health")
        except NoSocket:
            return True
        except (TimeoutError, httpx.HTTPError):
            return False
        return True

    @property
    def alive(self) -> bool:
        return self._child.alive and super().alive

    @property
    def pid(self) -> int:
        """The worker's process."""
        return self._child.pid

    async def exited(self) -> int:
        """Wait until the worker has ended, for whatever reason; its exit status."""
        return await self._child.ended()

    async def close(self) -> None:
        """End the worker, which returns all memory to the system."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await super().close()
        finally:
            await self._child.stop()

    async def _lost(self) -> MedserveError:
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._child.ended()
        except TimeoutError:
            return EngineError(f"the worker of {self.name} hung up on this request; ask again")
        return WorkerCrashed(f"the worker of {self.name} ended with work to do; it is started anew by the next request")


E = TypeVar("E", bound=WorkerEngine)


@asynccontextmanager
async def ended_on_failure(child: Child) -> AsyncIterator[None]:
    """End a worker, of which nobody else knows yet, where no engine comes of what it says of itself."""
    try:
        yield
    except BaseException:
        await child.stop(grace=0)
        raise


async def ready(engine: E) -> E:
    """The engine, once it has learnt from its worker what it must know; from now on that is watched."""
    try:
        await engine.introduce()
        engine.watch()
    except BaseException:
        await engine.close()
        raise
    return engine
