"""Ten times more requests than can be answered: each caller is told at once where it stands, and nothing is lost."""

from pathlib import Path
from statistics import median

import pytest

from benchmarks.overload import Overload, overload, port_of, service

SECONDS = 5.0


@pytest.fixture(scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> Overload:
    folder: Path = tmp_path_factory.mktemp("overload")
    with service(folder) as running:
        return await overload(port_of(running), times=10.0, seconds=SECONDS, measured=1.0)


async def test_everybody_is_answered_or_told_when_to_come_again(seen: Overload) -> None:
    """200, 429 and 503, the latter two with Retry-After, and nothing else; not one request without an answer."""
    assert round(seen.rate * SECONDS) == len(seen.replies)
    assert [] == [(reply.status, reply.headers) for reply in seen.rest]
    assert {200, 429} <= seen.statuses.keys()


async def test_probes_are_answered_meanwhile(seen: Overload) -> None:
    """In far less than 50 ms as a rule; on a machine that does much else, single ones may come later."""
    assert len(seen.probes) > SECONDS * 4
    assert {200} == {probe.status for probe in seen.probes}
    assert median(probe.seconds for probe in seen.probes) < 0.05


async def test_nothing_is_lost(seen: Overload) -> None:
    """Every place is free again, and the next question is answered."""
    assert (0, 200) == (seen.left, seen.after)
