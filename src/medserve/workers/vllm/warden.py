"""A process that was told of a family ends it when this one ends, however sudden that end is."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path


class Warden:
    """A fork of this process that waits for its end, and then ends the group that it was told of.

    It has no threads, no files but one end of a pipe, and a session of its own. It is made before there are any
    threads, which a fork would not have.
    """

    def __init__(self, directory: Path) -> None:
        read, self._write = os.pipe()
        if os.fork():
            os.close(read)
            return
        with suppress(BaseException):  # nothing of this process's work may go on in the fork
            os.setsid()
            _close_all_but(read)
            _wait_and_end(read, directory)
        os._exit(0)

    def guard(self, group: int) -> None:
        """From now on this group of processes must not outlive this process."""
        os.write(self._write, b"%d\n" % group)

    def dismiss(self) -> None:
        """It is not needed any more: the group has ended."""
        with suppress(OSError):
            os.write(self._write, b"0\n")
            os.close(self._write)


def signal_group(group: int, which: signal.Signals) -> None:
    """Send it to all of a group, if any of it is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)


def _close_all_but(kept: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _wait_and_end(pipe: int, directory: Path) -> None:
    said = b""
    while piece := os.read(pipe, 64):
        said += piece
    group = int((said.split() or [b"0"])[-1])
    if group:
        signal_group(group, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
