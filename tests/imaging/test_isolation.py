"""The promises of decoding apart: whatever a file does to its decoder, the caller gets a typed error and goes on."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from structlog.testing import capture_logs

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Modality
from medserve.imaging import isolation, raster
from medserve.imaging.isolation import Decoders
from medserve.imaging.material import DEFAULT, Wanted
from medserve.settings import Limits
from tests.imaging import phantoms

ROOT = Path(__file__).parents[2]
LIMITS = Limits()
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def png(shade: int = 90) -> bytes:
    out = BytesIO()
    PIL.Image.new("RGB", (20, 16), (shade, 20, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """A pool of one child whose reader does what its file says, and gives up after three seconds."""
    monkeypatch.setattr(isolation, "MODULE", "tests.imaging.misbehaving")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pool = Decoders(1, seconds=3.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    pool = Decoders(1)
    yield pool
    pool.close()


def test_a_picture_is_the_same_as_if_it_had_been_decoded_here(pool: Decoders, dermoscopy: Path) -> None:
    """Pixels, facts and identity cross the border unchanged."""
    here = raster.decode(dermoscopy.read_bytes(), LIMITS)
    study = pool.read([dermoscopy.read_bytes()], LIMITS, DEFAULT).study

    assert (here,) == study.images
    assert here.source == study.images[0].source
    assert np.array_equal(here.pixels, study.images[0].pixels)


def test_voxels_that_nobody_measures_stay_where_they_were_decoded(pool: Decoders) -> None:
    """A series may have a gigabyte of them; whoever only shows its pictures need not hold it."""
    files = phantoms.series(phantoms.abdomen())
    whole = pool.read(files, LIMITS, Wanted(Modality.CT)).study
    shown = pool.read(files, LIMITS, Wanted(Modality.CT, volume=False)).study

    assert whole.volume is not None
    assert shown.volume is None
    assert (whole.sha256, whole.spacing, whole.labels) == (shown.sha256, shown.spacing, shown.labels)


def test_a_child_is_started_once_and_kept(pool: Decoders) -> None:
    """The second file does not wait for a process to start."""
    pool.read([png()], LIMITS, DEFAULT)
    first = pool.pids()
    pool.read([png()], LIMITS, DEFAULT)

    assert 1 == len(first)
    assert first == pool.pids()


def test_callers_at_once_each_get_their_own_picture() -> None:
    """Two children serve many callers, and no answer goes to another, not even beside crashes and refusals."""
    pool = Decoders(2)

    def shade(number: int) -> int:
        with suppress(ImageUnreadable):
            pool.read([b"no picture"], LIMITS, DEFAULT)
        return int(pool.read([png(number)], LIMITS, DEFAULT).study.images[0].pixels[0, 0, 0])

    with ThreadPoolExecutor(8) as callers:
        assert list(range(200)) == list(callers.map(shade, range(200)))
    assert 2 == len(pool.pids())
    pool.close()


def test_a_refusal_keeps_its_type_and_field(pool: Decoders) -> None:
    """What the decoder refuses is refused in the same words here, and the child stays."""
    before = pool.pids()

    with pytest.raises(ImageUnreadable, match="empty") as caught:
        pool.read([b""], LIMITS, DEFAULT)
    assert "files" == caught.value.param
    assert before == pool.pids()


def test_the_callers_limits_hold_in_the_child(pool: Decoders) -> None:
    """Limits travel with each order."""
    with pytest.raises(ImageTooLarge, match="at most 100 are read"):
        pool.read([png()], Limits(image_pixels=100), DEFAULT)


@pytest.mark.parametrize(
    ("order", "words"), [(b"CRASH", "crashed on this file .*signal 6"), (b"HANG", "longer than 3 s")]
)
def test_a_crash_or_a_hang_costs_one_refusal(misbehaving: Decoders, order: bytes, words: str) -> None:
    """The file is refused, the child replaced, and the next file read."""
    with pytest.raises(ImageUnreadable, match=words):
        misbehaving.read([order], LIMITS, DEFAULT)

    assert 1 == misbehaving.replaced
    assert 20 == misbehaving.read([png()], LIMITS, DEFAULT).study.images[0].width


@linux
def test_too_much_memory_is_refused_and_the_child_goes_on(misbehaving: Decoders) -> None:
    """The system's limit makes greed an error and not a swapping machine."""
    with pytest.raises(ImageTooLarge, match="not enough memory"):
        misbehaving.read([b"EAT"], LIMITS, DEFAULT)

    assert 0 == misbehaving.replaced


