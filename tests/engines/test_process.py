"""The supervisor of workers, with small children that behave badly in known ways."""

import errno
import os
from pathlib import Path
from time import process_time

import pytest

from medserve import machine, process, scratch
from medserve.errors import MemoryShort, ModelFailed, WeightsCorrupt
from medserve.process import Child, Progress
from tests.loops import watched

pytestmark = pytest.mark.anyio

GOOD = "import json, sys; json.loads(sys.stdin.readline()); print(json.dumps({'ready': {'a': 1}}), flush=True);"
WAITS = "sys.stdin.read()"


async def child(folder: Path, code: str, seconds: float = 10) -> Child:
    (folder / "naughty.py").write_text(code)
    paths = os.pathsep.join([str(folder), str(process.HERE)])
    return await Child.start("naughty", {"what": "ever"}, seconds=seconds, environment={"PYTHONPATH": paths})


async def test_a_child_that_is_ready_gives_its_facts(tmp_path: Path) -> None:
    """Its facts arrive, it lives until it is stopped, and then it has ended well."""
    worker = await child(tmp_path, GOOD + WAITS)

    assert worker.facts == {"a": 1}
    assert worker.alive
    await worker.stop()
    assert not worker.alive
    assert await worker.ended() == 0
    assert not worker.directory.exists()


async def test_a_temporary_directory_with_a_long_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket could not lie in it, and the worker's own words for that help nobody."""
    long = tmp_path / ("a" * 90)
    long.mkdir()
    monkeypatch.setattr(scratch, "folder", lambda: long)

    with pytest.raises(ModelFailed, match="TMPDIR"):
        await child(tmp_path, GOOD + WAITS)
    assert not long.exists()


async def test_a_directory_that_takes_long_to_make_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one that a process makes comes after all that killed ones left: gigabytes, perhaps."""
    usual = scratch.folder
    took = 0.0

    def slow() -> Path:
        nonlocal took
        began = process_time()
        for _ in range(10_000_000):
            pass
        took = process_time() - began
        return usual()

    monkeypatch.setattr(scratch, "folder", slow)
    async with watched() as holds:
        worker = await child(tmp_path, GOOD + WAITS)
    await worker.stop()

    assert 0 < holds.longest < took / 2


@pytest.mark.parametrize("printed", ["a notice", "3", "[]", "{}"])
async def test_what_a_package_prints_before_the_child_begins_is_passed_over(tmp_path: Path, printed: str) -> None:
    """An interpreter of the operator's choice may greet."""
    worker = await child(tmp_path, f"print({printed!r}, flush=True);" + GOOD + WAITS)
    await worker.stop()

    assert {"a": 1} == worker.facts


async def test_a_temporary_directory_without_room_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its disk is full: no worker can have its socket there."""

    def full() -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scratch, "folder", full)

    with pytest.raises(ModelFailed, match=r"No space left on device; make room in it, or set TMPDIR"):
        await child(tmp_path, GOOD + WAITS)


async def test_a_child_that_will_not_go_is_made_to(tmp_path: Path) -> None:
    """A child that ignores the end of its input is killed after the grace."""
    worker = await child(tmp_path, GOOD + "import time; time.sleep(60)")

    await worker.stop(grace=0.05)

    assert worker.obituary() == "was ended by signal 9"


async def test_a_child_that_talks_without_end_is_not_held_up(tmp_path: Path) -> None:
    """More output on standard error than a pipe holds neither blocks the child nor fills the parent."""
    worker = await child(tmp_path, "import sys\nsys.stderr.write('noise\\n' * 100_000)\n" + GOOD + WAITS)

    assert worker.alive
    await worker.stop()


async def test_a_child_that_dies_while_loading_leaves_its_last_words(tmp_path: Path) -> None:
    """The error has the child's own reason, without the directories of this machine."""
    with pytest.raises(
        ModelFailed, match=r"ended with status 1 while it loaded .*RuntimeError: no memory for model\.bin"
    ):
        await child(tmp_path, "raise RuntimeError('no memory for /srv/secret/model.bin')")


async def test_a_child_that_is_killed_while_loading(tmp_path: Path) -> None:
    """The signal is named, and what sends it where no person did."""
    with pytest.raises(ModelFailed, match=r"was ended by signal 9 while it loaded; .* short of memory"):
        await child(tmp_path, "import os; os.kill(os.getpid(), 9)")


async def test_a_python_that_is_none(tmp_path: Path) -> None:
    """The setting is named, and no path."""
    with pytest.raises(ModelFailed, match=r"`python` cannot be run; check the setting") as failed:
        await Child.start("naughty", {}, seconds=5.0, python=tmp_path / "none")

    assert "python" == failed.value.param
    assert str(tmp_path) not in failed.value.message


async def test_a_child_that_never_gets_ready(tmp_path: Path) -> None:
    """Waiting has an end."""
    with pytest.raises(ModelFailed, match=r"not loaded within 0\.2 seconds"):
        await child(tmp_path, "import time; time.sleep(60)", seconds=0.2)


class Onlooker:
    """Notes what a load tells, and gives as much room as it was told to."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.told: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    async def make_room(self, memory_bytes: int) -> None:
        if memory_bytes > self.room:
            raise MemoryShort("no room")
        self.room -= memory_bytes


SAYS = """
import json, os, sys, time
def say(**what): print(json.dumps(what), flush=True)
sys.stdin.readline()
"""


async def test_a_load_is_followed_by_what_it_says_and_by_what_it_reads(tmp_path: Path) -> None:
    """A share that the child knows is told as it is; one that it cannot know is measured while it reads."""
    if machine.bytes_read(os.getpid()) is None:
        pytest.skip("this system does not tell what a process has read")
    (tmp_path / "weights").write_bytes(bytes(1000_000))
    reading = f"""
say(progress=dict(stage='thinking', done=0.25))
time.sleep(0.1)
file = open({str(tmp_path / "weights")!r}, 'rb', buffering=0)
say(progress=dict(stage='reading', reads=1000_000))
time.sleep(0.6)
file.read(500_000); time.sleep(0.6); file.read(500_000); time.sleep(0.6)
say(ready={{}})
sys.stdin.read()
"""
    onlooker = Onlooker()
    process.ONLOOKER.set(onlooker)
    worker = await child(tmp_path, SAYS + reading)
    await worker.stop()

    assert Progress("thinking", 0.25) == onlooker.told[0]
    shares = [progress.done for progress in onlooker.told if progress.stage == "reading" and progress.done is not None]
    assert sorted(shares) == shares
    assert [0.0, 0.5, 1.0] == list(dict.fromkeys(round(share, 2) for share in shares))


NEEDS = SAYS + "say(need=dict(memory_bytes=700)); sys.stdin.readline(); say(ready={'went': 'on'}); sys.stdin.read()"


async def test_a_child_waits_until_it_may_take_memory(tmp_path: Path) -> None:
    """It goes on when there is room, which is asked for once."""
    onlooker = Onlooker(1000)
    process.ONLOOKER.set(onlooker)
    worker = await child(tmp_path, NEEDS)
    await worker.stop()

    assert ({"went": "on"}, 300) == (worker.facts, onlooker.room)


async def test_a_child_that_finds_no_room_is_ended(tmp_path: Path) -> None:
    """Before it has taken any; the refusal is passed on as it is."""
    process.ONLOOKER.set(Onlooker(100))

    with pytest.raises(MemoryShort, match="no room"):
        await child(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n" + NEEDS)

    assert machine.use_of(int((tmp_path / "pid").read_text())) is None


async def test_without_an_onlooker_there_is_room_for_all(tmp_path: Path) -> None:
    """An engine that is started by itself, as by a test, asks nobody."""
    process.ONLOOKER.set(None)
    worker = await child(tmp_path, NEEDS)
    await worker.stop()

    assert {"went": "on"} == worker.facts


@pytest.mark.parametrize(("code", "kind"), [("weights_corrupt", WeightsCorrupt), ("of_another_kind", ModelFailed)])
def test_codes_become_the_errors_they_name(code: str, kind: type[ModelFailed]) -> None:
    """A child's error has the same type as if it had been raised here."""
    assert type(process.failure(code, "why")) is kind
