"""The jobs in SQL: each method is one transaction, and whoever works on a job writes only while its claim holds.

A claim is a random word that is written when a job is taken and erased when it is given up, taken over or ended. So a
gateway that was thought dead and comes back can change nothing any more.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, Select, Update, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from medserve.database import Database, job_items, jobs, newest_first, now
from medserve.errors import JobsFull, UnknownJob
from medserve.jobs.record import ENDED, Failure, Job, JobState, as_json, is_id

ATTEMPTS = 3
"""How often a job may be begun without getting on: one that ends the process each time must not do so for ever."""
INTERRUPTED = Failure(
    "interrupted",
    f"the service ended {ATTEMPTS} times while it worked on this job, which is not begun again; the log may say why",
)
FORGOTTEN = Failure("interrupted", "no gateway that has this job's files took it up in time; send it again")
PAGE = 100
_ADDING = 7_304_125_991
"""The number of PostgreSQL's advisory lock under which jobs are counted and added."""
_CLAIMING = 7_304_125_992
"""The same for choosing the next one."""
_OPEN = (JobState.QUEUED, JobState.RUNNING)
_FREE: Mapping[str, Any] = {"gateway": None, "claim": None, "lease": None}


class ClaimLost(Exception):
    """Another gateway has taken the job over, or it has ended: what is still done for it is in vain."""


@dataclass(frozen=True)
class Claimed:
    """A job that this gateway works on, with its claim and where its files lie."""

    job: Job
    claim: str
    folder: str | None
    files: int


