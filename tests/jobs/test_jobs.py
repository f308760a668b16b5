"""Jobs keep their promises: taken up by one gateway, ended once, cancelled when asked, and gone when they expire."""

import asyncio
import sqlite3
import stat
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from medserve import database as database_module
from medserve.database import Database
from medserve.errors import DatabaseFailed, ImageUnreadable, JobsFull, JobUnfinished, UnknownJob
from medserve.jobs import Job, Jobs, JobState, Rhythm, Work
from medserve.jobs import work as work_module
from medserve.jobs.ledger import ATTEMPTS, ClaimLost, Ledger
from medserve.jobs.record import new_id
from medserve.jobs.vault import Vault
from medserve.models import Models
from medserve.settings import Settings
from medserve.threads import in_thread
from tests.jobs.conftest import QUICK, Opened

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice", "bob"


class Slow:
    """A runner that works until it is told to stop, and counts how many of it run."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, work: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        self.running += 1
        self.begun.set()
        try:
            await self.end.wait()
            return {"slow": True}
        finally:
            self.running -= 1


def folders(settings: Settings) -> list[Path]:
    """The private folders of jobs that lie in the home."""
    return sorted((settings.home / "jobs").iterdir())


async def test_a_job_ends_with_its_result(opened: Opened) -> None:
    """It is queued when it is acknowledged, and done soon."""
    async with opened() as jobs:
        job = await jobs.submit("work", {"question": "\0 and \ud800"}, owner=ALICE)
        ended = await jobs.wait(job.id, ALICE, 10)
        result = await jobs.result(job.id, ALICE)

    assert JobState.QUEUED is job.state
    assert JobState.DONE is ended.state
    assert {"order": {"question": "\0 and \ud800"}} == result
    assert None not in (ended.started, ended.ended, ended.expires)


async def test_progress_is_seen_while_the_work_goes_on(opened: Opened) -> None:
    """Steps done, of how many, and what is done now; of hurried ones at least the last."""
    slow = Slow()

    async def work(job: Work, models: Models, settings: Settings) -> dict[str, Any]:
        for step in range(50):
            job.note(step, 60, f"step {step}")
        job.note(50, 60, "the last")
        await job.settled()
        return await slow(job, models, settings)

    async with opened(work) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE)
        await slow.begun.wait()
        seen = await jobs.get(job.id, ALICE)
    assert (50, 60, "the last") == (seen.done, seen.total, seen.step)


async def test_a_failed_job_says_why(opened: Opened) -> None:
    """An error of ours with its words; a bug without any, because its words may quote the patient."""

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        if job.order["kind"] == "ours":
            raise ImageUnreadable("the file is cut short")
        raise RuntimeError("Mustermann, Erika")

    async with opened(work) as jobs:
        ids = [(await jobs.submit("work", {"kind": kind}, owner=ALICE)).id for kind in ("ours", "bug")]
        ours, bug = [await jobs.wait(each, ALICE, 10) for each in ids]

    assert (JobState.FAILED, ("image_unreadable", "the file is cut short")) == (ours.state, ours.error)
    assert bug.error is not None
    assert "internal_error" == bug.error.code
    assert "Mustermann" not in bug.error.message


async def test_a_job_is_its_owners_alone(opened: Opened) -> None:
    """For everybody else it does not exist, whatever they try."""
    async with opened() as jobs:
        job = await jobs.submit("work", {}, owner=ALICE)
        for attempt in (jobs.get, jobs.result, jobs.cancel, jobs.delete):
            with pytest.raises(UnknownJob):
                await attempt(job.id, BOB)
        assert [] == await jobs.listed(BOB)
        assert [job.id] == [each.id for each in await jobs.listed(ALICE)]
        with pytest.raises(UnknownJob):
            await jobs.get("job_\0", ALICE)


async def test_lists_go_on_where_they_ended(opened: Opened) -> None:
    """Newest first, page by page, without gap or repetition."""
    async with opened(started=False) as jobs:
        made = [(await jobs.submit("work", {}, owner=ALICE)).id for _ in range(5)]
        first = await jobs.listed(ALICE, limit=2)
        second = await jobs.listed(ALICE, limit=9, after=first[-1].id)

    assert made[::-1] == [job.id for job in (*first, *second)]


async def test_no_more_jobs_wait_than_may(opened: Opened) -> None:
    """The caller is told to come again; a cancelled job makes room. Twenty at once do not slip through together."""
    async with opened(started=False, jobs=3) as jobs:
        tried = await asyncio.gather(*(jobs.submit("work", {}) for _ in range(20)), return_exceptions=True)
        taken = [each for each in tried if isinstance(each, Job)]
        assert 3 == len(taken)
        assert {JobsFull} == {type(each) for each in tried if not isinstance(each, Job)}
        await jobs.cancel(taken[0].id, "")
        await jobs.submit("work", {})


async def test_files_are_private_copies_until_the_job_ends(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    """In a folder of a random name that only this user can read, under numbers instead of names."""
    given = [tmp_path / "Mustermann.dcm", tmp_path / "Erika.dcm"]
    for file in given:
        file.write_bytes(file.name.encode())
    read: list[bytes] = []

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        read.extend(file.read_bytes() for file in job.files)
        return {}

    async with opened(work, started=False) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE, files=given)
        for file in given:
            file.unlink()
        (folder,) = folders(settings)
        assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
        assert ["000000", "000001"] == sorted(path.name for path in folder.iterdir())
        jobs.start()
        assert JobState.DONE is (await jobs.wait(job.id, ALICE, 10)).state
        assert [] == folders(settings)
    assert [b"Mustermann.dcm", b"Erika.dcm"] == read


async def test_a_refused_job_leaves_no_files(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    """What was not acknowledged was never there."""
    (tmp_path / "picture").write_bytes(b"x")
    async with opened(started=False, jobs=1) as jobs:
        tried = await asyncio.gather(
            *(jobs.submit("work", {}, files=[tmp_path / "picture"]) for _ in range(4)), return_exceptions=True
        )
        assert 1 == sum(isinstance(each, Job) for each in tried)
        assert 1 == len(folders(settings))


async def test_cancelling_stops_what_waits_and_what_runs(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    """The work has stopped when the caller is told so, and the files are gone."""
    slow = Slow()
    (tmp_path / "picture").write_bytes(b"x")
    async with opened(slow, job_workers=1) as jobs:
        runs = await jobs.submit("work", {}, owner=ALICE, files=[tmp_path / "picture"])
        await slow.begun.wait()
        waits = await jobs.submit("work", {}, owner=ALICE, files=[tmp_path / "picture"])
        ended = [await jobs.cancel(job.id, ALICE) for job in (waits, runs)]

        assert [JobState.CANCELLED] * 2 == [job.state for job in ended]
        assert 0 == slow.running
        assert [] == folders(settings)
        assert ended[0] == await jobs.cancel(waits.id, ALICE)
        assert None is await jobs.result(runs.id, ALICE)


async def test_another_gateway_can_cancel_and_delete(opened: Opened) -> None:
    """Whichever of them a caller reaches."""
    slow = Slow()
    async with opened(slow) as works, opened(started=False) as other:
        job = await works.submit("work", {}, owner=ALICE)
        await slow.begun.wait()
        told = await other.cancel(job.id, ALICE)
        assert told.cancelling or told.state is JobState.CANCELLED
        ended = await other.wait(job.id, ALICE, 10)
        assert (JobState.CANCELLED, False) == (ended.state, ended.cancelling)
        assert 0 == slow.running
        await other.delete(job.id, ALICE)
        with pytest.raises(UnknownJob):
            await works.get(job.id, ALICE)


async def test_an_acknowledged_cancel_is_never_overtaken_by_the_end(opened: Opened) -> None:
    """However close they come: `cancelling` was promised, so done is no longer possible."""
    for _ in range(5):
        slow = Slow()
        async with opened(slow) as jobs:
            job = await jobs.submit("work", {}, owner=ALICE)
            await slow.begun.wait()
            slow.end.set()
            told = await jobs.cancel(job.id, ALICE)
            ended = await jobs.wait(job.id, ALICE, 10)
        assert told.state is ended.state
        assert (ended.state is JobState.DONE) == (told.state is JobState.DONE)


async def test_gateways_share_the_work_and_do_each_job_once(opened: Opened) -> None:
    """Four gateways, two dozen jobs: no job is begun twice."""
    begun: Counter[str] = Counter()

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        begun[job.job.id] += 1
        await asyncio.sleep(0.01)
        return {}

    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(opened(work)) for _ in range(4)]
        made = await asyncio.gather(*(gateways[n % 4].submit("work", {}, owner=ALICE) for n in range(24)))
        ended = [await gateways[0].wait(job.id, ALICE, 60) for job in made]

    assert {JobState.DONE} == {job.state for job in ended}
    assert {1} == set(begun.values())
    assert 24 == len(begun)


async def test_nobody_waits_behind_all_the_jobs_of_another(opened: Opened) -> None:
    """Whoever has fewest at work is next, though others came before."""
    order: list[str] = []

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        order.append(job.job.owner)
        await asyncio.sleep(0.05)
        return {}

    async with opened(work, started=False, job_workers=2) as jobs:
        made = [await jobs.submit("work", {}, owner=ALICE) for _ in range(6)]
        made.append(await jobs.submit("work", {}, owner=BOB))
        jobs.start()
        for job in made:
            await jobs.wait(job.id, job.owner, 10)
    assert BOB in order[:3]


async def test_a_stopped_service_puts_its_work_back(opened: Opened) -> None:
    """In order, so that attempt does not count; the next process does it."""
    slow = Slow()
    async with opened(slow) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE)
        await slow.begun.wait()
    assert 0 == slow.running
    async with opened(started=False) as jobs:
        back = await jobs.get(job.id, ALICE)
        assert (JobState.QUEUED, 0, "") == (back.state, back.attempts, back.step)
        jobs.start()
        assert JobState.DONE is (await jobs.wait(job.id, ALICE, 10)).state


async def test_a_job_that_takes_too_long_is_stopped(opened: Opened) -> None:
    """`limits.job_seconds`; a runner's own time-out is another thing."""
    slow = Slow()

    async def late(_work: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        raise TimeoutError("the engine's own")

    async with opened(slow, job_seconds=0.2) as jobs:
        long = await jobs.wait((await jobs.submit("work", {}, owner=ALICE)).id, ALICE, 10)
    async with opened(late) as jobs:
        other = await jobs.wait((await jobs.submit("work", {}, owner=ALICE)).id, ALICE, 10)

    assert long.error is not None
    assert other.error is not None
    assert ("job_timeout", "internal_error") == (long.error.code, other.error.code)
    assert 0 == slow.running


async def test_what_has_expired_is_deleted(opened: Opened) -> None:
    """The job, its result and its items; an owner may do it before."""

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        await job.item(0, {"a": 1})
        return {}

    async with opened(work, job_days=0.5 / 86_400) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE)
        await jobs.wait(job.id, ALICE, 10)
        assert [(0, '{"a": 1}')] == await jobs.items(job.id)
        await asyncio.sleep(1)
        with pytest.raises(UnknownJob):
            await jobs.get(job.id, ALICE)
        assert [] == await jobs.items(job.id)


