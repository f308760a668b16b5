"""Work that outlives its request: an acknowledged job ends with a result or a reason, whatever the process suffers.

What was ordered lies in SQL (`ledger`), what was given in files (`vault`). A job is done by one gateway at a time,
which holds a lease on it; when a gateway is no more, another one, or the next process on the same home, takes its jobs
up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

import structlog

from medserve import metrics, observation
from medserve.database import Database
from medserve.errors import DatabaseFailed, JobUnfinished, MedserveError
from medserve.jobs.ledger import Claimed, ClaimLost, Ledger, check_room
from medserve.jobs.record import Failure, Job, JobState, as_json, new_id
from medserve.jobs.uploads import Upload, Uploads
from medserve.jobs.vault import Vault
from medserve.jobs.work import Runner, Work
from medserve.models import Models
from medserve.settings import Settings
from medserve.threads import in_thread, shielded

__all__ = ["Failure", "Job", "JobState", "Jobs", "Rhythm", "Runner", "Upload", "Work"]

CANCEL_SECONDS = 5.0
"""How long a caller who cancels waits for the work to have stopped."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Rhythm:
    """Seconds between looks: for new jobs and for those told to end, and at what has been left or has expired.

    A gateway that does not renew its lease for `lease` seconds is taken to be dead.
    """

    look: float = 1.0
    lease: float = 30.0
    sweep: float = 60.0


RHYTHM = Rhythm()


@dataclass
class _Running:
    """A job that is being worked on here; `stopped` says that somebody wanted its task to end."""

    claim: str
    task: "asyncio.Task[_Outcome]"
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        self.task.cancel()


@dataclass(frozen=True)
class _Outcome:
    """What became of the work: the result as JSON, or why there is none."""

    result: str | None = None
    error: Failure | None = None


