"""Loaded models never take more memory together than they may: who has rested longest goes, who is at work stays."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from medserve import machine
from medserve.errors import MemoryShort, ModelFailed
from medserve.threads import in_thread

log = structlog.get_logger()

GIB = 2**30
MIB = 2**20


class Resident(Protocol):
    """A model as the room it lives in sees it."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None:
        """The process that holds its memory; None when there is none yet, or none any more."""
        ...

    @property
    def resting_since(self) -> float | None:
        """Since when nobody uses it, by a clock that never goes back; None while it is used, loads or is pinned."""
        ...

    @property
    def free_in(self) -> float | None:
        """In how many seconds it is likely to rest; None where that is not known, or never."""
        ...

    async def leave(self) -> None:
        """Unload, and return when its memory is free. It does not rest any more as soon as this is called."""
        ...


class Room:
    """The memory that models share. Whoever loads asks for it first, one after another, so none is given twice.

    `limit` is in bytes; without it the room is what the models hold and what the machine has left. What is counted of
    a model is what its process really holds, once it is loaded; before that, what it was promised.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._turn = asyncio.Lock()
        self._promised: dict[Resident, int] = {}
        self._weights: dict[Resident, int] = {}

    def weight(self, one: Resident) -> int | None:
        """Bytes that a model's process held when it was last looked at; None when it has none."""
        return self._weights.get(one)

    async def take(self, one: Resident, need: int) -> None:
        """Promise `need` bytes to a model that loads, after unloading those that have rested longest where they must.

        Raises MemoryShort when others are at work or pinned, and ModelFailed when it could never fit.
        """
        async with self._turn:
            await self._never_fits(one, need)
            await self.weigh()
            while (other := await self._in_the_way(one, need)) is not None:
                log.info("model.makes_room", model=other.name, room_for=one.name)
                await other.leave()
            self._promised[one] = need

    async def settle(self, one: Resident) -> None:
        """A model is loaded: from now on what it really holds counts."""
        self._promised.setdefault(one, 0)
        await self._weigh(one)

    def give(self, one: Resident) -> None:
        """A model holds nothing any more."""
        self._promised.pop(one, None)
        self._weights.pop(one, None)

    async def weigh(self) -> None:
        """Look at what every loaded model holds now."""
        for one in tuple(self._promised):
            await self._weigh(one)

    async def relieve(self) -> None:
        """Models grow while they work. Where they have grown beyond the limit, the longest rested go until they fit."""
        if self._limit is None:
            return
        async with self._turn:
            await self.weigh()
            while len(self._promised) > 1 and sum(map(self._counted, self._promised)) > self._limit:
                rested = _rested(self._promised)
                if not rested:
                    return
                log.warning("model.outgrown", model=rested[0].name)
                await rested[0].leave()

    async def _in_the_way(self, one: Resident, need: int) -> Resident | None:
        """Who goes next so that `one` fits, None once it does; raises MemoryShort when it would not if all went."""
        others = [other for other in self._promised if other is not one]
        room = await self._room()
        short = need + sum(map(self._counted, others)) - room
        rested = _rested(others)
        if short > sum(map(self._counted, rested)):
            raise self._short(one, need, others, room)
        return rested[0] if short > 0 else None

    async def _weigh(self, one: Resident) -> None:
        if one.pid is not None and (use := await in_thread(machine.use_of, one.pid)) and one in self._promised:
            self._weights[one] = use.memory_bytes

    def _counted(self, one: Resident) -> int:
        return self._weights.get(one, self._promised[one])

    async def _room(self) -> int:
        if self._limit is not None:
            return self._limit
        return sum(self._weights.values()) + await in_thread(machine.memory_available)

    async def _never_fits(self, one: Resident, need: int) -> None:
        most = self._limit if self._limit is not None else await in_thread(machine.memory_total)
        if need > most:
            whose = "limits.memory_bytes allows" if self._limit is not None else "this machine has"
            raise ModelFailed(
                f"{one.name} needs about {size(need)} and {whose} {size(most)}; give it a smaller context, fewer slots "
                "or smaller weights, or more memory",
                param="model",
            )

    def _short(self, one: Resident, need: int, others: Iterable[Resident], room: int) -> MemoryShort:
        taken = sum(map(self._counted, others))
        waits = [seconds for other in others if (seconds := other.free_in) is not None]
        return MemoryShort(
            f"{one.name} needs about {size(need)}, of {size(room)} for models {size(max(0, room - taken))} are free, "
            "and what would have to be unloaded is at work, loading or pinned; ask again later, unload a model, or "
            "raise limits.memory_bytes",
            param="model",
            retry_after=min(waits, default=None),
        )


def size(number: int) -> str:
    """Bytes in words."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"


def _rested(residents: Iterable[Resident]) -> list[Resident]:
    """Those that may be unloaded, the longest rested first."""
    known = [(since, one) for one in residents if (since := one.resting_since) is not None]
    return [one for _, one in sorted(known, key=lambda pair: pair[0])]