async def test_a_job_that_nobody_can_do_ends_as_well(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    """Its files lie in a home whose gateway never comes back: it fails in the end, and says why."""
    (tmp_path / "picture").write_bytes(b"x")
    async with opened(started=False, job_days=1 / 86_400) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE, files=[tmp_path / "picture"])
    elsewhere = settings.model_copy(update={"home": tmp_path / "elsewhere"})
    database = await Database.opened(elsewhere)
    ledger, vault = Ledger(database, days=1 / 86_400, lease=1), Vault(elsewhere.home)
    assert await ledger.claim(["work"], vault.home, vault.gateway) is None
    await asyncio.sleep(1.2)
    await ledger.expire()
    ended = await ledger.get(job.id, ALICE)
    vault.close()
    await database.close()
    assert ended.error is not None
    assert (JobState.FAILED, "interrupted") == (ended.state, ended.error.code)


async def test_items_are_kept_and_a_resumed_job_skips_them(opened: Opened) -> None:
    """Each is on disk as soon as it is done; doing one twice changes nothing."""
    slow, done = Slow(), []

    async def work(job: Work, models: Models, settings: Settings) -> dict[str, Any]:
        known = await job.places()
        for place in range(6):
            if place not in known:
                await job.item(place, {"place": place}, failed=place == 1)
                await job.item(place, {"place": "again"})
                done.append(place)
            if place == 3 and not known:
                await slow(job, models, settings)
        return {}

    async with opened(work) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE, total=6)
        await slow.begun.wait()
    async with opened(work) as jobs:
        ended = await jobs.wait(job.id, ALICE, 10)
        items = await jobs.items(job.id)
        failed = await jobs.failed_items([job.id])

    assert [0, 1, 2, 3, 4, 5] == done
    assert [(n, f'{{"place": {n}}}') for n in range(6)] == items
    assert (6, {job.id: 1}) == (ended.done, failed)


