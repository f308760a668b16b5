"""A folder of pictures and what is known of them: only plain files of that very folder are ever named or opened.

What is known stands in a CSV file beside the pictures, in the columns `Image`, `Dx` and `Lesion attributes`: the name
of a picture, with or without its ending, the code of its diagnosis, and words. Everything here blocks.
"""

import csv
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath
from typing import BinaryIO

from medserve.errors import ImageTooLarge, UnknownPicture
from medserve.imaging.material import HEAD, natural

CSV_BYTES = 16 * 2**20
"""More than this of a CSV file is not read; a row of a hundred thousand pictures has about a hundred bytes."""
UNKNOWN = "UNK"
"""The code of a picture of which no diagnosis is known."""

_KINDS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
"""How Python shows a byte of a name that is not UTF-8."""
_NOFOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def media_type(head: bytes) -> str | None:
    """The media type of a picture that begins with these bytes; None for anything else, SVG and HTML among it."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in _KINDS.items() if head.startswith(mark)), None)


@dataclass(frozen=True)
class Known:
    """What is known of one picture: the code of its diagnosis in capitals, or `UNK`, and words."""

    code: str = UNKNOWN
    attributes: str = ""


@dataclass(frozen=True)
class Labels:
    """What a CSV file says: its rows by name of picture, how many there were, and how many came again.

    Of rows for one picture the first is kept. `problem` says why there are none.
    """

    rows: Mapping[str, Known]
    read: int = 0
    duplicates: int = 0
    problem: str = ""

    def of(self, name: str) -> Known:
        """What is known of a file, by its whole name or by its name without the ending."""
        return self.rows.get(name) or self.rows.get(PurePath(name).stem) or Known()

    def names(self, file: str) -> set[str]:
        """The names under which the rows may know a file."""
        return {file, PurePath(file).stem} & self.rows.keys()


class Catalogue:
    """The pictures of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """The files that are there and are pictures, in the order that people mean; links and subfolders are not."""
        return sorted((name for name in self._files() if self._is_picture(name)), key=natural)

    def picture(self, name: str, most: int) -> tuple[bytes, str]:
        """A picture's content and its media type; raises UnknownPicture, or ImageTooLarge beyond `most` bytes."""
        with self._opened(name) as file:
            data = file.read(most + 1)
        kind = media_type(data[:HEAD])
        if kind is None:
            raise unknown()
        if len(data) > most:
            raise ImageTooLarge(
                f"the picture has more than {most} bytes; raise limits.image_bytes to show it", param="filename"
            )
        return data, kind

    def labels(self) -> Labels:
        """What the first CSV file with a column `Image` says of the pictures; nothing where there is none."""
        found = [self._labels_in(name) for name in sorted(self._files()) if name.lower().endswith(".csv")]
        told = next((labels for labels in found if not labels.problem), None)
        return told or next(iter(found), Labels({}, problem="the folder holds no CSV file"))

    def _files(self) -> list[str]:
        """The names of plain files; one that is no Unicode cannot be told in JSON, nor asked for, and is left out."""
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError:
            raise UnknownPicture("the catalogue's folder cannot be read; mend the setting `catalogue`") from None
        return [name for name in names if not _SURROGATE.search(name)]

    def _is_picture(self, name: str) -> bool:
        with suppress(UnknownPicture), self._opened(name) as file:
            return media_type(file.read(HEAD)) is not None
        return False

    def _labels_in(self, name: str) -> Labels:
        try:
            with self._opened(name) as file:
                data = file.read(CSV_BYTES + 1)
            if len(data) > CSV_BYTES:
                return Labels({}, problem=f"the CSV file has more than {CSV_BYTES} bytes")
            return parsed(data.decode("utf-8-sig"))
        except UnknownPicture:
            return Labels({}, problem="the CSV file is no plain file")
        except UnicodeDecodeError:
            return Labels({}, problem="the CSV file is not UTF-8")

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """A plain file that lies in the folder itself; a name with a path in it, a link or a device is not known.

        It is opened relative to the folder and without following a link, so that nothing can be exchanged in between.
        """
        if not name or "\0" in name or name.startswith(".") or {"/", "\\"} & set(name):
            raise unknown()
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                descriptor = os.open(name, _NOFOLLOW, dir_fd=folder)
            finally:
                os.close(folder)
        except (OSError, ValueError):  # ValueError: a name that no file system can spell
            raise unknown() from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise unknown()
        with os.fdopen(descriptor, "rb") as file:
            yield file


def parsed(text: str) -> Labels:
    """The rows of a CSV text; names of columns and cells lose the white space around them."""
    try:
        rows = list(csv.reader(StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error:
        return Labels({}, problem="the CSV file is broken")
    places = {column.strip().casefold(): place for place, column in enumerate(rows[0] if rows else ())}
    if "image" not in places:
        return Labels({}, problem="the CSV file has no column named Image")
    found: dict[str, Known] = {}
    duplicates = 0
    for row in rows[1:]:
        name, code, words = (_cell(row, places.get(column)) for column in ("image", "dx", "lesion attributes"))
        if name in found:
            duplicates += 1
        elif name:
            found[name] = Known(code.upper() or UNKNOWN, words)
    return Labels(found, len(found) + duplicates, duplicates)


def unknown() -> UnknownPicture:
    """The refusal of a name that is none of the catalogue's; it does not say what else there is."""
    return UnknownPicture("the catalogue has no such picture; GET /api/list-images names all", param="filename")


def _cell(row: list[str], place: int | None) -> str:
    return row[place].strip() if place is not None and place < len(row) else ""