class Ledger:
    """The jobs of one database. `days` is how long an ended job is kept; a lease is held for `lease` seconds."""

    def __init__(self, database: Database, *, days: float, lease: float) -> None:
        self._database = database
        self._keep = days * 86_400
        self._lease = lease

    # --- for those who order ---------------------------------------------------------------------------------------

    async def waiting(self) -> int:
        """How many jobs wait."""
        async with self._database.reading() as connection:
            return await _waiting(connection)

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs are kept, by state and kind."""
        async with self._database.reading() as connection:
            found = await connection.execute(
                select(jobs.c.state, jobs.c.kind, func.count()).group_by(jobs.c.state, jobs.c.kind)
            )
            return {(state, kind): count for state, kind, count in found}

    async def add(self, job: Job, *, most: int, home: str, folder: str | None, files: int) -> None:
        """Add a queued job; raises JobsFull when as many as may already wait."""
        async with self._database.begin() as connection:
            await self._database.alone(connection, _ADDING)
            check_room(await _waiting(connection), most)
            await connection.execute(
                insert(jobs).values(
                    id=job.id,
                    kind=job.kind,
                    owner=job.owner,
                    state=JobState.QUEUED,
                    created=job.created,
                    done=0,
                    total=job.total,
                    step="",
                    attempts=0,
                    cancelling=False,
                    order=as_json(job.order),
                    folder=folder,
                    files=files,
                    home=home if folder else None,
                )
            )

    async def get(self, identifier: str, owner: str) -> Job:
        """The owner's job; raises UnknownJob."""
        async with self._database.reading() as connection:
            return await _found(connection, identifier, owner)

    async def result(self, identifier: str, owner: str) -> Mapping[str, Any] | None:
        """The result of the owner's job, None while there is none; raises UnknownJob."""
        async with self._database.reading() as connection:
            await _found(connection, identifier, owner)
            kept = (await connection.execute(select(jobs.c.result).where(jobs.c.id == identifier))).scalar_one()
            return None if kept is None else json.loads(kept)

    async def listed(self, owner: str, limit: int, kind: str | None, after: str | None) -> list[Job]:
        """The owner's jobs, newest first; `after` goes on behind the job of that name, or raises UnknownJob."""
        query = select(jobs).where(jobs.c.owner == owner)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        async with self._database.reading() as connection:
            last = None if after is None else await _found(connection, after, owner, "after")
            behind = None if last is None else (last.created, last.id)
            rows = await connection.execute(newest_first(query, jobs, limit, behind))
            return [Job.of(row) for row in rows.mappings()]

    async def cancel(self, identifier: str, owner: str) -> Job:
        """The owner's job after it was told to end: one that waits is cancelled at once; raises UnknownJob."""
        async with self._database.begin() as connection:
            await _found(connection, identifier, owner)
            one = jobs.c.id == identifier
            await connection.execute(self._ending(JobState.CANCELLED).where(one, jobs.c.state == JobState.QUEUED))
            await connection.execute(update(jobs).values(cancelling=True).where(one, jobs.c.state == JobState.RUNNING))
            return await _found(connection, identifier, owner)

    async def delete(self, identifier: str, owner: str) -> None:
        """Delete the owner's job, which has ended, with all that it brought."""
        async with self._database.begin() as connection:
            await connection.execute(
                delete(jobs).where(jobs.c.id == identifier, jobs.c.owner == owner, jobs.c.state.in_(ENDED))
            )

    async def items(
        self, identifier: str, *, after: int = -1, failed: bool | None = None, limit: int = PAGE
    ) -> list[tuple[int, str]]:
        """Some items that are done, as JSON, in order of their places behind `after`."""
        wanted = [job_items.c.job == identifier, job_items.c.place > after]
        if failed is not None:
            wanted.append(job_items.c.failed == failed)
        query = select(job_items.c.place, job_items.c.result).where(*wanted)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(job_items.c.place).limit(limit))
            return [(row.place, row.result) for row in rows]

    async def items_bytes(self, identifier: str, *, failed: bool) -> int:
        """How many bytes the items that did or did not fail have, a line each; they are ASCII."""
        size = func.coalesce(func.sum(func.length(job_items.c.result) + 1), 0)
        wanted = and_(job_items.c.job == identifier, job_items.c.failed == failed)
        async with self._database.reading() as connection:
            return int((await connection.execute(select(size).where(wanted))).scalar_one())

    async def places(self, identifier: str) -> set[int]:
        """Which items are done."""
        async with self._database.reading() as connection:
            return set(
                (await connection.execute(select(job_items.c.place).where(job_items.c.job == identifier))).scalars()
            )

    async def failed_items(self, identifiers: Collection[str]) -> dict[str, int]:
        """How many items of each of these jobs failed."""
        query = select(job_items.c.job, func.count()).where(job_items.c.job.in_(identifiers), job_items.c.failed)
        async with self._database.reading() as connection:
            counted = await connection.execute(query.group_by(job_items.c.job))
            return dict.fromkeys(identifiers, 0) | {row[0]: row[1] for row in counted}

    # --- for those who work ----------------------------------------------------------------------------------------

    async def claim(self, kinds: Collection[str], home: str, gateway: str) -> Claimed | None:
        """Take a job that waits and whose files lie here; None when there is none. No two gateways get the same.

        Whoever has fewest jobs at work is served first, then whoever has waited longest.
        """
        here = or_(jobs.c.home.is_(None), jobs.c.home == home)
        ready = and_(jobs.c.state == JobState.QUEUED, jobs.c.kind.in_(kinds), here)
        async with self._database.reading() as connection:  # most of the time there is nothing, and that costs nothing
            if (await connection.execute(select(jobs.c.id).where(ready).limit(1))).first() is None:
                return None
        claim = uuid4().hex
        async with self._database.begin() as connection:
            await self._database.alone(connection, _CLAIMING)  # two at once would not see whom the other serves
            chosen = (await connection.execute(_next_of(ready))).scalar()
            if chosen is None:
                return None
            taken = await connection.execute(
                update(jobs)
                .where(jobs.c.id == chosen)
                .values(
                    state=JobState.RUNNING,
                    started=func.coalesce(jobs.c.started, time()),
                    attempts=jobs.c.attempts + 1,
                    gateway=gateway,
                    claim=claim,
                    lease=now() + self._lease,
                )
                .returning(jobs)
            )
            row = taken.mappings().one()
        return Claimed(Job.of(row), claim, row["folder"], row["files"])

    async def renew(self, claims: Collection[str]) -> None:
        """Say that these jobs are still worked on."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(jobs)
                .where(jobs.c.claim.in_(claims), jobs.c.state == JobState.RUNNING)
                .values(lease=now() + self._lease)
            )

    async def held(self, claims: Collection[str]) -> dict[str, bool]:
        """Those of the claims that still hold, and whether the job was told to end."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(jobs.c.claim, jobs.c.cancelling).where(jobs.c.claim.in_(claims)))
            return {row.claim: row.cancelling for row in rows}

    async def note(self, claim: str, done: int, total: int, step: str) -> None:
        """How far a job has come; raises ClaimLost."""
        async with self._database.begin() as connection:
            await _own(connection, claim, done=done, total=total, step=step)

    async def item(self, job: str, claim: str, place: int, result: Mapping[str, Any], *, failed: bool) -> None:
        """One more item is done, for good; raises ClaimLost. Whoever gets on has all attempts before him again."""
        async with self._database.begin() as connection:
            await _own(connection, claim, attempts=1)
            known = select(job_items.c.place).where(job_items.c.job == job, job_items.c.place == place)
            if (await connection.execute(known)).first() is None:
                values = {"job": job, "place": place, "failed": failed, "result": as_json(result)}
                await connection.execute(insert(job_items).values(values))
                await _own(connection, claim, done=jobs.c.done + 1)

    async def end(
        self, claim: str, state: JobState, *, result: str | None = None, error: Failure | None = None
    ) -> bool:
        """End a job; False when the claim was lost. One that was told to end before is cancelled and nothing else."""
        async with self._database.begin() as connection:
            mine = jobs.c.claim == claim
            told = await connection.execute(self._ending(JobState.CANCELLED).where(mine, jobs.c.cancelling))
            if told.rowcount:
                return True
            ended = await connection.execute(self._ending(state, error).values(result=result).where(mine))
            return ended.rowcount > 0

    async def give_back(self, gateway: str) -> None:
        """Put jobs of a gateway that stops in order back in the queue; that attempt does not count."""
        held = and_(jobs.c.gateway == gateway, jobs.c.state == JobState.RUNNING)
        fewer = case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0)
        async with self._database.begin() as connection:
            await connection.execute(self._ending(JobState.CANCELLED).where(held, jobs.c.cancelling))
            await connection.execute(
                update(jobs).where(held).values(state=JobState.QUEUED, attempts=fewer, step="", **_FREE)
            )

    # --- for order -------------------------------------------------------------------------------------------------

    async def take_back(self, gateways: Iterable[str] = ()) -> None:
        """Put jobs of these gateways, and those whose lease has run out, back in the queue.

        One that was begun too often fails; one that was told to end is cancelled.
        """
        left = and_(jobs.c.state == JobState.RUNNING, or_(jobs.c.gateway.in_(list(gateways)), jobs.c.lease < now()))
        async with self._database.reading() as connection:
            if (await connection.execute(select(jobs.c.id).where(left).limit(1))).first() is None:
                return
        async with self._database.begin() as connection:
            await connection.execute(self._ending(JobState.CANCELLED).where(left, jobs.c.cancelling))
            spent = jobs.c.attempts >= ATTEMPTS
            await connection.execute(self._ending(JobState.FAILED, INTERRUPTED).where(left, spent))
            await connection.execute(update(jobs).where(left).values(state=JobState.QUEUED, step="", **_FREE))

    async def expire(self) -> None:
        """Delete what has expired, and fail what has waited for as long without anybody who could do it."""
        moment = time()
        async with self._database.begin() as connection:
            await connection.execute(delete(jobs).where(jobs.c.expires < moment, jobs.c.state.in_(ENDED)))
            waited = and_(jobs.c.state == JobState.QUEUED, jobs.c.created < moment - self._keep)
            await connection.execute(self._ending(JobState.FAILED, FORGOTTEN).where(waited))

    async def ended_with_files(self, home: str) -> list[tuple[str, str]]:
        """Ended jobs whose files may still lie in this home: identifier and folder."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(jobs.c.id, jobs.c.folder).where(
                    jobs.c.home == home, jobs.c.folder.is_not(None), jobs.c.state.in_(ENDED)
                )
            )
            return [(row.id, row.folder) for row in rows]

    async def without_files(self, identifiers: Sequence[str]) -> None:
        """The files of these jobs are gone."""
        async with self._database.begin() as connection:
            await connection.execute(update(jobs).where(jobs.c.id.in_(identifiers)).values(folder=None, home=None))

    async def named(self, folders: Collection[str]) -> set[str]:
        """Those of the folders that some job names."""
        async with self._database.reading() as connection:
            return set((await connection.execute(select(jobs.c.folder).where(jobs.c.folder.in_(folders)))).scalars())

    def _ending(self, state: JobState, error: Failure | None = None) -> Update:
        """What every job that ends gets. A second one changes nothing: only open jobs end."""
        moment = time()
        return (
            update(jobs)
            .where(jobs.c.state.in_(_OPEN))
            .values(
                state=state,
                ended=moment,
                expires=moment + self._keep,
                step="",
                cancelling=False,
                error_code=error.code if error else None,
                error_message=error.message if error else None,
                **_FREE,
            )
        )


def check_room(waiting: int, most: int) -> None:
    """Raise JobsFull where no further job may wait."""
    if waiting >= most:
        raise JobsFull(f"{waiting} jobs wait, as many as may (limits.jobs); send this one again later")


def _next_of(ready: ColumnElement[bool]) -> Select[tuple[str]]:
    """The one to be done next: of whoever has fewest at work, the one that has waited longest."""
    others = jobs.alias()
    at_work = select(func.count()).where(others.c.owner == jobs.c.owner, others.c.state == JobState.RUNNING)
    fairest = select(jobs.c.id).where(ready).order_by(at_work.scalar_subquery(), jobs.c.created, jobs.c.id)
    return fairest.limit(1).with_for_update(skip_locked=True, of=jobs)


async def _waiting(connection: AsyncConnection) -> int:
    counted = select(func.count()).select_from(jobs).where(jobs.c.state == JobState.QUEUED)
    return int((await connection.execute(counted)).scalar_one())


async def _found(connection: AsyncConnection, identifier: str, owner: str, param: str = "id") -> Job:
    row: Row[Any] | None = None
    if is_id(identifier):
        query = select(jobs).where(jobs.c.id == identifier, jobs.c.owner == owner)
        row = (await connection.execute(query)).first()
    if row is None:
        raise UnknownJob("there is no such job, or it has expired; GET /v1/jobs lists yours", param=param)
    return Job.of(row._mapping)


async def _own(connection: AsyncConnection, claim: str, **values: ColumnElement[int] | int | str) -> None:
    """Change the claimed job; raises ClaimLost."""
    mine = and_(jobs.c.claim == claim, jobs.c.state == JobState.RUNNING)
    if not (await connection.execute(update(jobs).where(mine).values(**values))).rowcount:
        raise ClaimLost