async def test_files_that_nobody_acknowledged_are_removed(opened: Opened, settings: Settings) -> None:
    """A gateway that was killed between copying and committing leaves a folder that no job names."""
    left = settings.home / "jobs" / "0123.4567"
    left.mkdir(parents=True)
    (left / "000000").write_bytes(b"a patient's")
    async with opened():
        assert [] == folders(settings)


async def test_a_job_whose_files_are_gone_says_so(opened: Opened, settings: Settings, tmp_path: Path) -> None:
    """Somebody cleaned the home."""
    (tmp_path / "picture").write_bytes(b"x")
    async with opened(started=False) as jobs:
        job = await jobs.submit("work", {}, owner=ALICE, files=[tmp_path / "picture"])
        (folders(settings)[0] / "000000").unlink()
        jobs.start()
        ended = await jobs.wait(job.id, ALICE, 10)
    assert ended.error is not None
    assert "interrupted" == ended.error.code


async def test_the_jobs_of_a_dead_gateway_are_taken_over(opened: Opened, settings: Settings) -> None:
    """Its lease runs out; and should it come back, it can change nothing any more."""
    database = await Database.opened(settings)
    dead = Ledger(database, days=1, lease=0.3)
    async with opened(rhythm=Rhythm(look=0.05, lease=0.6, sweep=9)) as jobs:
        job = Job(new_id(), "work", ALICE, JobState.QUEUED, 1.0)
        async with _paused(jobs):
            await dead.add(job, most=9, home="", folder=None, files=0)
            claimed = await dead.claim(["work"], "", "a gateway on another machine")
        assert claimed is not None
        ended = await jobs.wait(job.id, ALICE, 10)
        assert JobState.DONE is ended.state
        for late in (
            dead.note(claimed.claim, 1, 2, "late"),
            dead.item(job.id, claimed.claim, 0, {}, failed=False),
        ):
            with pytest.raises(ClaimLost):
                await late
        assert not await dead.end(claimed.claim, JobState.FAILED)
        assert ended == await jobs.get(job.id, ALICE)
    await database.close()


