"""Nothing of a patient stays on disk, not even after a process was killed without warning."""

import subprocess
import sys
from pathlib import Path

MAKES = (
    "from medserve import scratch; f = scratch.folder(); (f / 'scan').write_text('a patient'); print(f, flush=True);"
)
WAITS = "import sys; sys.stdin.read()"


def started(code: str, temporary: Path) -> subprocess.Popen[str]:
    """A process with a temporary directory of its own; its first line is the folder that it made."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(temporary), "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """And what belongs to a living one is left alone."""
    with started(MAKES + WAITS, tmp_path) as killed, started(MAKES + WAITS, tmp_path) as living:
        left, kept = folder_of(killed), folder_of(living)
        killed.kill()
        killed.wait()
        assert (left / "scan").exists()

        with started(MAKES, tmp_path) as following:
            folder_of(following)

        assert not left.parent.exists()
        assert (kept / "scan").exists()
        living.communicate("")

    assert [] == list(tmp_path.iterdir())


def test_folders_are_private(tmp_path: Path) -> None:
    """Only this user can look into them."""
    with started(MAKES + WAITS, tmp_path) as process:
        folder = folder_of(process)

        assert [0o700, 0o700] == [path.stat().st_mode & 0o777 for path in (folder, folder.parent)]


def test_a_stranger_s_link_is_not_followed(tmp_path: Path) -> None:
    """A name in a directory that all may write to can be a trap."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "medserve-trap").symlink_to(tmp_path / "precious")

    with started(MAKES, tmp_path) as process:
        folder_of(process)

    assert (tmp_path / "precious" / "file").exists()
