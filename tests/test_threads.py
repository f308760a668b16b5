"""Blocking work in threads: whoever waits for it is not told that it is over before it is."""

import asyncio
from threading import Event

import anyio
import pytest

from medserve.threads import in_lane, in_thread, shielded


class Work:
    """Something that takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = Event(), Event(), Event()

    def do(self) -> str:
        self.begun.set()
        assert self.may_end.wait(10)
        self.ended.set()
        return "done"

    async def has_begun(self) -> None:
        """Wait until it has."""
        assert await asyncio.to_thread(self.begun.wait, 10)


async def test_what_the_work_brings_and_what_it_raises_come_back() -> None:
    """As if it had been called here."""
    assert 3 == await in_thread(len, "abc")
    with pytest.raises(ValueError, match="no number"):
        await in_thread(_fail)


def _fail() -> None:
    raise ValueError("no number")


async def test_who_is_cancelled_leaves_when_the_work_has_ended() -> None:
    """What a thread writes to must not be taken away under its hands; and a second cancel changes nothing."""
    work = Work()
    waiting = asyncio.create_task(in_thread(work.do))
    await work.has_begun()

    for _ in range(2):
        waiting.cancel()
        await asyncio.sleep(0.02)
        assert not waiting.done()
    work.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended.is_set()


async def test_a_time_limit_is_told_when_the_work_has_ended() -> None:
    """As a time limit, not as anything else."""
    work = Work()

    async def limited() -> None:
        async with asyncio.timeout(0.01):
            await in_thread(work.do)

    waiting = asyncio.create_task(limited())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    work.may_end.set()

    with pytest.raises(TimeoutError):
        await waiting
    assert work.ended.is_set()


async def test_a_cancelled_scope_waits_as_well() -> None:
    """Frameworks cancel by scopes of anyio, which go on cancelling until nobody is left inside."""
    work = Work()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0.02, scope.cancel)
        asyncio.get_running_loop().call_later(0.06, work.may_end.set)
        await in_thread(work.do)

    assert scope.cancelled_caught
    assert work.ended.is_set()


async def test_who_waits_for_a_place_leaves_at_once_and_nothing_is_done() -> None:
    """The place stays taken until the work before has ended, even when nobody waits for that any more."""
    lane, first, second = anyio.CapacityLimiter(1), Work(), Work()
    holding = asyncio.create_task(in_lane(lane, first.do))
    await first.has_begun()
    queued = asyncio.create_task(in_lane(lane, second.do))
    await asyncio.sleep(0.01)

    holding.cancel()
    queued.cancel()
    await asyncio.wait({queued})
    assert 1 == lane.borrowed_tokens
    first.may_end.set()
    await asyncio.wait({holding})

    assert 0 == lane.borrowed_tokens
    assert not second.begun.is_set()


async def test_what_fails_after_its_caller_left_is_nobodys_news() -> None:
    """Its error is not raised where nobody asks for it."""
    may_fail = asyncio.Event()

    async def failing() -> None:
        await may_fail.wait()
        raise ValueError("too late")

    waiting = asyncio.create_task(shielded(failing()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    may_fail.set()

    with pytest.raises(asyncio.CancelledError):
        await waiting