class Jobs:
    """The jobs of one gateway; open them with `opened`, then `start` the work."""

    def __init__(
        self,
        ledger: Ledger,
        vault: Vault,
        uploads: Uploads,
        models: Models,
        settings: Settings,
        runners: Mapping[str, Runner],
        rhythm: Rhythm,
    ) -> None:
        self.uploads = uploads
        self._ledger = ledger
        self._vault = vault
        self._models = models
        self._settings = settings
        self._runners = runners
        self._rhythm = rhythm
        self._running: dict[str, _Running] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._ended = asyncio.Event()

    @classmethod
    async def opened(
        cls,
        database: Database,
        models: Models,
        settings: Settings,
        runners: Mapping[str, Runner],
        rhythm: Rhythm = RHYTHM,
    ) -> "Jobs":
        """The jobs in this database. Those that a dead process of the same home left are in the queue again."""
        ledger = Ledger(database, days=settings.limits.job_days, lease=rhythm.lease)
        vault = await in_thread(Vault, settings.home)
        jobs = cls(ledger, vault, Uploads(database, vault), models, settings, runners, rhythm)
        try:
            await jobs._look_after_the_dead()
            await ledger.take_back()
            await jobs._sweep()
        except BaseException:
            await in_thread(vault.close)
            raise
        return jobs

    def start(self) -> None:
        """Begin to work."""
        workers = [self._work_on() for _ in range(self._settings.limits.job_workers)]
        self._tasks = [asyncio.create_task(each) for each in (*workers, self._keep_order())]

    async def close(self) -> None:
        """Stop. What is being worked on goes back to the queue, and that attempt does not count."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            with suppress(DatabaseFailed):  # the lease will run out
                await self._ledger.give_back(self._vault.gateway)
        finally:
            await in_thread(self._vault.close)

    # --- for those who order ---------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Raise JobsFull where no further job may wait; before a large upload is taken."""
        check_room(await self._ledger.waiting(), self._settings.limits.jobs)

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs are kept, by state and kind; each kind is there with those that wait and those at work."""
        none = {(state, kind): 0 for state in (JobState.QUEUED, JobState.RUNNING) for kind in self._runners}
        return none | await self._ledger.counts()

    async def submit(
        self, kind: str, order: Mapping[str, Any], *, owner: str = "", files: Sequence[Path] = (), total: int = 1
    ) -> Job:
        """Take a job; it and copies of its files are on disk when this returns. Raises JobsFull.

        `order` is what the runner of that kind needs, as JSON; `total` is how many steps or items there will be, 0
        where nobody knows.
        """
        if kind not in self._runners:
            raise ValueError(f"nobody does jobs of the kind {kind!r}")
        await self.room()
        job = Job(new_id(), kind, owner, JobState.QUEUED, time(), total=total, order=dict(order))
        await shielded(self._add(job, files))
        self._news.set()
        log.info("job.queued", job=job.id, kind=kind, files=len(files))
        return job

    async def get(self, id: str, owner: str) -> Job:  # noqa: A002 - what it is called everywhere
        """The owner's job; raises UnknownJob, for another owner's too."""
        return await self._ledger.get(id, owner)

    async def result(self, id: str, owner: str) -> Mapping[str, Any] | None:  # noqa: A002
        """What the owner's job brought; None unless it is done."""
        return await self._ledger.result(id, owner)

    async def listed(
        self, owner: str, *, limit: int = 100, kind: str | None = None, after: str | None = None
    ) -> list[Job]:
        """The owner's jobs, newest first, and those behind the job `after` where that is given."""
        return await self._ledger.listed(owner, limit, kind, after)

    async def cancel(self, id: str, owner: str) -> Job:  # noqa: A002
        """Tell the owner's job to end and wait a moment until it has; what has ended stays as it is.

        Where another gateway works on it, it may still be running when this returns, and `cancelling`.
        """
        job: Job = await shielded(self._ledger.cancel(id, owner))
        running = self._running.get(id)
        if job.state is JobState.RUNNING and running is not None:
            running.stop()
            return await self.wait(id, owner, CANCEL_SECONDS)
        await self._tidy()
        return job

    async def delete(self, id: str, owner: str) -> None:  # noqa: A002
        """Cancel the owner's job if need be, and delete it; raises JobUnfinished when it has not stopped yet."""
        job = await self.cancel(id, owner)
        if not job.state.ended:
            raise JobUnfinished("the job is being stopped; delete it again in a moment", param="id", retry_after=2)
        await shielded(self._ledger.delete(id, owner))

    async def wait(self, id: str, owner: str, seconds: float) -> Job:  # noqa: A002
        """The owner's job once it has ended, or as it is when the time is over."""
        end = monotonic() + seconds
        while True:
            ended = self._ended
            job = await self.get(id, owner)
            left = end - monotonic()
            if left <= 0 or (job.state.ended and id not in self._running):  # its files are gone by then
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._rhythm.look)):  # another gateway's end makes no noise here
                    await ended.wait()

    async def items(self, id: str, *, after: int = -1, failed: bool | None = None) -> list[tuple[int, str]]:  # noqa: A002
        """Some items that are done, as (place, JSON) in order, behind the place `after`; [] at the end.

        Only those that did or did not fail, where told.
        """
        return await self._ledger.items(id, after=after, failed=failed)

    async def items_bytes(self, id: str, *, failed: bool) -> int:  # noqa: A002
        """How many bytes the items that did or did not fail have, a line each."""
        return await self._ledger.items_bytes(id, failed=failed)

    async def failed_items(self, ids: Sequence[str]) -> dict[str, int]:
        """How many items of each of these jobs failed."""
        return await self._ledger.failed_items(ids)

    async def _add(self, job: Job, files: Sequence[Path]) -> None:
        folder = await in_thread(self._vault.keep, files) if files else None
        try:
            await self._ledger.add(
                job, most=self._settings.limits.jobs, home=self._vault.home, folder=folder, files=len(files)
            )
        except BaseException:
            if folder is not None:
                await in_thread(self._vault.remove, folder)
            raise

    # --- the work --------------------------------------------------------------------------------------------------

    async def _work_on(self) -> None:
        """One worker: a job after the other, for as long as the service runs."""
        while True:
            self._news.clear()
            claimed: Claimed | None = None
            with suppress(DatabaseFailed):
                claimed = await shielded(self._ledger.claim(list(self._runners), self._vault.home, self._vault.gateway))
            if claimed is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rhythm.look):
                        await self._news.wait()
                continue
            self._news.set()  # there may be more for the other workers
            try:
                await self._do(claimed)
            except Exception as error:  # a worker that ended would be missed by nobody
                log.error("jobs.worker_failed", job=claimed.job.id, exc_info=error)

    async def _do(self, claimed: Claimed) -> None:
        running = _Running(claimed.claim, asyncio.create_task(self._outcome(claimed)))
        self._running[claimed.job.id] = running
        log.info("job.started", job=claimed.job.id, kind=claimed.job.kind, attempt=claimed.job.attempts)
        try:
            await asyncio.wait({running.task})
            await shielded(self._end(claimed, running))
        finally:
            running.task.cancel()  # the service stops; `close` gives the job back
            await asyncio.gather(running.task, return_exceptions=True)
            del self._running[claimed.job.id]
            self._ended.set()
            self._ended = asyncio.Event()

    async def _outcome(self, claimed: Claimed) -> _Outcome:
        """Do the job, and say what became of it."""
        limit = self._settings.limits.job_seconds
        files = await in_thread(self._vault.files, claimed.folder or "", claimed.files)
        if files is None:
            return _Outcome(error=Failure("interrupted", "the job's files are gone; send it again"))
        work = Work(claimed, files, self._ledger)
        time_left = asyncio.timeout(limit)
        try:
            async with time_left, observation.job(claimed.job.kind, claimed.job.id):
                result = await self._runners[claimed.job.kind](work, self._models, self._settings)
                await work.settled()
            return _Outcome(as_json(result))
        except MedserveError as error:
            return _Outcome(error=Failure(error.code, error.message))
        except ClaimLost:
            return _Outcome()
        except Exception as error:
            if isinstance(error, TimeoutError) and time_left.expired():
                words = f"the job worked longer than {limit:.0f} seconds (limits.job_seconds) and was stopped"
                return _Outcome(error=Failure("job_timeout", words))
            log.error("job.broke", job=claimed.job.id, kind=claimed.job.kind, exc_info=error)
            words = "an unexpected error; the log of the service says where"
            return _Outcome(error=Failure(MedserveError.code, words))

    async def _end(self, claimed: Claimed, running: _Running) -> None:
        """Write down how it ended, for as long as the claim holds and the database can be waited for."""
        if running.task.cancelled():
            unasked = Failure(MedserveError.code, "the work was stopped and nobody had asked for it")
            state, outcome = JobState.CANCELLED, _Outcome()
            if not running.stopped:
                state, outcome = JobState.FAILED, _Outcome(error=unasked)
        else:
            outcome = running.task.result()
            state = JobState.DONE if outcome.error is None else JobState.FAILED
        if await self._written(claimed.claim, state, outcome):
            metrics.job_ended(claimed.job.kind, state)
            log.info("job.ended", job=claimed.job.id, state=state, code=outcome.error.code if outcome.error else None)
        with suppress(DatabaseFailed):
            await self._tidy()

    async def _written(self, claim: str, state: JobState, outcome: _Outcome) -> bool:
        end = monotonic() + self._rhythm.lease
        while True:
            try:
                return await self._ledger.end(claim, state, result=outcome.result, error=outcome.error)
            except DatabaseFailed as error:
                if monotonic() > end:  # the lease runs out as well, and the job is done again
                    log.error("job.unwritten", reason=error.message)
                    return False
                await asyncio.sleep(self._rhythm.look)

    # --- order -----------------------------------------------------------------------------------------------------

    async def _keep_order(self) -> None:
        renewed = swept = monotonic()
        while True:
            await asyncio.sleep(self._rhythm.look)
            moment = monotonic()
            await self._attempt(self._heed)
            await self._attempt(self._look_after_the_dead)
            if moment - renewed >= self._rhythm.lease / 3 and await self._attempt(self._renew):
                renewed = moment
            if moment - swept >= self._rhythm.sweep and await self._attempt(self._sweep):
                swept = moment

    async def _attempt(self, what: Callable[[], Awaitable[None]]) -> bool:
        try:
            await shielded(what())
        except DatabaseFailed as error:
            log.warning("jobs.database_failed", reason=error.message)
            return False
        return True

    async def _heed(self) -> None:
        """Stop what was told to end by way of another gateway, and what this one no longer holds."""
        before = dict(self._running)
        if not before:
            return
        held = await self._ledger.held([each.claim for each in before.values()])
        for running in before.values():
            if held.get(running.claim, True) and not running.task.done():
                running.stop()

    async def _renew(self) -> None:
        """Say that what is worked on here still is, and put back what others no longer say so of."""
        if self._running:
            await self._ledger.renew([each.claim for each in self._running.values()])
        await self._ledger.take_back()

    async def _look_after_the_dead(self) -> None:
        """Put back in the queue what gateways that are no more had in work."""
        dead = await in_thread(self._vault.dead)
        if not dead:
            return
        try:
            await self._ledger.take_back([name for name, _ in dead])
        except BaseException:
            for _, lock in dead:
                await in_thread(self._vault.release, lock)
            raise
        for name, lock in dead:
            await in_thread(self._vault.forget, name, lock)
        log.warning("jobs.taken_back", gateways=len(dead))

    async def _sweep(self) -> None:
        """Delete what has expired, and files that no job needs any more."""
        await self._ledger.expire()
        await self.uploads.expire()
        await self._tidy()
        left = await in_thread(self._vault.left)
        for folder in set(left) - await self._ledger.named(left) - await self.uploads.named(left):
            await in_thread(self._vault.remove, folder)

    async def _tidy(self) -> None:
        """Remove the files of jobs that have ended."""
        ended = await self._ledger.ended_with_files(self._vault.home)
        for _, folder in ended:
            await in_thread(self._vault.remove, folder)
        if ended:
            await self._ledger.without_files([identifier for identifier, _ in ended])
