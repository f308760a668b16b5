"""The memory that models share: what is promised always fits, and who is at work or pinned never goes for it."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.errors import MemoryShort, ModelFailed
from medserve.residency import GIB, Room

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class Lodger:
    """A resident without a process, whose promise is therefore what counts of it."""

    name: str
    room: Room
    resting_since: float | None = None
    free_in: float | None = None
    pid: int | None = None
    left: list[str] = field(default_factory=list)

    async def leave(self) -> None:
        assert self.resting_since is not None, "who is at work was told to go"
        self.resting_since = None
        await asyncio.sleep(0)  # ending a process takes its time, in which others ask for room
        self.room.give(self)
        self.left.append(self.name)


async def test_the_longest_rested_goes_first_and_no_more_than_need_be() -> None:
    """Of three that rest, only the one that was used longest ago makes room."""
    room = Room(30)
    left: list[str] = []
    lodgers = [Lodger(str(since), room, since, left=left) for since in (5.0, 1.0, 3.0)]
    for lodger in lodgers:
        await room.take(lodger, 10)

    await room.take(Lodger("new", room), 10)

    assert ["1.0"] == left


async def test_nobody_goes_in_vain() -> None:
    """When the room would not suffice even if all went that may, all stay; the numbers and the wait are told."""
    room = Room(10 * GIB)
    left: list[str] = []
    await room.take(Lodger("resting", room, 1.0, left=left), 3 * GIB)
    await room.take(Lodger("at work", room, None, free_in=7.0), 5 * GIB)

    with pytest.raises(MemoryShort, match=r"new needs about 6\.0 GiB, of 10\.0 GiB for models 2\.0 GiB are") as caught:
        await room.take(Lodger("new", room), 6 * GIB)

    assert ([], 7.0) == (left, caught.value.retry_after)


async def test_what_can_never_fit_is_a_failure_with_numbers() -> None:
    """Waiting would not help, and nobody is unloaded for it."""
    room = Room(2 * GIB)
    left: list[str] = []
    await room.take(Lodger("resting", room, 1.0, left=left), GIB)

    with pytest.raises(ModelFailed, match=r"needs about 3\.0 GiB and limits\.memory_bytes allows 2\.0 GiB") as caught:
        await room.take(Lodger("new", room), 3 * GIB)

    assert not isinstance(caught.value, MemoryShort)
    assert [] == left


async def test_without_a_limit_the_machine_is_the_limit() -> None:
    """No machine has 2^60 bytes."""
    with pytest.raises(ModelFailed, match="this machine has"):
        await Room(None).take(Lodger("new", Room(None)), 2**60)


async def test_two_loads_at_once_do_not_take_the_same_room() -> None:
    """The second is told that there is none, though nothing is loaded yet."""
    room = Room(10)
    lodgers = [Lodger(name, room) for name in "ab"]

    outcomes = await asyncio.gather(*(room.take(lodger, 6) for lodger in lodgers), return_exceptions=True)

    assert [type(None), MemoryShort] == [type(outcome) for outcome in outcomes]


async def test_asking_again_replaces_what_was_promised() -> None:
    """A load knows better when it has read the file's header."""
    room = Room(10)
    lodger = Lodger("a", room)
    await room.take(lodger, 3)
    await room.take(lodger, 9)

    with pytest.raises(MemoryShort):
        await room.take(Lodger("b", room), 2)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12), st.sampled_from(["take", "rest", "work", "give"]))),
    together=st.booleans(),
)
def test_whatever_happens_what_is_promised_fits(steps: list[tuple[int, int, str]], together: bool) -> None:
    """Six models come, rest, work and go, one after another or all at once."""

    async def live() -> None:
        room = Room(10)
        lodgers = [Lodger(str(number), room) for number in range(6)]
        promised: dict[Lodger, int] = {}

        async def step(number: int, need: int, what: str) -> None:
            lodger = lodgers[number]
            if what == "take":
                lodger.resting_since = None
                try:
                    await room.take(lodger, need)
                    promised[lodger] = need
                except (MemoryShort, ModelFailed):
                    pass
            elif what == "give":
                room.give(lodger)
            elif lodger in room._promised:
                lodger.resting_since = float(number) if what == "rest" else None
            assert sum(room._promised.values()) <= 10

        if together:
            await asyncio.gather(*(step(*each) for each in steps))
        else:
            for each in steps:
                await step(*each)

    asyncio.run(live())
