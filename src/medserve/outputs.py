"""Where something is to be written is tried before the work whose outcome it will hold, which may take hours."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

from medserve.errors import InvalidRequest


def try_folder(folder: Path, mode: int = 0o777) -> Path:
    """See to it that there is a folder, and that a file can be made in it; raises OSError where none can.

    `mode` is that of a folder that was not there. No file is left behind.
    """
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        return folder


def try_file(file: Path) -> None:
    """Find out whether a file can be written, and leave everything as it is; raises OSError where it cannot.

    Pipes and devices are not opened: whoever reads at the other end would take that for all that comes.
    """
    try:
        file.stat()
    except FileNotFoundError:
        there = file.resolve()  # a link that leads to nothing yet stays
        there.open("xb").close()
        there.unlink()
        return
    if file.is_file() or file.is_dir():
        file.open("ab").close()
    elif not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def kept_in(home: Path, what: str) -> Path:
    """The folder called `what` in the settings' home, for this user only; raises InvalidRequest where none can be."""
    try:
        return try_folder(home / what, 0o700)
    except OSError as error:
        raise InvalidRequest(
            f"{what} cannot be kept in MEDSERVE_HOME: {error.strerror}; make it writable, or set MEDSERVE_HOME to a "
            "folder that is",
            param="home",
        ) from None
