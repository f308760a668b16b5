"""What a TIFF file declares is read and checked without decoding a pixel, however long, looped or untrue it is.

Slides are TIFF files of many gigabytes, so this reads directories from the file and never the file. A directory that
points beyond the file's end, names tiles of impossible size or has another number of tiles than its picture needs is
refused here, in Python, before native code allocates what it asks for.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable

DIRECTORIES = 64
"""Directories (levels, label, macro) that a file may have; scanners write fewer than 20."""

ENTRIES = 512
"""Tags that one directory may have; scanners write fewer than 50."""

TILE_SIDE = 8192
"""Pixels a side of a tile; scanners write 240 to 2048, and one tile is decoded whole."""

TILES = 8_000_000
"""Tiles of one level: 500,000 x 500,000 pixels in tiles of 240 x 240 are 4.3 million."""

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "Q", 6: "b", 7: "B", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_WIDTH, _HEIGHT, _DESCRIPTION = 256, 257, 270
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SUB_DIRECTORIES = 330
_NDPI = 65420
"""Hamamatsu's mark; its files keep each level as one JPEG strip with addresses of their own kind."""


@dataclass(frozen=True)
class Entry:
    """One tag: TIFF's type code, how many values, and where in the file (bytes) they begin."""

    kind: int
    count: int
    position: int


