"""Limits on requests by the minute and at once: nobody gets more, nobody waits longer than it was told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.api.rates import ADDRESSES, GUESSES, Bucket, Guesses, Passage, Turnstile, duration, network_of
from medserve.errors import RateLimited
from medserve.keys import Caller, Scope

SIZES = st.integers(1, 500)
STEPS = st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=80)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limited(per_minute: int | None = None, at_once: int | None = None) -> Caller:
    """A caller with limits."""
    return Caller("k1", "clinic", frozenset({Scope.USE}), per_minute, at_once)


@given(SIZES, STEPS)
def test_no_span_of_time_sees_more_than_the_bucket_and_its_refill(size: int, steps: list[float]) -> None:
    """From any token to any later one, at most `size` and what came back in between."""
    bucket, now, taken = Bucket(size), 0.0, []
    for step in steps:
        now += step
        while bucket.take(now):
            taken.append(now)

    for first, began in enumerate(taken[:20]):
        for last, ended in enumerate(taken[first:]):
            assert last + 1 <= size + size * (ended - began) / 60 + 1e-6


@given(SIZES, STEPS)
def test_the_time_to_wait_is_true(size: int, steps: list[float]) -> None:
    """After it there is a token, and shortly before there was none."""
    bucket, now = Bucket(size), 0.0
    for step in steps:
        now += step
        while bucket.take(now):
            pass
        wait = bucket.wait(now)
        assert 0 < wait <= 60 / size + 1e-6
        assert wait < 1e-5 or bucket.wait(now + wait - 5e-6) > 0
        assert bucket.wait(now + wait + 1e-6) == 0


@given(SIZES, STEPS)
def test_what_is_left_can_be_taken_and_no_more(size: int, steps: list[float]) -> None:
    """`left` is a promise to clients that pace themselves by it."""
    bucket, now = Bucket(size), 0.0
    for step in steps:
        now += step + 1e-3
        left = bucket.left(now)
        assert 0 <= left <= size
        # At the very moment when a token comes back, both answers are right.
        assert [True] * left == [bucket.take(now + 1e-6) for _ in range(left)]
        bucket.take(now + 1e-6)


def test_a_full_bucket_is_one_minutes_worth() -> None:
    """Sixty at once, then one a second."""
    bucket = Bucket(60)

    assert [True] * 60 + [False] == [bucket.take(0.0) for _ in range(61)]
    assert 1.0 == pytest.approx(bucket.wait(0.0))
    assert 60.0 == pytest.approx(bucket.refill(0.0))
    assert [0, 1, 30, 60] == [bucket.left(when) for when in (0.5, 1.5, 30.5, 61.0)]


def test_a_refused_request_costs_nothing_and_says_when_to_come_again() -> None:
    """Whoever asks too early is not punished for it."""
    clock = Clock()
    turnstile = Turnstile(clock)
    caller = limited(per_minute=2)
    for _ in range(2):
        with turnstile.enter(caller):
            pass
    for _ in range(5):
        with pytest.raises(RateLimited) as refused:
            turnstile.enter(caller)
        assert refused.value.retry_after == pytest.approx(30.0)
    clock.now += 30.001

    turnstile.enter(caller)


def test_places_are_held_until_they_are_left() -> None:
    """And a caller without a limit is let in always."""
    turnstile = Turnstile(Clock())
    caller = limited(at_once=2)
    inside = [turnstile.enter(caller), turnstile.enter(caller)]
    with pytest.raises(RateLimited, match="2 requests at work"):
        turnstile.enter(caller)
    with inside[0]:
        pass
    with turnstile.enter(caller):
        with pytest.raises(RateLimited):
            turnstile.enter(caller)
        for _ in range(10):
            turnstile.enter(Caller("k2", "other", frozenset({Scope.USE})))


def test_the_headers_are_those_that_openai_clients_read() -> None:
    """Limit, what remains, and when all is back."""
    clock = Clock()
    turnstile = Turnstile(clock)
    passage = turnstile.enter(limited(per_minute=60))

    expected = {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
    }
    assert expected == dict(passage.headers)
    assert () == turnstile.enter(Caller("k2", "other", frozenset())).headers


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"), (360, "6m0s"), (90.5, "1m30.5s")],
)
def test_durations_read_as_openai_writes_them(seconds: float, shown: str) -> None:
    """Clients parse these."""
    assert shown == duration(seconds)


def test_guessing_slows_down_after_ten_wrong_keys() -> None:
    """At that address only, and as long as the answer says."""
    clock = Clock()
    guesses = Guesses(clock)
    last = [guesses.wrong("10.0.0.1") for _ in range(GUESSES)]

    assert [False] * (GUESSES - 1) + [True] == last
    with pytest.raises(RateLimited, match="too many such") as refused:
        guesses.wrong("10.0.0.1")
    assert refused.value.retry_after == pytest.approx(60 / GUESSES)
    assert not guesses.wrong("10.0.0.2")
    clock.now += 60 / GUESSES + 0.01
    assert guesses.wrong("10.0.0.1")


def test_memory_of_addresses_is_bounded() -> None:
    """A guesser with many addresses fills no memory."""
    guesses = Guesses(Clock())
    for number in range(ADDRESSES + 500):
        guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")

    assert ADDRESSES == len(guesses)


def test_an_ipv6_guest_is_its_whole_network() -> None:
    """Every guest has 2^64 addresses; IPv4 in IPv6's clothes is IPv4."""
    same = {network_of(f"2001:db8:1:2::{tail}") for tail in ("1", "ffff", "a:b:c")}

    assert 1 == len(same)
    assert "2001:db8:1:3::/64" == network_of("2001:db8:1:3::1")
    assert "10.0.0.1" == network_of("::ffff:10.0.0.1")
    assert ["", "unix"] == [network_of("not:an:address"), network_of("unix")]


@given(st.lists(st.booleans(), max_size=60))
def test_the_turnstile_never_loses_or_invents_a_place(moves: list[bool]) -> None:
    """Whatever the order of coming and going, at most three are inside and a free place is given."""
    turnstile = Turnstile(Clock())
    inside: list[Passage] = []
    caller = limited(at_once=3)
    for comes in moves:
        if comes and len(inside) < 3:
            inside.append(turnstile.enter(caller))
        elif comes:
            with pytest.raises(RateLimited):
                turnstile.enter(caller)
        elif inside:
            with inside.pop():
                pass
