"""What whoever works on a job is handed: the order, its files, and the way to say how far it has come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from medserve.errors import DatabaseFailed
from medserve.jobs.ledger import ATTEMPTS, Claimed, ClaimLost, Ledger
from medserve.jobs.record import Job
from medserve.models import Models
from medserve.settings import Settings
from medserve.threads import shielded

T = TypeVar("T")

AGAIN_SECONDS = 1.0
"""Until a database that did not answer is asked again."""


class Work:
    """One attempt at a job. `files` are what was given, in its order; they are removed when the job ends."""

    def __init__(self, claimed: Claimed, files: tuple[Path, ...], ledger: Ledger) -> None:
        self.job: Job = claimed.job
        self.files = files
        self._claim = claimed.claim
        self._ledger = ledger
        self._latest: tuple[int, int, str] | None = None
        self._telling: asyncio.Task[None] | None = None

    @property
    def order(self) -> Mapping[str, Any]:
        return self.job.order

    @property
    def resumed(self) -> bool:
        """Whether the service ended while it worked on this before."""
        return self.job.attempts > 1

    @property
    def last_attempt(self) -> bool:
        """Whether the job fails if the service ends once more before an item is done."""
        return self.job.attempts >= ATTEMPTS

    def note(self, done: int, total: int, step: str = "") -> None:
        """Say how far it has come, without waiting; `total` is 0 where nobody knows. Of several only the last is told.

        `settled` waits until everyone can see it.
        """
        self._latest = (done, total, step)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def settled(self) -> None:
        """Everything that was noted has been told."""
        if self._telling is not None:
            await asyncio.wait({self._telling})

    async def item(self, place: int, result: Mapping[str, Any], *, failed: bool = False) -> None:
        """The result of one item, counted from 0; it is on disk when this returns. A second one changes nothing.

        A database that does not answer is waited for: an hour's work is not thrown away for it.
        """
        await _insisted(lambda: self._ledger.item(self.job.id, self._claim, place, result, failed=failed))

    async def places(self) -> set[int]:
        """Which items are done."""
        return await _insisted(lambda: self._ledger.places(self.job.id))

    async def _tell(self) -> None:
        while self._latest is not None:
            told, self._latest = self._latest, None
            with suppress(ClaimLost, DatabaseFailed):  # who lost the claim is told so soon enough
                await self._ledger.note(self._claim, *told)


Runner = Callable[[Work, Models, Settings], Awaitable[Mapping[str, Any]]]
"""Does one kind of job. It may be cancelled at any time, and begun again from the start with what `places` names.

What it raises as a MedserveError becomes the job's error.
"""


async def _insisted(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` brings, asked again for as long as the database does not answer."""
    while True:
        try:
            return await shielded(ask())
        except DatabaseFailed:
            await asyncio.sleep(AGAIN_SECONDS)
