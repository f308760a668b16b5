"""What the machine has and a process takes is what the system itself says."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from medserve import machine

MIB = 2**20
HOLDS = "import sys; held = bytearray({size}); print('held', flush=True); sys.stdin.read()"


def test_a_process_counts_with_what_it_started() -> None:
    """A child that holds 64 MiB makes its parent heavier by as much, and lighter again when it has ended."""
    before = machine.use_of(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS.format(size=64 * MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, together = machine.use_of(child.pid), machine.use_of(os.getpid())
        child.communicate()

    assert before is not None
    assert alone is not None
    assert together is not None
    assert alone.memory_bytes >= 64 * MIB
    assert together.memory_bytes - before.memory_bytes >= 60 * MIB
    assert together.cpu_seconds >= before.cpu_seconds > 0
    assert machine.use_of(child.pid) is None


def test_what_a_process_has_read_is_counted(tmp_path: Path) -> None:
    """Ten mebibytes more after ten mebibytes of a file."""
    (tmp_path / "file").write_bytes(bytes(10 * MIB))
    before = machine.bytes_read(os.getpid())
    if before is None:
        pytest.skip("this system does not tell what a process has read")
    (tmp_path / "file").read_bytes()
    after = machine.bytes_read(os.getpid())

    assert after is not None
    assert 10 * MIB <= after - before < 11 * MIB
    assert machine.bytes_read(2**22 + 1) is None


def test_memory_is_never_more_than_the_machine_has() -> None:
    """And some of it is left."""
    assert 0 < machine.memory_total() <= psutil.virtual_memory().total
    assert 0 < machine.memory_available() <= machine.memory_total()


def group(folder: Path, **numbers: object) -> None:
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in numbers.items():
        (folder / name.replace("__", ".")).write_text(f"{number}\n")


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for control groups, with nothing in it."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def test_a_container_s_limit_is_the_memory_there_is(container: Path) -> None:
    """Version 2: the tightest limit on the way up; read files that may be forgotten are no use of memory."""
    (container / "membership").write_text("0::/pod/one\n")
    group(container / "groups" / "pod", memory__max=400 * MIB, memory__current=310 * MIB, memory__stat="anon 1")
    group(
        container / "groups" / "pod" / "one",
        memory__max=300 * MIB,
        memory__current=250 * MIB,
        memory__stat=f"anon 5\ninactive_file {100 * MIB}",
    )

    assert 300 * MIB == machine.memory_total()
    assert 90 * MIB == machine.memory_available()


def test_a_container_of_the_first_version(container: Path) -> None:
    """Its files have other names, and a number near 2^63 means that there is no limit."""
    (container / "membership").write_text("4:cpu,memory:/box\n2:pids:/box\n")
    folder = container / "groups" / "memory"
    group(folder, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
    group(
        folder / "box",
        memory__limit_in_bytes=200 * MIB,
        memory__usage_in_bytes=150 * MIB,
        memory__stat=f"total_inactive_file {30 * MIB}",
    )

    assert 200 * MIB == machine.memory_total()
    assert 80 * MIB == machine.memory_available()


def test_a_container_without_a_limit(container: Path) -> None:
    """ "max" is no number, and a system without control groups has no file at all."""
    (container / "membership").write_text("0::/\n")
    group(container / "groups", memory__max="max")
    assert psutil.virtual_memory().total == machine.memory_total()

    (container / "membership").unlink()
    assert psutil.virtual_memory().total == machine.memory_total()


@pytest.mark.parametrize(
    ("wanted", "visible"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("1,-1,0", [1]),
        ("0,7,1", [0]),
        ("GPU-b", [1]),
        ("GPU-", []),
        ("GPU-c1, 0", [2, 0]),
        ("1,1,2", [1]),
        ("NoDevFiles", []),
    ],
)
def test_only_gpus_that_cuda_would_use_are_told(wanted: str | None, visible: list[int]) -> None:
    """Numbers and beginnings of identities, up to the first that means none, two or one again."""
    assert visible == machine._visible(["GPU-a1", "GPU-b1", "GPU-c1"], wanted)


def test_a_gpu_belongs_to_who_computes_on_it() -> None:
    """A worker's child counts as the worker; a process that has ended computes nowhere."""
    gpus = [machine.Gpu(place, "a", 1, 0, 0.0, pids) for place, pids in enumerate((frozenset({1}), frozenset()))]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        mine = machine.Gpu(2, "a", 1, 0, 0.0, frozenset({child.pid}))
        found = [machine.computing([*gpus, mine], pid) for pid in (os.getpid(), child.pid)]
        child.kill()

    assert [(mine,), (mine,)] == found
    assert () == machine.computing([*gpus, mine], child.pid)


def test_there_is_a_gpu_or_a_reason() -> None:
    """Never neither, and never both."""
    found = machine.gpus()

    assert bool(found.devices) != bool(found.reason)
    for gpu in found.devices:
        assert 0 <= gpu.used_bytes <= gpu.total_bytes
        assert 0 <= gpu.utilisation <= 100


@pytest.mark.parametrize(
    ("said", "able"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse2\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f sse2\n", False),
        ("bogomips\t: 50.00\n", False),
    ],
)
def test_a_processor_tells_whether_it_computes_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, able: bool
) -> None:
    """By its flags; one that tells nothing does not."""
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    assert not machine.computes_bfloat16()
    (tmp_path / "cpuinfo").write_text(said)

    assert able == machine.computes_bfloat16()