async def test_a_job_that_ends_the_process_each_time_is_given_up(settings: Settings) -> None:
    """After three attempts without getting on; one that got on has all three again."""
    database = await Database.opened(settings)
    ledger = Ledger(database, days=1, lease=30)
    job = Job(new_id(), "work", ALICE, JobState.QUEUED, 1.0)
    await ledger.add(job, most=9, home="", folder=None, files=0)
    for attempt in range(ATTEMPTS + 1):
        claimed = await ledger.claim(["work"], "", "gateway")
        assert claimed is not None
        if attempt == 1:
            await ledger.item(job.id, claimed.claim, 0, {}, failed=False)
        await ledger.take_back(["gateway"])
    ended = await ledger.get(job.id, ALICE)
    await database.close()

    assert ended.error is not None
    assert (JobState.FAILED, "interrupted") == (ended.state, ended.error.code)


async def test_work_goes_on_while_the_database_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are refused; what is done meanwhile is written down when the database is back."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(work_module, "AGAIN_SECONDS", 0.05)
    begun, locked = asyncio.Event(), asyncio.Event()

    async def work(job: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
        begun.set()
        await locked.wait()
        await job.item(0, {"written": "late"})
        return {}

    settings = Settings(home=tmp_path / "home")
    database = await Database.opened(settings)
    jobs = await Jobs.opened(database, Models(settings), settings, {"work": work}, QUICK)
    jobs.start()
    job = await jobs.submit("work", {})
    await begun.wait()
    other = sqlite3.connect(settings.home / "medserve.db", isolation_level=None, check_same_thread=False)
    await in_thread(other.execute, "BEGIN IMMEDIATE")
    locked.set()
    with pytest.raises(DatabaseFailed):
        await jobs.submit("work", {})
    await asyncio.sleep(0.5)
    assert JobState.RUNNING is (await jobs.get(job.id, "")).state
    other.close()
    ended = await jobs.wait(job.id, "", 10)
    assert (JobState.DONE, [(0, '{"written": "late"}')]) == (ended.state, await jobs.items(job.id))
    await jobs.close()
    await database.close()


async def test_a_job_in_work_cannot_be_deleted_before_it_stopped(opened: Opened) -> None:
    """The caller is told to come again, and nothing is lost sight of."""
    slow = Slow()
    async with opened(slow, rhythm=Rhythm(look=30)) as works, opened(started=False) as other:
        job = await works.submit("work", {}, owner=ALICE)
        await slow.begun.wait()
        with pytest.raises(JobUnfinished):
            await other.delete(job.id, ALICE)


class _paused:  # noqa: N801 - reads as a word
    """The gateway's workers look for no jobs while the block lasts."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def __aenter__(self) -> None:
        for task in self._jobs._tasks:
            task.cancel()
        await asyncio.gather(*self._jobs._tasks, return_exceptions=True)

    async def __aexit__(self, *_: object) -> None:
        self._jobs.start()
