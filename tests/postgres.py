"""A real PostgreSQL from the distribution's packages, on a unix socket of its own, and gone when the tests are over."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.required import need
from tests.serving import until

PROGRAMS = next(
    (
        folder
        for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        if (folder / "initdb").exists()
    ),
    None,
)
MISSING = "PostgreSQL is not installed (Debian: apt install postgresql)"
START_SECONDS = 60.0


@dataclass
class Postgres:
    """Where it listens."""

    folder: Path
    names: Iterator[int] = field(default_factory=count)

    def database(self) -> str:
        """The URL of a new and empty database."""
        name = f"medserve{next(self.names)}"
        _run("createdb", "--host", str(self.folder), "--username", "medserve", name)
        return f"postgresql://medserve@/{name}?host={self.folder}"


@contextmanager
def running() -> Iterator[Postgres]:
    """A PostgreSQL that keeps what it has in a folder of its own. It refuses to run as root, so it does not."""
    need(PROGRAMS is not None, MISSING)
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a unix socket has at most 107 bytes
    _give(folder)
    data = folder / "data"
    _run("initdb", "--pgdata", str(data), "--username", "medserve", "--auth", "trust", "--encoding", "UTF8")
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        assert PROGRAMS is not None, MISSING
        server = [str(PROGRAMS / "postgres"), "-D", str(data), *options]
        process = subprocess.Popen(server, stdout=log, stderr=log, **_as_nobody())
        try:
            ready = ["pg_isready", "--host", str(folder), "--quiet"]
            assert until(lambda: _run(*ready, check=False) == 0, START_SECONDS), (folder / "log").read_text()
            yield Postgres(folder)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nobody wants the data any more
            process.wait(START_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)


def _run(program: str, *arguments: str, check: bool = True) -> int:
    assert PROGRAMS is not None, MISSING
    command = [str(PROGRAMS / program), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, cwd="/", **_as_nobody())
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.returncode


def _as_nobody() -> dict[str, Any]:
    if os.getuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(folder: Path) -> None:
    if not os.getuid():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
