"""What a job was given lies in a folder that only this user can read, from before it is acknowledged until it ends.

HOME/id                    names this home: jobs with files are worked on where the files lie
HOME/gateways/NAME         one locked file for each running gateway; its lock ends with the process
HOME/jobs/NAME.RANDOM/     the files of one job: 000000, 000001, ... - names of files are kept nowhere
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from medserve.database import prepared


class Vault:
    """The folders of one home, for one gateway. Everything here blocks."""

    def __init__(self, home: Path) -> None:
        self._home = prepared(home)
        self._jobs = prepared(home / "jobs")
        self._gateways = prepared(home / "gateways")
        self.home = self._identified()
        self.gateway = uuid4().hex
        self._lock = self._locked()

    def keep(self, files: Sequence[Path]) -> str:
        """Copy files into a new folder; its name. They are on disk when this returns."""
        folder = self._jobs / f"{self.gateway}.{uuid4().hex}"
        folder.mkdir(mode=0o700)
        try:
            for number, file in enumerate(files):
                _copy(file, _place(folder, number))
            _synced(folder)
            _synced(self._jobs)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder.name

    def files(self, folder: str, count: int) -> tuple[Path, ...] | None:
        """The files of a folder in their order; None when one is gone."""
        paths = tuple(_place(self._jobs / folder, number) for number in range(count))
        return paths if all(path.is_file() for path in paths) else None

    def remove(self, folder: str) -> None:
        """Remove a folder and all that lies in it."""
        shutil.rmtree(self._jobs / folder, ignore_errors=True)

    def dead(self) -> list[tuple[str, int]]:
        """Gateways of this home that are no more, each with its lock, which is now held: `forget` gives it back."""
        found = []
        for path in self._gateways.iterdir():
            if path.name != self.gateway and not path.name.startswith("."):
                with suppress(OSError):
                    found.append((path.name, _lock(path)))
        return found

    def forget(self, gateway: str, lock: int) -> None:
        """Let a gateway that is no more leave nothing behind."""
        (self._gateways / gateway).unlink(missing_ok=True)
        os.close(lock)

    def release(self, lock: int) -> None:
        """Give the lock of a dead gateway back, for another try."""
        os.close(lock)

    def left(self) -> list[str]:
        """Folders that no running gateway has made: those of them that no job names were never acknowledged."""
        folders = [path.name for path in self._jobs.iterdir()]
        running = {path.name for path in self._gateways.iterdir()}
        return [name for name in folders if name.partition(".")[0] not in running]

    def close(self) -> None:
        """This gateway is no more."""
        self.forget(self.gateway, self._lock)

    def _identified(self) -> str:
        """The name of this home, given once; of gateways that start together the first one gives it."""
        path = self._home / "id"
        if not path.exists():
            new = self._home / f".{uuid4().hex}"
            _write(new, uuid4().hex.encode())
            with suppress(FileExistsError):
                os.link(new, path)
            new.unlink()
            _synced(self._home)
        return path.read_text()

    def _locked(self) -> int:
        """This gateway's own lock, made under another name first so that nobody takes it for one that was left."""
        made = self._gateways / f".{self.gateway}"
        made.touch(0o600)
        lock = _lock(made)
        made.rename(self._gateways / self.gateway)
        return lock


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, 2**20)
        written.flush()
        os.fsync(written.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as written:
        written.write(data)
        written.flush()
        os.fsync(written.fileno())


def _synced(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _lock(path: Path) -> int:
    """An open descriptor that holds the file's lock until it is closed; raises OSError where another process does."""
    opened = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened
