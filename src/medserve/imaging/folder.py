"""A folder, or the DICOMDIR of one, becomes the plain files in it: no link is followed, nothing outside is opened."""

import os
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable, InvalidRequest
from medserve.imaging.material import check_count, content, natural
from medserve.settings import Limits

DEPTH = 16
"""Folders within folders that are walked through; PACS exports have four."""
DICOMDIR_BYTES = 16 * 2**20
RECORDS_PER_FILE = 3
"""Sequence items of a DICOMDIR that there may be for every file it may name: patients, studies, series, icons."""

_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_ITEM = b"\xfe\xff\x00\xe0"
_COMPONENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def paths(folder: Path, limits: Limits) -> list[Path]:
    """The plain files below a folder, in the order of their names, numbers by value."""
    found: list[Path] = []
    for path in _walk(folder, DEPTH):
        found.append(path)
        check_count(len(found), limits)
    return sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix()))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InvalidRequest(f"a folder cannot be read: {error.strerror}", param="files") from None
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            if not depth:
                raise ImageTooLarge(f"the folder is more than {DEPTH} folders deep; send one series", param="files")
            yield from _walk(Path(entry.path), depth - 1)


def is_dicomdir(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a DICOMDIR: it names other files and holds no picture."""
    return (
        head[128:132] == b"DICM" and re.search(re.escape(_DIRECTORY_CLASS) + rb"(?![.\d])", head[132:1024]) is not None
    )


def listed(dicomdir: Path, limits: Limits) -> list[Path]:
    """The files that a DICOMDIR refers to and that lie in its folder, each once, in its order.

    Its records are read as the flat list that they are stored as. The offsets by which one points to the next are
    ignored, so that no loop of them can matter. A reference that leaves the folder, by `..` or by a link, is refused.
    """
    root = dicomdir.parent.resolve()
    found: dict[Path, None] = {}
    data = content(dicomdir, DICOMDIR_BYTES)
    check_count(data.count(_ITEM) // RECORDS_PER_FILE, limits)  # before the parser makes an object of each
    for reference in _references(data):
        path = _within(root, reference)
        if path is not None:
            found[path] = None
            check_count(len(found), limits)
    if not found:
        raise ImageUnreadable(
            "none of the files that the DICOMDIR lists is there; send the whole folder", param="files"
        )
    return list(found)


def _references(data: bytes) -> Iterator[list[str]]:
    from pydicom import dcmread
    from pydicom.multival import MultiValue

    try:
        dataset = dcmread(BytesIO(data), force=True, specific_tags=["DirectoryRecordSequence"])
        for record in dataset.get("DirectoryRecordSequence") or ():
            named = record.get("ReferencedFileID")
            if named:
                yield [str(part) for part in (named if isinstance(named, MultiValue | list) else [named])]
    except ImageError:
        raise
    except Exception:  # a parser of hostile bytes has no closed list of errors
        raise ImageUnreadable(
            "the DICOMDIR is damaged; send the folder with its files instead", param="files"
        ) from None


def _within(root: Path, reference: list[str]) -> Path | None:
    """The file that is meant, or None if there is none; file systems differ in how they spell a DICOMDIR's capitals."""
    if not all(_COMPONENT.fullmatch(part) and part.strip(".") for part in reference):
        raise ImageUnreadable("the DICOMDIR refers to files outside its folder", param="files")
    for parts in (reference, [part.lower() for part in reference]):
        path = root.joinpath(*parts)
        if path.is_file():
            if path.resolve() != path:
                raise ImageUnreadable("the DICOMDIR refers to files outside its folder", param="files")
            return path
    return None
