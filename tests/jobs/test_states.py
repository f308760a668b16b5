"""The life of a job as a machine: whatever happens in whatever order, what has ended stays so, and claims are held."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from medserve.database import Database
from medserve.jobs import Job, JobState
from medserve.jobs.ledger import ATTEMPTS, Claimed, ClaimLost, Ledger
from medserve.jobs.record import new_id
from medserve.settings import Settings

MEMORY = Path("/dev/shm")  # noqa: S108 - what is written to a disk is waited for, and no rule here is about disks
GATEWAYS = st.sampled_from(["one", "two"])
LEGAL = {
    JobState.QUEUED: {JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: set(JobState),
    **{state: {state} for state in JobState if state.ended},
}


class Lives(RuleBasedStateMachine):
    """Two gateways and one owner on one real database, beside a dictionary that says what must be true."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        settings = Settings(home=Path(self._folder.name))
        self._database = self._run(Database.opened(settings))
        self._ledger = Ledger(self._database, days=1, lease=60)
        self._seen: dict[str, Job] = {}
        self._holders: dict[str, str] = {}
        self._gateway_of: dict[str, str] = {}
        self._told: set[str] = set()

    def _run(self, work: Any) -> Any:
        return self._runner.run(work)

    @rule()
    def submit(self) -> None:
        job = Job(new_id(), "work", "", JobState.QUEUED, float(len(self._seen)), total=3)
        self._run(self._ledger.add(job, most=100, home="", folder=None, files=0))
        self._seen[job.id] = self._run(self._ledger.get(job.id, ""))

    @rule(target=claims, gateway=GATEWAYS)
    def claim(self, gateway: str) -> Claimed | None:
        waits = [job for job in self._seen.values() if job.state is JobState.QUEUED]
        claimed: Claimed | None = self._run(self._ledger.claim(["work"], "", gateway))
        assert (claimed is None) == (not waits)
        if claimed is not None:
            assert claimed.job.id == waits[0].id
            self._holders[claimed.job.id] = claimed.claim
            self._gateway_of[claimed.job.id] = gateway
        return claimed

    @rule(claimed=claims, place=st.integers(0, 2))
    def item(self, claimed: Claimed | None, place: int) -> None:
        if claimed is not None:
            try:
                self._run(self._ledger.item(claimed.job.id, claimed.claim, place, {}, failed=False))
                written = True
            except ClaimLost:
                written = False
            assert written == self._holds(claimed)

    @rule(claimed=claims, state=st.sampled_from([JobState.DONE, JobState.FAILED]))
    def end(self, claimed: Claimed | None, state: JobState) -> None:
        if claimed is not None:
            held = self._holds(claimed)
            assert held == self._run(self._ledger.end(claimed.claim, state))
            if held:
                expected = JobState.CANCELLED if claimed.job.id in self._told else state
                assert expected is self._run(self._ledger.get(claimed.job.id, "")).state
                del self._holders[claimed.job.id]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self._seen:
            job = data.draw(st.sampled_from(sorted(self._seen)))
            told: Job = self._run(self._ledger.cancel(job, ""))
            if told.state is JobState.RUNNING:
                assert told.cancelling
                self._told.add(job)

    @rule(gateway=GATEWAYS)
    def die(self, gateway: str) -> None:
        held = self._held_by(gateway)
        self._run(self._ledger.take_back([gateway]))
        for job in held:
            self._check_given_up(job, counted=True)

    @rule(gateway=GATEWAYS)
    def stop(self, gateway: str) -> None:
        held = self._held_by(gateway)
        self._run(self._ledger.give_back(gateway))
        for job in held:
            self._check_given_up(job, counted=False)

    @invariant()
    def only_legal_steps_are_made(self) -> None:
        for identifier, before in list(self._seen.items()):
            now: Job = self._run(self._ledger.get(identifier, ""))
            assert now.state in LEGAL[before.state]
            assert not before.state.ended or now == before
            assert (now.ended is not None) == now.state.ended
            assert now.attempts <= ATTEMPTS
            assert now.done == len(self._run(self._ledger.places(identifier)))
            assert (identifier in self._holders) == (now.state is JobState.RUNNING)
            self._seen[identifier] = now

    def teardown(self) -> None:
        self._run(self._database.close())
        self._runner.close()
        self._folder.cleanup()

    def _holds(self, claimed: Claimed) -> bool:
        return self._holders.get(claimed.job.id) == claimed.claim

    def _held_by(self, gateway: str) -> list[Job]:
        return [self._seen[job] for job in self._holders if self._gateway_of[job] == gateway]

    def _check_given_up(self, before: Job, *, counted: bool) -> None:
        del self._holders[before.id]
        now: Job = self._run(self._ledger.get(before.id, ""))
        if before.id in self._told:
            assert JobState.CANCELLED is now.state
        elif counted and before.attempts >= ATTEMPTS:
            assert JobState.FAILED is now.state
        else:
            assert JobState.QUEUED is now.state
            assert now.attempts == before.attempts - (not counted)


Lives.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=20, deadline=None)
TestLives = Lives.TestCase
