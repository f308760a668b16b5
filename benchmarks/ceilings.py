"""Measures what a device can do at the most: bytes moved a second and multiplications of matrices a second.

A model's speed is told as a share of these. They are measured, not taken from a data sheet, on the same device, in the
same number type and just before the model, so that a slow clock or a busy neighbour lowers both alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

BUFFER_BYTES = {"cuda": 4 * 2**30, "cpu": 2**30}
"""Far more than any cache holds."""
SQUARE = {"cuda": 8192, "cpu": 2048}
"""The side of square matrices that a device multiplies as fast as it can."""

Product = tuple[int, int, int]
"""Rows, inner size and columns of a product of two matrices."""


@dataclass(frozen=True)
class Times:
    """Seconds of the runs of one piece of work, in the order in which they were made."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def words(self) -> str:
        """The median in milliseconds, from the least to the most, and of how many runs."""
        least, most = min(self.seconds), max(self.seconds)
        return f"{_ms(self.median)} ({_ms(least)} – {_ms(most)}; {len(self.seconds)})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


@dataclass(frozen=True)
class Patience:
    """How long to measure: `warm` runs that do not count, then at most `runs` and, after the first, `seconds`."""

    warm: int = 2
    runs: int = 15
    seconds: float = 20.0


@dataclass(frozen=True)
class Ceiling:
    """One piece of work that nothing but the device holds back; `rate` is in bytes or floating-point operations a
    second."""

    work: str
    times: Times
    rate: float


def clock(device: torch.device) -> Callable[[], float]:
    """What tells seconds: the wall's for a device of its own or several threads; for one thread its processor's.

    One thread that waits for a processor which others use computes nothing, and is not to be blamed for it.
    """
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, patience: Patience) -> Times:
    """Times of `work`, each from an idle device to an idle device."""
    tick = clock(device)

    def once() -> float:
        synchronise(device)
        begun = tick()
        work()
        synchronise(device)
        return tick() - begun

    return repeated(once, patience)


def repeated(once: Callable[[], float], patience: Patience) -> Times:
    """What `once` says that it took, run by run."""
    for _ in range(patience.warm):
        once()
    seconds: list[float] = []
    while not seconds or (len(seconds) < patience.runs and sum(seconds) < patience.seconds):
        seconds.append(once())
    return Times(tuple(seconds))


def bandwidth(device: torch.device, patience: Patience, size: int | None = None) -> list[Ceiling]:
    """Bytes a second of copying a buffer of `size` bytes, which reads and writes them, and of adding it up.

    Adding up is what decoding is like: everything is read and next to nothing written.
    """
    size = size or BUFFER_BYTES[device.type]
    read, written = torch.ones(2, size // 4, device=device)
    copied = timed(lambda: written.copy_(read), device, patience)
    added = timed(read.sum, device, patience)
    name = f"{size / 2**30:.2g} GiB"
    return [
        Ceiling(f"copy of {name}", copied, 2 * size / copied.median),
        Ceiling(f"sum of {name}", added, size / added.median),
    ]


def multiplication(
    device: torch.device, dtype: torch.dtype, products: Sequence[Product], patience: Patience, side: int | None = None
) -> list[Ceiling]:
    """Operations a second, two for each multiplication with its addition: a large square and the given products."""
    side = side or SQUARE[device.type]
    return [_multiplied(device, dtype, product, patience) for product in ((side, side, side), *products)]


def _multiplied(device: torch.device, dtype: torch.dtype, product: Product, patience: Patience) -> Ceiling:
    rows, inner, columns = product
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype).T  # laid out as a layer's weight is
    into = torch.empty(rows, columns, dtype=dtype, device=device)
    times = timed(lambda: torch.mm(left, right, out=into), device, patience)
    return Ceiling(f"{rows} x {inner} x {columns}", times, 2 * rows * inner * columns / times.median)


def highest(ceilings: Sequence[Ceiling]) -> float:
    """The ceiling that counts."""
    return max(ceiling.rate for ceiling in ceilings)


def described(device: torch.device) -> str:
    """The device's own name; of a CPU also how many threads work."""
    if device.type == "cuda":
        facts: Any = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
