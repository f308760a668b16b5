"""What requests to one model share: places to be answered in, and the pictures that were made ready for it."""

import asyncio
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from statistics import fmean
from time import monotonic

from medserve.errors import ModelBusy
from medserve.images import Image
from medserve.imaging.preprocess import VisionInput, prepare
from medserve.threads import in_thread

KEPT_PICTURE_BYTES = 256 * 2**20
REMEMBERED_ANSWERS = 16


class Places:
    """Room for so many answers at once and so many that wait; whoever comes beyond that is told so at once.

    Answers of one kin, those that begin with the same picture, take turns: the second finds the first one's work
    done, where at the same time both would have done it.
    """

    def __init__(self, slots: int, waiting: int) -> None:
        self._slots = slots
        self._room = slots + waiting
        self._inside = 0
        self._begun: dict[object, float] = {}
        self._recent: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)
        self._free = asyncio.Semaphore(slots)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def one(self, kin: str | None) -> AsyncIterator[None]:
        """A place for as long as the context lasts; raises ModelBusy when there is no room left to wait in."""
        self.refuse_full()
        self._inside += 1
        try:
            async with self._turn(kin), self._free, self._timed():
                yield
        finally:
            self._inside -= 1

    def refuse_full(self) -> None:
        """Raise ModelBusy when there is no room left to wait in."""
        if self._inside < self._room:
            return
        wait = self.seconds(self.waiting + 1)
        raise ModelBusy(
            f"{self.answering} requests are being answered and {self.waiting} wait, as many as may"
            + (f"; come again in about {ceil(wait)} seconds" if wait else "; come again later"),
            retry_after=wait,
        )

    @property
    def answering(self) -> int:
        """How many requests are being answered."""
        return len(self._begun)

    @property
    def waiting(self) -> int:
        """How many wait to be answered."""
        return self._inside - len(self._begun)

    def seconds(self, position: int) -> float | None:
        """How long the request at this position of the queue, 1 for the first, is likely to wait for its place.

        The latest answers say how long one takes; while there is none, those that run do, which have taken as long as
        they have. None where nothing is known.
        """
        now = monotonic()
        known = [*self._recent] or [now - begun for begun in self._begun.values()]
        return fmean(known) * position / self._slots if known else None

    @asynccontextmanager
    async def _timed(self) -> AsyncIterator[None]:
        mark = object()
        self._begun[mark] = monotonic()
        try:
            yield
            self._recent.append(monotonic() - self._begun[mark])  # one that was left early tells nothing
        finally:
            del self._begun[mark]

    @asynccontextmanager
    async def _turn(self, kin: str | None) -> AsyncIterator[None]:
        if kin is None:
            yield
            return
        lock, users = self._turns.get(kin, (asyncio.Lock(), 0))
        self._turns[kin] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(kin)
            if users > 1:
                self._turns[kin] = lock, users - 1


class Pictures:
    """Pictures as the model takes them, PNG in base64, the latest kept up to a number of bytes."""

    def __init__(self, limit: int = KEPT_PICTURE_BYTES) -> None:
        self._limit = limit
        self._held = 0
        self._kept: OrderedDict[tuple[str, VisionInput], str] = OrderedDict()

    async def encoded(self, image: Image, vision: VisionInput) -> str:
        """The prepared picture; equal pictures give equal text, which is what engines recognise them by."""
        key = (await in_thread(lambda: image.sha256), vision)
        if key not in self._kept:
            data = b64encode(await in_thread(prepare, image, vision)).decode()
            self._keep(key, data)
            return data
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple[str, VisionInput], data: str) -> None:
        self._held += len(data) - len(self._kept.pop(key, ""))
        self._kept[key] = data
        while self._held > self._limit and len(self._kept) > 1:
            self._held -= len(self._kept.popitem(last=False)[1])
