"""What people hand over to be read: bytes or paths, and what they want to see of it; nothing here looks inside."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from medserve.errors import ImageTooLarge, ImageUnreadable, InvalidRequest
from medserve.generation import within
from medserve.images import Modality
from medserve.settings import Limits

Material = bytes | Path
"""One thing handed over: the content of a file, or the path of a file or folder on this machine."""

_DIGITS = re.compile(r"([0-9]{1,18})")

HEAD = 4096
"""Bytes from which a format is told."""


@dataclass(frozen=True)
class Wanted:
    """What the sender knows or would like; a format takes what concerns it, and the rest says nothing about it.

    `modality` is for files that do not say how they were made: pictures and NIfTI. Of a slide, at most `patches` are
    taken at `magnification` (0: 10, or what the slide has where that is less) and drawn with `seed`, so that the same
    order brings the same ones; `mpp`, micrometres a pixel, replaces what the slide says (0: as it says). Without
    `volume` the voxels of a series, up to a gigabyte, stay with the decoder and its pictures alone are handed over.
    """

    modality: Modality | None = None
    patches: int = 125
    magnification: float = 0.0
    seed: int = 0
    mpp: float = 0.0
    volume: bool = True

    def __post_init__(self) -> None:
        within("patches", self.patches, 1, 125)
        within("seed", self.seed, 0, 2**32 - 1)
        if self.magnification:
            within("magnification", self.magnification, 0.1, 100)
        if self.mpp:
            within("mpp", self.mpp, 0.01, 1000)


DEFAULT = Wanted()


@dataclass(frozen=True)
class File:
    """One file that was found: its content `data`, or the `path` from which it can be read, or both.

    `name` serves to put files in order and is never opened, shown or kept. `chosen` says that somebody named this very
    file, so that it must be read, and not just found it in a folder or an archive.
    """

    head: bytes
    data: bytes | None
    path: Path | None = None
    name: str = ""
    chosen: bool = True

    @classmethod
    def of(cls, data: bytes, name: str = "", *, path: Path | None = None, chosen: bool = True) -> "File":
        """A file whose content is at hand; `path` leads to the same content where a reader insists on one."""
        return cls(data[:HEAD], data, path, name, chosen)

    @classmethod
    def at(cls, path: Path, *, chosen: bool = True) -> "File":
        """A file of this machine, of which only the head is read yet."""
        return cls(head(path), None, path, path.name, chosen)

    def content(self, most: int, setting: str = "") -> bytes:
        """All of the file; raises ImageTooLarge, which names `setting`, when it has more than `most` bytes."""
        if self.data is None and self.path is not None:
            return content(self.path, most, setting)
        data = self.data or b""
        if len(data) > most:
            raise _too_large(most, setting)
        return data


def total_limit(limits: Limits) -> int:
    """Bytes that the files of one study may have together, unpacked."""
    return 4 * limits.body_bytes


def is_folder(path: Path) -> bool:
    """Whether it is a folder; what the system does not tell of (too long a name, a closed folder) fails when opened."""
    return os.path.isdir(path)  # noqa: PTH112 - Path's own may raise


def opened(path: Path) -> int:
    """An open descriptor of a plain file; whatever else has that name (a pipe, a device) is never waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"a file cannot be read: {error.strerror}", param="files") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidRequest("only plain files and folders are read, no devices or pipes", param="files")
    return descriptor


def content(path: Path, most: int, setting: str = "") -> bytes:
    """All of a plain file; raises ImageTooLarge, which names `setting`, when it has more than `most` bytes."""
    with open(opened(path), "rb") as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise ImageUnreadable(f"a file cannot be read: {error.strerror}", param="files") from None
    if len(data) > most:
        raise _too_large(most, setting)
    return data


def _too_large(most: int, setting: str) -> ImageTooLarge:
    remedy = f"; raise {setting} to read it" if setting else ""
    return ImageTooLarge(f"a file has more than {most} bytes, the most that is read of one{remedy}", param="files")


def head(path: Path) -> bytes:
    """The beginning of a plain file."""
    with open(opened(path), "rb") as file:
        return file.read(HEAD)


def check_count(count: int, limits: Limits) -> None:
    """Refuse more files than one study may have."""
    if count > most_files(limits):
        raise ImageTooLarge(f"there are more than {most_files(limits)} files; send one series", param="files")


def most_files(limits: Limits) -> int:
    """Files that are looked at for one study: slices of a long series, and what else lies beside them."""
    return 4 * limits.image_frames


def natural(name: str) -> list[str | int]:
    """A key that puts names in the order people mean: slice-2 before slice-10. Texts and numbers take turns in it."""
    return [int(part) if place % 2 else part for place, part in enumerate(_DIGITS.split(name))]
