"""Pauses grow from failure to failure and have a limit, one success ends them, and no reason is lost or leaked."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import MedserveError, MemoryShort, ModelFailed, WeightsCorrupt
from medserve.models.setbacks import CALM_SECONDS, CRASH_SECONDS, MOST_RETRY_SECONDS, Setbacks


class Life:
    """A model as its handle leads it: loaded when its pause is over, at work only when it is loaded.

    Its seconds are whole numbers, which floats hold exactly.
    """

    def __init__(self, retry_seconds: float = 60) -> None:
        self.now = 0.0
        self.setbacks = Setbacks("m", retry_seconds, lambda: self.now)
        self.up = False

    def fails(self) -> float:
        """The pause after one more load, which fails."""
        self._begins()
        return self.setbacks.failed(WeightsCorrupt("cut short", param="model"))

    def finds_no_room(self) -> None:
        self._begins()
        self.setbacks.no_room(MemoryShort("others are at work"))

    def loads(self) -> None:
        self._begins()
        self.setbacks.loaded()
        self.up = True

    def answers(self) -> None:
        if not self.up:
            self.loads()
        self.setbacks.answered()

    def crashes(self, after: float = 0) -> float:
        """The pause after the worker has ended so many seconds after it was loaded."""
        if not self.up:
            self.loads()
        self.now += after
        self.up = False
        return self.setbacks.crashed()

    def waits(self) -> None:
        self.now += 7

    def is_forgiven(self) -> None:
        self.setbacks.forget()

    def told(self) -> tuple[str | None, str | None, float, int, int]:
        """All that can be known of it."""
        kept = self.setbacks
        return kept.reason, kept.code, kept.pause, kept.attempts, kept.crashes

    def _begins(self) -> None:
        self.up = False
        self.now += self.setbacks.pause
        self.setbacks.begun()


Event = Callable[[Life], object]
EVENTS: tuple[Event, ...] = (
    Life.fails, Life.finds_no_room, Life.loads, Life.answers, Life.crashes, Life.waits, Life.is_forgiven,
)  # fmt: skip
events = st.lists(st.sampled_from(EVENTS), max_size=40)
retries = st.integers(1, 10_000)


def lived(retry_seconds: float, events: list[Event]) -> Life:
    """A life in which these events came to pass."""
    life = Life(retry_seconds)
    for event in events:
        event(life)
    return life


# --- any life ------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be under load
@given(retries, events)
def test_no_pause_is_longer_than_the_most_whatever_happens(retry_seconds: int, events: list[Event]) -> None:
    """A model that has failed for a week is still tried every quarter of an hour."""
    life = lived(retry_seconds, events)

    assert 0 <= life.setbacks.pause <= MOST_RETRY_SECONDS


@settings(deadline=None)  # the machine may be under load
@given(retries, events)
def test_whoever_has_to_wait_is_told_why_and_for_how_long(retry_seconds: int, events: list[Event]) -> None:
    """And nobody is refused who need not wait."""
    setbacks = lived(retry_seconds, events).setbacks
    if not setbacks.pause:
        setbacks.refuse_too_early()
        return

    with pytest.raises(MedserveError) as caught:
        setbacks.refuse_too_early()

    words = f"{setbacks.reason}; a request may try again in {ceil(setbacks.pause)} seconds"
    assert (words, setbacks.code, setbacks.pause) == (caught.value.message, caught.value.code, caught.value.retry_after)


@settings(deadline=None)  # the machine may be under load
@given(retries, events)
def test_a_model_that_is_loaded_has_no_pause_and_no_failure(retry_seconds: int, events: list[Event]) -> None:
    """Only how often its worker ended is still counted, until it answers."""
    life = lived(retry_seconds, events)
    crashes = life.setbacks.crashes
    life.loads()
    assert (None, None, 0, 0, crashes) == life.told()

    life.answers()
    assert (None, None, 0, 0, 0) == life.told()


@settings(deadline=None)  # the machine may be under load
@given(retries, events)
def test_after_a_success_failures_begin_anew(retry_seconds: int, events: list[Event]) -> None:
    """The pause is that of a model that had never failed."""
    life = lived(retry_seconds, events)
    life.loads()

    assert Life(retry_seconds).fails() == life.fails()


@settings(deadline=None)  # the machine may be under load
@given(retries, events)
def test_what_a_person_has_forgiven_leaves_no_trace(retry_seconds: int, events: list[Event]) -> None:
    """It is as if the model were new, now and when it fails or ends again."""
    life = lived(retry_seconds, events)
    life.is_forgiven()

    new = Life(retry_seconds)
    assert new.told() == life.told()
    assert [new.fails(), new.crashes(), new.crashes()] == [life.fails(), life.crashes(), life.crashes()]


# --- loads that fail -----------------------------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be under load
@given(st.floats(min_value=1e-3, max_value=1e300), st.integers(1, 60))
def test_each_failure_doubles_the_pause_up_to_the_most(retry_seconds: float, times: int) -> None:
    """It never shrinks; the first is as the settings say."""
    setbacks = Setbacks("m", retry_seconds, lambda: 0.0)
    pauses = []
    for _ in range(times):
        setbacks.begun()
        pauses.append(setbacks.failed(ModelFailed("no")))

    assert min(retry_seconds, MOST_RETRY_SECONDS) == pauses[0]
    for shorter, longer in pairwise(pauses):
        assert min(2 * shorter, MOST_RETRY_SECONDS) == longer


@settings(deadline=None)  # the machine may be under load
@given(retries, st.lists(st.sampled_from((Life.fails, Life.finds_no_room)), max_size=20))
def test_a_load_that_found_no_room_counts_for_nothing(retry_seconds: int, events: list[Event]) -> None:
    """There is nothing wrong with the model: without these loads its pauses would be the same."""
    others: list[Event] = [event for event in events if event is Life.fails]

    assert lived(retry_seconds, others).fails() == lived(retry_seconds, events).fails()


def test_that_there_was_no_room_is_told_and_is_no_failure() -> None:
    """The next request may try at once."""
    life = Life()
    life.finds_no_room()

    assert ("others are at work", None, 0, 0, 0) == life.told()


def test_the_pause_passes() -> None:
    """It is over at the second that was told, and not before."""
    life = Life(60)
    life.fails()
    life.now += 59.5
    with pytest.raises(WeightsCorrupt, match="cut short; a request may try again in 1 seconds"):
        life.setbacks.refuse_too_early()

    life.now += 0.5
    life.setbacks.refuse_too_early()


def test_what_is_kept_of_an_error_is_never_raised_itself() -> None:
    """A raised error holds its traceback, and so the pictures of whoever caused it."""
    setbacks = Setbacks("m", 60, lambda: 0.0)
    first = WeightsCorrupt("cut short", param="model")
    setbacks.begun()
    setbacks.failed(first)
    refused = []
    for _ in range(2):
        with pytest.raises(WeightsCorrupt) as caught:
            setbacks.refuse_too_early()
        refused.append(caught.value)

    assert 3 == len({id(error) for error in (first, *refused)})
    assert ["model"] * 2 == [error.param for error in refused]
    assert "cut short" == setbacks.reason


# --- workers that end ----------------------------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be under load
@given(st.integers(1, 60))
def test_crashes_in_a_row_have_pauses_that_double_from_the_second_on(times: int) -> None:
    """Once may happen; what happens again before an answer is a failure that is not tried without end."""
    life = Life()
    pauses = [life.crashes() for _ in range(times)]

    assert [0.0, *(min(CRASH_SECONDS * 2**power, MOST_RETRY_SECONDS) for power in range(times - 1))] == pauses
    assert times == life.setbacks.crashes
    assert ("model_failed" if times > 1 else None) == life.setbacks.code


@settings(deadline=None)  # the machine may be under load
@given(st.integers(1, 20))
def test_a_worker_that_answers_before_it_ends_is_loaded_anew_at_once(times: int) -> None:
    """One answer ends the count."""
    life = Life()
    for _ in range(times):
        life.answers()
        assert life.crashes() == 0

    assert "the worker of m ended by itself; the next request loads it anew" == life.setbacks.reason


@pytest.mark.parametrize(("seconds", "crashes"), [(CALM_SECONDS, 3), (CALM_SECONDS + 1, 1)])
def test_a_worker_that_lived_long_is_not_one_that_dies_of_being_loaded(seconds: float, crashes: int) -> None:
    """Its end is a first one again, although nobody asked it anything."""
    life = Life()
    life.crashes()
    life.crashes()
    pause = life.crashes(after=seconds)

    assert (crashes, crashes > 1) == (life.setbacks.crashes, pause > 0)


def test_failed_loads_between_two_crashes_end_no_count() -> None:
    """The pause of a load is its own, and so is that of a crash."""
    life = Life(60)

    assert [0, 60, 120, 2, 60, 4] == [
        life.crashes(), life.fails(), life.fails(), life.crashes(), life.fails(), life.crashes(),
    ]  # fmt: skip
