"""An archive is read in memory, entry by entry and within limits; its names are labels for sorting and never paths.

Read are zip, tar and tar.gz with plain files. What an archive says about its own sizes is not believed: bytes are
counted as they come out. Refused are links and devices, encrypted entries, archives in archives, and whatever unpacks
to more than it may. An archive that holds one of these is refused as a whole, because somebody made it that way.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO, Literal

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.imaging.material import HEAD, File, most_files, natural, total_limit
from medserve.settings import Limits

Kind = Literal["zip", "tar", "tar.gz"]

RATIO = 200
"""Times that an archive may grow by unpacking; real series grow by 2 to 20."""
UNSUSPECTED = 16 * 2**20
"""Bytes that any archive may unpack to, whatever the ratio: an empty picture compresses a thousandfold."""
PIECE = 2**20
BLOCK = 512

_ZIP_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PLAIN, _FOLDER, _ABOUT = b"0\x007", b"5", b"xgLKV"
"""Type flags of a tar: plain files, folders, and blocks that only say more about the next entry."""


def kind(head: bytes) -> Kind | None:
    """Which archive begins with these bytes, if any does."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    if _is_tar(head):
        return "tar"
    if head.startswith(b"\x1f\x8b") and _is_tar(_beginning(head)):
        return "tar.gz"
    return None


def files(data: bytes, limits: Limits) -> list[File]:
    """The plain files in an archive's bytes, in the order of their names, numbers by value.

    Raises ImageUnreadable for what is broken or refused, and ImageTooLarge beyond the limits; nothing else.
    """
    name = kind(data[:HEAD])
    allowance = _Allowance(len(data), limits)
    try:
        entries = list(_zip(data, allowance) if name == "zip" else _tar(_unpacked(data, name, allowance), allowance))
    except ImageError:
        raise
    except MemoryError:
        raise ImageTooLarge("there is not enough memory to unpack the archive", param="files") from None
    except Exception:  # zipfile and zlib have several kinds of errors, and what they say may quote names
        raise _broken() from None
    if any(kind(entry.head) for entry in entries):
        raise ImageUnreadable("the archive holds another archive; unpack that one first", param="files")
    if not entries:
        raise ImageUnreadable("the archive is empty", param="files")
    return sorted(entries, key=lambda entry: natural(entry.name))


class _Allowance:
    """What may still come out of an archive: entries and bytes."""

    def __init__(self, packed: int, limits: Limits) -> None:
        self._limits = limits
        self._entries = most_files(limits)
        self._bytes = min(total_limit(limits), max(UNSUSPECTED, RATIO * packed))

    def entry(self, count: int = 1) -> None:
        self._entries -= count
        if self._entries < 0:
            raise ImageTooLarge(
                f"the archive holds more than {most_files(self._limits)} entries; send one series", param="files"
            )

    def take(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise ImageTooLarge(
                "the archive unpacks to more bytes than are read, or to far more than its size lets expect; "
                "send one series, or its files one by one",
                param="files",
            )


def _zip(data: bytes, allowance: _Allowance) -> Iterator[File]:
    allowance.entry(data.count(_ZIP_ENTRY))  # before zipfile makes an object of each
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for entry in archive.infolist():
            _check_zip_entry(entry)
            if not entry.is_dir():
                with archive.open(entry) as opened:
                    yield File.of(_all(opened, allowance), entry.filename, chosen=False)


def _check_zip_entry(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _no_plain_file()
    if entry.flag_bits & _ENCRYPTED:
        raise ImageUnreadable("the archive is encrypted; unpack it and send the files", param="files")
    if entry.compress_type not in _METHODS:
        raise ImageUnreadable(
            "the archive uses a rare compression; pack it again as an ordinary zip (deflate)", param="files"
        )


def _all(opened: IO[bytes], allowance: _Allowance) -> bytes:
    pieces: list[bytes] = []
    while piece := opened.read(PIECE):
        allowance.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def _unpacked(data: bytes, name: Kind | None, allowance: _Allowance) -> bytes:
    """A tar's own bytes; those of a tar.gz are counted as they come out, and again as files, so they are given back."""
    if name != "tar.gz":
        return data
    pieces = list(_inflated(data, allowance))
    whole = b"".join(pieces)
    allowance.take(-len(whole))
    return whole


def _inflated(data: bytes, allowance: _Allowance) -> Iterator[bytes]:
    while data:  # a gzip file may have several members
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not inflater.eof:
            piece = inflater.decompress(data, PIECE)
            data = inflater.unconsumed_tail
            if not piece and not data and not inflater.eof:
                raise _broken()
            allowance.take(len(piece))
            yield piece
        data = inflater.unused_data.lstrip(b"\0")  # tapes are padded


def _tar(data: bytes, allowance: _Allowance) -> Iterator[File]:
    """Read here and not by tarfile: a reader of plain files only can neither loop, nor follow, nor recurse."""
    place = 0
    while place + BLOCK <= len(data):
        header = data[place : place + BLOCK]
        if not any(header):
            return
        if not _is_tar(header):
            raise _broken()
        allowance.entry()
        size, flag = _number(header[124:136]), header[156:157]
        begin, end = place + BLOCK, place + BLOCK + size
        if end > len(data):
            raise _broken()
        if flag in {bytes((plain,)) for plain in _PLAIN}:
            allowance.take(size)
            yield File.of(data[begin:end], _name(header), chosen=False)
        elif flag not in {bytes((other,)) for other in _FOLDER + _ABOUT}:
            raise _no_plain_file()
        place = begin + -(-size // BLOCK) * BLOCK


def _is_tar(header: bytes) -> bool:
    """Whether a block is an entry's header: the mark of 1988, which GNU tar writes too, and a true checksum."""
    if len(header) < BLOCK or header[257:262] != b"ustar":
        return False
    try:
        stated = _number(header[148:156])
    except ImageError:
        return False
    return stated == sum(header[:148]) + sum(header[156:BLOCK]) + 8 * ord(" ")


def _number(digits: bytes) -> int:
    """A number in octal digits; the binary form for sizes beyond 8 GiB is too large in any case."""
    try:
        return int(digits.strip(b" \0") or b"0", 8) if digits[0] < 0x80 else 1 << 40
    except ValueError:
        raise _broken() from None


def _name(header: bytes) -> str:
    prefix, name = (header[start:end].split(b"\0")[0].decode(errors="replace") for start, end in ((345, 500), (0, 100)))
    return f"{prefix}/{name}" if prefix else name


def _beginning(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, BLOCK)
    except zlib.error:
        return b""


def _broken() -> ImageUnreadable:
    return ImageUnreadable("the archive is damaged or cut short; pack it again", param="files")


def _no_plain_file() -> ImageUnreadable:
    return ImageUnreadable(
        "the archive holds links, devices or other things that are no plain files; pack it again without them",
        param="files",
    )
