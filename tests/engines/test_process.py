"""The supervisor of workers, with small children that behave badly in known ways."""

import os
from pathlib import Path

import pytest

from medserve import process
from medserve.errors import ModelFailed, WeightsCorrupt
from medserve.process import Child

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
    """The signal is named."""
    with pytest.raises(ModelFailed, match="was ended by signal 9 while it loaded"):
        await child(tmp_path, "import os; os.kill(os.getpid(), 9)")


async def test_a_child_that_never_gets_ready(tmp_path: Path) -> None:
    """Waiting has an end."""
    with pytest.raises(ModelFailed, match=r"not loaded within 0\.2 seconds"):
        await child(tmp_path, "import time; time.sleep(60)", seconds=0.2)


@pytest.mark.parametrize(("code", "kind"), [("weights_corrupt", WeightsCorrupt), ("of_another_kind", ModelFailed)])
def test_codes_become_the_errors_they_name(code: str, kind: type[ModelFailed]) -> None:
    """A child's error has the same type as if it had been raised here."""
    assert type(process.failure(code, "why")) is kind
