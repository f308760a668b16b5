"""Folders for what must not outlive this process: patients' files above all, which lie on disk while they are read.

All folders of one process lie in one home in the system's temporary directory, and the process holds a lock on it for
as long as it lives. A home whose lock can be taken belongs to a process that was killed: the next one to start removes
it. Only homes of this user are looked at. Whoever shares the disk with another machine must not share this directory.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

PREFIX = "medserve-"
_ASKING = Lock()


def folder() -> Path:
    """A new folder that only this user can read; whoever asks for it removes it."""
    with _ASKING:
        home = _home()
        home.path.mkdir(mode=0o700, exist_ok=True)  # a zealous cleaner may have been there
        return Path(tempfile.mkdtemp(prefix="", dir=home.path))


@dataclass(frozen=True)
class _Home:
    path: Path
    lock: int


@cache
def _home() -> _Home:
    """This process's own, made when first needed, after those of processes that are no more were removed."""
    parent = Path(tempfile.gettempdir())
    for other in parent.glob(f"{PREFIX}*"):
        _remove_if_left(other)
    # Locked under another name first, so that nobody takes it for one that was left.
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    lock = _lock(made)
    assert lock is not None  # noqa: S101 - nobody else knows of it
    home = _Home(made.rename(parent / made.name.removeprefix(".")), lock)
    atexit.register(shutil.rmtree, home.path, ignore_errors=True)
    return home


def _remove_if_left(home: Path) -> None:
    with suppress(OSError):
        lock = _lock(home)
        if lock is None:
            return
        try:
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(home, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(home: Path) -> int | None:
    """An open descriptor that holds the folder's lock until it is closed; None where another process holds it."""
    opened = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened
