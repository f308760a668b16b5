"""How often and how much at once: refusals that say truly when to come again, from clocks that are passed in."""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic

from medserve.errors import RateLimited
from medserve.keys import Caller

MINUTE = 60.0
ROUNDING = 1e-6
"""Seconds that sums of floating-point numbers may be wrong by; the last token of many must not be lost to them."""
PLACE_SECONDS = 1.0
"""When a place among the requests at work may be free again; nobody knows how long answers take."""
GUESSES = 10
"""Unknown keys of an address that are answered as such, and how many more each minute."""
ADDRESSES = 4096
"""How many addresses are remembered; the one that was not heard of for longest is forgotten first."""


class Bucket:
    """A bucket of tokens: `size` of them to begin with, and `size` more in every `seconds`, evenly.

    It is kept as the one moment at which it will be full again (the generic cell rate algorithm of ITU-T I.371), so
    that it holds no count that could drift. `now` never runs backwards.
    """

    __slots__ = ("_every", "_full", "size")

    def __init__(self, size: int, seconds: float = MINUTE) -> None:
        self.size = size
        self._every = seconds / size
        self._full = float("-inf")

    def take(self, now: float) -> bool:
        """Take a token; False when there is none."""
        if self.wait(now) > 0:
            return False
        self._full = max(self._full, now) + self._every
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a token, 0 when there is one."""
        seconds = self._full - now - self._every * (self.size - 1)
        return seconds if seconds > ROUNDING else 0.0

    def left(self, now: float) -> int:
        """Whole tokens that are there."""
        return max(0, int(self.size - (self.refill(now) - ROUNDING) / self._every))

    def refill(self, now: float) -> float:
        """Seconds until the bucket is full."""
        return max(0.0, self._full - now)


class Passage:
    """A request at work: it holds one of its caller's places until it is left, and knows the caller's headers."""

    def __init__(self, headers: tuple[tuple[bytes, bytes], ...], leave: Callable[[], None]) -> None:
        self.headers = headers
        self._leave = leave

    def __enter__(self) -> "Passage":
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()


class Turnstile:
    """Lets in as many requests of each caller as its key allows, by the minute and at once.

    A request that it refuses costs the caller nothing of its allowance; any other counts, whatever its answer is.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._inside: dict[str, int] = {}

    def enter(self, caller: Caller) -> Passage:
        """A passage for one request; raises RateLimited."""
        inside = self._inside.get(caller.id, 0)
        if caller.at_once is not None and inside >= caller.at_once:
            raise RateLimited(
                f"the key has {inside} requests at work and may have {caller.at_once}; wait for one to end",
                retry_after=PLACE_SECONDS,
            )
        now = self._clock()
        bucket = self._bucket(caller)
        if bucket is not None and not bucket.take(now):
            raise RateLimited(
                f"the key may make {bucket.size} requests a minute and has made them; come again later",
                retry_after=bucket.wait(now),
            )
        self._inside[caller.id] = inside + 1
        return Passage(self.headers(caller), lambda: self._leave(caller.id))

    def headers(self, caller: Caller) -> tuple[tuple[bytes, bytes], ...]:
        """What the caller has left, under the names that OpenAI's clients read; nothing without a limit."""
        bucket = self._bucket(caller)
        if bucket is None:
            return ()
        now = self._clock()
        return (
            (b"x-ratelimit-limit-requests", b"%d" % bucket.size),
            (b"x-ratelimit-remaining-requests", b"%d" % bucket.left(now)),
            (b"x-ratelimit-reset-requests", duration(bucket.refill(now)).encode()),
        )

    def _bucket(self, caller: Caller) -> Bucket | None:
        if caller.per_minute is None:
            return None
        bucket = self._buckets.get(caller.id)
        if bucket is None or bucket.size != caller.per_minute:
            bucket = self._buckets[caller.id] = Bucket(caller.per_minute)
        return bucket

    def _leave(self, identifier: str) -> None:
        left = self._inside[identifier] - 1
        if left:
            self._inside[identifier] = left
        else:
            del self._inside[identifier]


class Guesses:
    """Unknown keys are counted by the address that they come from; beyond so many the answer is to come again later.

    No right key is ever refused for them. 256 random bits are not guessed, so that this protects no key: it makes a
    client that goes on with a wrong one slow down, and tells the log of it once. Behind one proxy sit those who err and
    those who work, and the latter must not pay for it. Memory is bounded, and an IPv6 address counts as its /64, of
    which every guest has 2^64.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()

    def wrong(self, address: str) -> bool:
        """Count an unknown key; raises RateLimited when there were too many, and is True with the last that may be."""
        place = network_of(address)
        bucket = self._wrong.setdefault(place, Bucket(GUESSES))
        self._wrong.move_to_end(place)
        if len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)
        now = self._clock()
        if not bucket.take(now):
            told = "the key is not known here, and too many such came from this address; come again later"
            raise RateLimited(told, retry_after=bucket.wait(now))
        return bucket.left(now) == 0

    def __len__(self) -> int:
        return len(self._wrong)


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 20ms, 8.64s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, MINUTE)
    shown = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{minutes:.0f}m{shown}s" if minutes else f"{shown}s"


def network_of(address: str) -> str:
    """The address itself, of an IPv6 address its /64; what is no address counts as one."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_network(f"{found}/64", strict=False))
