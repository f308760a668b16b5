"""What fails again and again is tried less and less often, but never given up, and its reason is never forgotten.

After a failed load the pause is `limits.retry_seconds`, and each further failure doubles it. After a crash of the
worker there is none: once may happen. When it crashes again before it has answered anything, the pause begins at
CRASH_SECONDS and doubles. No pause is longer than MOST_RETRY_SECONDS.
"""

from collections.abc import Callable
from math import ceil

from medserve.errors import MedserveError, MemoryShort, ModelFailed

MOST_RETRY_SECONDS = 900.0
DOUBLINGS = 30
"""More of them change nothing, and a float holds them."""
CRASH_SECONDS = 2.0
"""The pause after a second crash in a row; the first has none, each further one doubles it."""
CALM_SECONDS = 300.0
"""A worker that lived so long without work is not one that dies of being loaded."""


class Setbacks:
    """How the loads of one model went, and how often its worker ended by itself.

    Each method that is named after an event is to be called when that happens; the two that put off the next load
    return by how many seconds. `attempts` counts the loads since the model was last ready, the one that goes on
    included; `crashes` how often its worker ended since it last answered. `clock` tells seconds that never go back.
    """

    def __init__(self, name: str, retry_seconds: float, clock: Callable[[], float]) -> None:
        self.attempts = 0
        self.crashes = 0
        self._name = name
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._error: MedserveError | None = None  # never raised itself: see `MedserveError.copied`
        self._note: str | None = None
        self._retry_at = 0.0
        self._loaded_at = 0.0

    @property
    def reason(self) -> str | None:
        """Why the last load failed or the worker ended; None when all is well."""
        return self._error.message if self._error else self._note

    @property
    def code(self) -> str | None:
        """Of which kind the failure is; None unless the model has failed."""
        return self._error.code if self._error else None

    @property
    def pause(self) -> float:
        """Seconds until a load may be tried again."""
        return max(0.0, self._retry_at - self._clock())

    def refuse_too_early(self) -> None:
        """Raise the reason of the failure, and say when, for as long as a load may not be tried again."""
        if self._error is not None and (left := self.pause):
            raise self._error.copied(f"; a request may try again in {ceil(left)} seconds", retry_after=left)

    def begun(self) -> None:
        """A load begins."""
        self.attempts += 1

    def no_room(self, error: MemoryShort) -> None:
        """The load that began found no room; there is nothing wrong with the model, so it counts for nothing."""
        self.attempts -= 1
        self._note = error.message

    def failed(self, error: MedserveError) -> float:
        """The load that began has failed."""
        self._error = error.copied()
        return self._put_off(_doubled(self._retry_seconds, self.attempts - 1))

    def loaded(self) -> None:
        """The load that began is done. Crashes are counted on: a worker may well load and end of its first request."""
        self._error = self._note = None
        self.attempts = 0
        self._loaded_at = self._clock()

    def answered(self) -> None:
        """The worker has done what it is for."""
        self.crashes = 0

    def crashed(self) -> float:
        """The worker ended by itself: once may happen, again and again is a failure."""
        calm = self._clock() - self._loaded_at > CALM_SECONDS
        self.crashes = 1 if calm else self.crashes + 1
        if self.crashes == 1:
            self._note = f"the worker of {self._name} ended by itself; the next request loads it anew"
            return self._put_off(0.0)
        self._error = ModelFailed(
            f"the worker of {self._name} has ended by itself {self.crashes} times without an answer in between; the "
            "log of the service says when, and `medserve doctor` what this machine has",
            param="model",
        )
        return self._put_off(_doubled(CRASH_SECONDS, self.crashes - 2))

    def forget(self) -> None:
        """A person wants it tried as if nothing had ever happened."""
        self._error = self._note = None
        self.attempts = self.crashes = 0
        self._retry_at = 0.0

    def _put_off(self, seconds: float) -> float:
        self._retry_at = self._clock() + seconds
        return seconds


def _doubled(seconds: float, times: int) -> float:
    return min(seconds * 2.0 ** min(times, DOUBLINGS), MOST_RETRY_SECONDS)
