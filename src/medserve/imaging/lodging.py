"""Bytes whose native reader wants to open files get files in memory, made before this process gave up writing.

A confined process (`medserve.workers.confinement`) can neither make a file nor let one grow. It can write into one that
is large already, by way of memory, and punch a hole into it afterwards; both cost what is really written.
"""

import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from medserve.errors import ImageTooLarge

PLACES = 16
"""Files at once; a scanner's DICOM slide has up to ten levels. Every one of them is an open descriptor for good."""

ROOM = 2**31
"""Bytes that such a file has room for; none of them takes memory before it is written."""

_places: list[int] = []


def prepare() -> None:
    """Make the files, once, before the process gives up writing; elsewhere than on Linux there are none."""
    if sys.platform == "linux":
        for _place in range(PLACES):
            file = os.memfd_create("medserve-lodging")
            os.ftruncate(file, ROOM)
            _places.append(file)


@contextmanager
def lodged(contents: Sequence[bytes]) -> Iterator[list[Path]]:
    """A path for each of the contents, in their order, for as long as the block lasts.

    Behind the contents a file may go on with zeros: whoever reads it must know from the content where that ends. Raises
    ImageTooLarge for more contents than there are places, or too large ones.
    """
    if not _places:
        with TemporaryDirectory(prefix="medserve-lodging-") as folder:
            paths = [Path(folder) / str(number) for number in range(len(contents))]
            for path, data in zip(paths, contents, strict=True):
                path.write_bytes(data)
            yield paths
        return
    if len(contents) > PLACES or any(len(data) > ROOM for data in contents):
        raise ImageTooLarge(
            f"the slide has {len(contents)} files; up to {PLACES} of 2 GB are read from an upload or an archive, and "
            "more from a folder of this machine",
            param="files",
        )
    try:
        for file, data in zip(_places, contents, strict=False):
            with mmap.mmap(file, len(data)) as memory:
                memory.write(data)
        yield [Path(f"/dev/fd/{file}") for file in _places[: len(contents)]]
    finally:
        for file, data in zip(_places, contents, strict=False):
            with mmap.mmap(file, len(data)) as memory:
                memory.madvise(mmap.MADV_REMOVE)
