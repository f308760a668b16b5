"""Hands every hostile file to the decoders as the service does, and counts crashes, hangs and untyped errors here."""

import gc
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from structlog.testing import capture_logs

from medserve.errors import InvalidRequest
from medserve.imaging.isolation import Decoders
from medserve.imaging.material import DEFAULT, Material
from medserve.settings import Limits
from tests.hostile.corpus import Hostile

HANG = 5.0
"""Seconds after which a caller has been kept too long."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `read`, the code of the refusal, or the name of an error that is none of ours."""

    hostile: Hostile
    result: str
    message: str
    seconds: float
    replaced: bool = False
    surprise: str = ""
    typed: bool = True


@dataclass
class Tally:
    """What became of all of them; memory in bytes."""

    outcomes: list[Outcome] = field(default_factory=list)
    grown: int = 0
    decoders: int = 0

    @property
    def hangs(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.seconds > HANG]

    @property
    def untyped(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.typed]

    @property
    def replaced(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.replaced]

    @property
    def surprises(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.surprise]

    def by_format(self) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for outcome in self.outcomes:
            counts[outcome.hostile.format][outcome.result] += 1
            counts[outcome.hostile.format]["decoder replaced"] += outcome.replaced
        return dict(sorted(counts.items()))


def run(corpus: Iterable[Hostile], pool: Decoders, warm_up: Material | None = None) -> Tally:
    """Hand over one file after the other; memory counts from after the warm-up, when all that is kept has been made."""
    tally = Tally()
    if warm_up is not None:
        pool.read([warm_up], Limits(), DEFAULT)
    before = 0
    for hostile in corpus:
        before = before or _resident(os.getpid())
        tally.outcomes.append(_outcome(hostile, pool))
    gc.collect()
    tally.grown = _resident(os.getpid()) - before
    tally.decoders = max((_resident(pid) for pid in pool.pids()), default=0)
    return tally


def _outcome(hostile: Hostile, pool: Decoders) -> Outcome:
    replaced = pool.replaced
    with _material(hostile) as material, capture_logs() as logs:
        start = perf_counter()
        result, message, typed = "read", "", True
        try:
            pool.read([material], Limits(), DEFAULT)
        except InvalidRequest as error:
            result, message = error.code, error.message
        except Exception as error:
            result, message, typed = type(error).__name__, str(error), False
        seconds = perf_counter() - start
    seen = hostile._replace(content=b"")  # a tally that kept every file would be the growth that it measures
    surprise = next((entry["where"] for entry in logs if entry["event"] == "decoder_surprised"), "")
    return Outcome(seen, result, message, seconds, pool.replaced > replaced, surprise, typed)


@contextmanager
def _material(hostile: Hostile) -> Iterator[Material]:
    if isinstance(hostile.content, bytes):
        yield hostile.content
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, data in hostile.content.items():
            link, _arrow, target = name.partition(" -> ")
            if target:
                (Path(folder) / link).symlink_to(target)
            else:
                (Path(folder) / name).write_bytes(data)
        yield Path(folder) / "DICOMDIR"


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