@dataclass(frozen=True)
class Directory:
    """One picture of the file: its sides in pixels, those of its tiles (0 if it is kept in strips), and its tags."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    aperio: bool
    tags: dict[int, Entry]

    @property
    def tiled(self) -> bool:
        return self.tile_width > 0 and self.tile_height > 0


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is TIFF or BigTIFF, in either byte order."""
    return head[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


class Tiff:
    """A TIFF file's directories, read from `file` on demand; `size` is the file's length in bytes.

    Raises ImageUnreadable for what cannot be, and ImageTooLarge beyond the limits of this module.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        head = self._bytes(0, 8)
        if not is_tiff(head):
            raise _broken("does not begin as TIFF")
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = head[2:4] in {b"+\0", b"\0+"}

    def directories(self) -> Iterator[Directory]:
        """The main chain of directories in the file's order. A chain that runs in a circle is refused."""
        address, seen = self._first(), set[int]()
        while address:
            if address in seen:
                raise _broken("has directories that point back at one another")
            if len(seen) == DIRECTORIES:
                raise ImageTooLarge(f"the slide has more than {DIRECTORIES} directories", param="image")
            seen.add(address)
            directory, address = self._directory(address)
            yield directory
            if _NDPI in directory.tags:  # the next address has 64 bits here, and one level is enough to know the kind
                return

    def values(self, entry: Entry, most: int) -> NDArray[np.int64]:
        """The integers of a tag, int64 [count]; refuses more than `most` of them and types that are not integers."""
        if entry.kind not in _TYPES or entry.kind == 2:
            raise _broken("has a tag of a type that does not fit")
        if entry.count > most:
            raise ImageTooLarge(f"the slide has a tag of {entry.count} values, at most {most} are read", param="image")
        kind = np.dtype(self._order + _NUMPY[_TYPES[entry.kind]])
        values = np.frombuffer(self._bytes(entry.position, entry.count * kind.itemsize), kind)
        if kind.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
            raise _broken("points beyond its end")
        return values.astype(np.int64)

    def check_tiles(self, directory: Directory) -> None:
        """Refuse a tiled directory whose tiles are too large, too many or too few, or lie beyond the file's end."""
        across, down = directory.tile_width, directory.tile_height
        if max(across, down) > TILE_SIDE:
            raise ImageTooLarge(
                f"the slide has tiles of {across} x {down} pixels, at most {TILE_SIDE} a side", param="image"
            )
        needed = -(-directory.width // across) * -(-directory.height // down)
        if needed > TILES:
            raise ImageTooLarge(f"the slide has {needed} tiles in one level, at most {TILES} are read", param="image")
        if not directory.tags.keys() >= {_TILE_OFFSETS, _TILE_BYTES}:
            raise _broken("does not say where its tiles are")
        offsets = self.values(directory.tags[_TILE_OFFSETS], TILES * 4)
        lengths = self.values(directory.tags[_TILE_BYTES], TILES * 4)
        # Planes may be kept apart, so there can be a whole multiple of the tiles.
        if len(offsets) != len(lengths) or not len(offsets) or len(offsets) % needed:
            raise _broken(f"needs {needed} tiles for its size and has {len(offsets)}")
        if int(offsets.min()) < 0 or int(lengths.min()) < 0 or int((offsets + lengths).max()) > self._size:
            raise _broken("is cut short: tiles lie beyond its end")
        # Tiles that share their bytes make a few kilobytes stand for gigapixels.
        if int(lengths.sum()) > self._size:
            raise _broken("has tiles that overlap")

    def _first(self) -> int:
        return int(self._number("Q", 8)) if self._big else int(self._number("I", 4))

    def _directory(self, address: int) -> tuple[Directory, int]:
        count = self._number("Q" if self._big else "H", address)
        if not 0 < count <= ENTRIES:
            raise _broken("has a directory without tags or with far too many")
        start, length = address + (8 if self._big else 2), 20 if self._big else 12
        table = self._bytes(start, count * length)
        tags: dict[int, Entry] = {}
        for place in range(0, len(table), length):
            tag, entry = self._entry(table[place : place + length], start + place)
            tags.setdefault(tag, entry)
        return self._picture(tags), self._number("Q" if self._big else "I", start + len(table))

    def _entry(self, raw: bytes, position: int) -> tuple[int, Entry]:
        """A tag and its entry; values that fit are kept in the entry itself, others where it points."""
        tag, kind, count = struct.unpack_from(self._order + ("HHQ" if self._big else "HHI"), raw)
        inside, room = (12, 8) if self._big else (8, 4)
        if count * struct.calcsize("=" + _TYPES.get(kind, "Q")) <= room:
            return tag, Entry(kind, count, position + inside)
        return tag, Entry(kind, count, struct.unpack_from(self._order + ("Q" if self._big else "I"), raw, inside)[0])

    def _picture(self, tags: dict[int, Entry]) -> Directory:
        width, height, across, down = (self._one(tags, tag) for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT))
        return Directory(width, height, across, down, self._is_aperio(tags), tags)

    def _one(self, tags: dict[int, Entry], tag: int) -> int:
        """The single number of a tag, 0 if it is missing."""
        return int(self.values(tags[tag], 1)[0]) if tag in tags and tags[tag].count == 1 else 0

    def _is_aperio(self, tags: dict[int, Entry]) -> bool:
        text = tags.get(_DESCRIPTION)
        return text is not None and text.count >= 6 and self._bytes(text.position, 6) == b"Aperio"

    def _number(self, kind: str, position: int) -> int:
        return int(struct.unpack(self._order + kind, self._bytes(position, struct.calcsize("=" + kind)))[0])

    def _bytes(self, position: int, length: int) -> bytes:
        if position < 0 or position + length > self._size:
            raise _broken("is cut short or points beyond its end")
        self._file.seek(position)
        data = self._file.read(length)
        if len(data) != length:
            raise _broken("is cut short")
        return data


_NUMPY = {"B": "u1", "b": "i1", "H": "u2", "I": "u4", "i": "i4", "Q": "u8", "q": "i8"}


def is_pyramid(file: BinaryIO, size: int) -> bool:
    """Whether the TIFF is a slide: tiles at two sizes at least, an Aperio file, or a Hamamatsu one. Never raises.

    An ordinary TIFF, in strips or a single tiled picture, is not. A file that is cut short is judged by what is there.
    """
    tiled = 0
    try:
        for directory in Tiff(file, size).directories():
            tiled += directory.tiled
            pyramid = tiled > 1 or (directory.tiled and (directory.aperio or _SUB_DIRECTORIES in directory.tags))
            if pyramid or _NDPI in directory.tags:
                return True
    except ImageError:
        return False
    return False


def check(file: BinaryIO, size: int) -> None:
    """Refuse a TIFF that native code should not see. Raises ImageUnreadable or ImageTooLarge; returns nothing."""
    tiff = Tiff(file, size)
    directories = list(tiff.directories())
    if any(_NDPI in directory.tags for directory in directories):
        return
    if not any(directory.tiled for directory in directories):
        raise _broken("has no tiles; send an ordinary picture as such")
    for directory in directories:
        if directory.width <= 0 or directory.height <= 0:
            raise _broken("has a picture without pixels")
        if directory.tiled:
            tiff.check_tiles(directory)


def _broken(reason: str) -> ImageUnreadable:
    return ImageUnreadable(f"the slide {reason}; export it again from the scanner's software", param="image")