@linux
def test_a_child_that_has_grown_is_replaced(misbehaving: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a decoder keeps comes back."""
    monkeypatch.setattr(isolation, "GROWN", 150 * 2**20)
    misbehaving.read([b"GROW"], LIMITS, DEFAULT)

    assert 1 == misbehaving.replaced
    assert () == misbehaving.pids()


def test_a_reply_that_makes_no_sense_is_not_believed(misbehaving: Decoders) -> None:
    """A decoder that a file has taken over cannot hand over what is no study."""
    with pytest.raises(ImageUnreadable, match="made no sense"):
        misbehaving.read([b"LIE"], LIMITS, DEFAULT)

    assert 1 == misbehaving.replaced


def test_an_unforeseen_error_is_typed_and_logged_by_its_place_only(misbehaving: Decoders) -> None:
    """Words of an exception may quote the file: neither the answer nor the log holds them."""
    with capture_logs() as logs, pytest.raises(ImageUnreadable) as caught:
        misbehaving.read([b"RAISE"], LIMITS, DEFAULT)

    assert "PLANTED" not in caught.value.message + str(logs)
    assert "ZeroDivisionError" in logs[0]["where"]


def test_a_panic_costs_no_child(misbehaving: Decoders) -> None:
    """Decoders written in Rust throw what is no Exception."""
    with pytest.raises(ImageUnreadable, match="damaged"):
        misbehaving.read([b"PANIC"], LIMITS, DEFAULT)

    assert 0 == misbehaving.replaced


def test_a_child_that_was_killed_while_idle_is_not_missed(pool: Decoders) -> None:
    """The next file starts another and no caller notices."""
    pool.read([png()], LIMITS, DEFAULT)
    os.kill(pool.pids()[0], signal.SIGKILL)
    time.sleep(0.1)

    assert 16 == pool.read([png()], LIMITS, DEFAULT).study.images[0].height


@pytest.mark.parametrize("order", [b"", b"HANG"])
def test_children_end_with_a_parent_that_is_killed(order: bytes, tmp_path: Path) -> None:
    """Even a child that hangs in native code, holding Python's lock, does not outlive its parent."""
    program = f"""
import threading, time
from medserve.imaging import isolation
from medserve.imaging.material import DEFAULT
from medserve.settings import Limits
isolation.MODULE = "tests.imaging.misbehaving"
pool = isolation.Decoders(1, seconds=60)
pool.read([b"READY"], Limits(), DEFAULT)
print(pool.pids()[0], flush=True)
if {order!r}:
    threading.Thread(target=lambda: pool.read([{order!r}], Limits(), DEFAULT)).start()
    time.sleep(0.5)
print("go", flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.stdout.readline()
        parent.kill()

    assert _ends(child)


def _ends(pid: int) -> bool:
    for _time in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_no_secret_of_the_environment_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child inherits is a short list."""
    monkeypatch.setenv("MEDSERVE_KEYS", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert "secret" not in isolation._environment("/folder").values()


def test_time_is_given_in_proportion_to_bytes(tmp_path: Path) -> None:
    """A small file cannot hold a caller for five seconds; a folder may take the longest."""
    assert 4.5 == isolation.budget([b"x" * 1000])
    assert 4.5 < isolation.budget([bytes(isolation.SMALL + 2_000_000)]) == 5.5
    assert isolation.MOST_SECONDS == isolation.budget([tmp_path])


def landlock() -> int:
    """The version of Landlock that the kernel offers, 0 for none: asked here, so that what confines cannot answer."""
    create_ruleset, version = 444, 1  # linux/landlock.h
    return max(0, int(ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), ctypes.c_uint32(version))))


@linux
@pytest.mark.skipif(sys.platform == "linux" and not landlock(), reason="this kernel has no Landlock")
def test_a_confined_process_can_only_read(tmp_path: Path) -> None:
    """Writing, running programs, connecting and signalling fail; links in its own folder do not."""
    program = f"""
import os, socket
from pathlib import Path
from medserve.workers.confinement import confine
folder = Path({str(tmp_path)!r})
confine(folder)
for name, deed in (
    ("read", lambda: (folder / "there").read_text()),
    ("link", lambda: (folder / "link").symlink_to("there")),
    ("write", lambda: (folder / "new").write_text("x")),
    ("change", lambda: (folder / "there").write_text("x")),
    ("outside", lambda: (folder.parent / "link").symlink_to("there")),
    ("run", lambda: os.execv("/bin/true", ["true"])),
    ("connect", lambda: socket.create_connection(("127.0.0.1", 9))),
):
    try:
        deed()
        print(name, "done")
    except OSError as error:
        print(name, type(error).__name__)
"""
    (tmp_path / "there").write_text("x")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    outcomes = dict(line.split() for line in said.stdout.splitlines())

    assert {"read": "done", "link": "done"} == {name: how for name, how in outcomes.items() if how == "done"}
    assert "PermissionError" == outcomes["write"] == outcomes["change"] == outcomes["outside"] == outcomes["run"]


@pytest.mark.parametrize(("load", "times"), [(0.0, 1.0), (2.0, 1.0), (5.0, 2.5), (100.0, 4.0)])
def test_a_crowded_machine_gets_more_time(load: float, times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound file is not called damaged because two cores have five programs to run."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    assert times == isolation.crowding()


@pytest.mark.usefixtures("misbehaving")
async def test_callers_who_leave_do_not_pile_up_behind_a_slow_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may hang up and come again as often as he likes: no more threads wait than there are decoders."""
    slow = Decoders(1, seconds=0.5)
    monkeypatch.setattr(isolation, "decoders", lambda: slow)
    before = threading.active_count()
    readings = []
    for _ in range(8):
        readings.append(asyncio.create_task(isolation.read([b"HANG"], LIMITS, DEFAULT)))
        await asyncio.sleep(0.05)
        readings[-1].cancel()
        await asyncio.sleep(0.05)

    assert threading.active_count() - before <= isolation.CHILDREN
    ended = await asyncio.gather(*readings, return_exceptions=True)
    slow.close()
    assert {asyncio.CancelledError} == set(map(type, ended))
