"""Whether a model is in use is counted, not guessed, and once nobody has used it for its idle time that is told."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from time import time


class Occupancy:
    """Who uses a loaded model, and since when nobody does.

    `leases` counts the users. `resting_since` is by `clock`, which never goes back, `idle_since` the same moment in
    Unix seconds; both are None while the model is used or is not there. `idle` is called in the event loop when nobody
    has used it for `idle_seconds`, with nothing of the request that was the last; 0 is never.
    """

    def __init__(self, idle_seconds: float, idle: Callable[[], None], clock: Callable[[], float]) -> None:
        self.idle_seconds = idle_seconds
        self.leases = 0
        self.resting_since: float | None = None
        self.idle_since: float | None = None
        self._idle = idle
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """For as long as it lasts the model is in use. It rests afterwards only when `rest` says so."""
        self.leases += 1
        self.end_rest()
        try:
            yield
        finally:
            self.leases -= 1

    def rest(self) -> None:
        """From now on nobody uses the model, unless somebody has a lease on it."""
        if self.leases:
            return
        self.end_rest()
        self.resting_since, self.idle_since = self._clock(), time()
        if self.idle_seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.idle_seconds, self._idle, context=Context())

    def end_rest(self) -> None:
        """It is used, or there no more."""
        self.resting_since = self.idle_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
