"""A body of several parts goes to disk part by part as it comes: nothing of a file is held in memory for longer.

Forms (RFC 7578) and DICOMweb's multipart/related (PS3.18 8.7.3) are written alike. Names of files are read by nobody.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

LONGEST_TEXT = 1024 * 1024


class Malformed(ValueError):
    """The body is not what it says, or has more parts than are taken; the words quote nothing of it."""


@dataclass(frozen=True)
class Part:
    """One part: its name in the form, and either its text or the file that now holds it."""

    name: str
    text: str | None = None
    path: Path | None = None


@dataclass
class _Open:
    """The part that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    text: bytearray | None = None
    path: Path | None = None
    file: BinaryIO | None = None


class Parts:
    """Fed with the body, it writes files to `folder` under numbers of its own; to be used as a context. Blocking.

    In a form a part is a file if it has a file name; with `only_files` every part is one.
    """

    def __init__(
        self, content_type: str, folder: Path, *, files: int, texts: int = 0, only_files: bool = False
    ) -> None:
        self.parts: list[Part] = []
        self._folder = folder
        self._most_files, self._most_texts, self._only_files = files, texts, only_files
        self._files = self._texts = 0
        self._part = _Open()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 1 <= len(boundary) <= 200:
            raise Malformed("the body's Content-Type names no boundary")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": self._data,
                "on_part_end": self._close,
                "on_end": self._end,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._part.file is not None:
            self._part.file.close()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; raises Malformed."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise Malformed("the body is not the multipart that it says it is") from None

    def finish(self) -> list[Part]:
        """All parts, once everything was fed; raises Malformed where the end is missing."""
        if not self._ended:
            raise Malformed("the body is cut short")
        return self.parts

    def _begin(self) -> None:
        self._part = _Open()

    def _header_end(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        options = parse_options_header(self._part.headers.get(b"content-disposition"))[1]
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._only_files or b"filename" in options:
            self._files = _counted(self._files, self._most_files, "files")
            self._part.path = self._folder / f"{self._files:06d}"
            self._part.file = self._part.path.open("xb")
        else:
            self._texts = _counted(self._texts, self._most_texts, "fields")
            self._part.text = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.file is not None:
            self._part.file.write(data[start:end])
        elif self._part.text is not None:
            self._part.text += data[start:end]
            if len(self._part.text) > LONGEST_TEXT:
                raise Malformed(f"a field has more than {LONGEST_TEXT} bytes")

    def _close(self) -> None:
        part, self._part = self._part, _Open()
        if part.file is not None:
            part.file.close()
        try:
            text = None if part.text is None else part.text.decode()
        except UnicodeDecodeError:
            raise Malformed("a field is not UTF-8") from None
        self.parts.append(Part(part.name, text, part.path))

    def _end(self) -> None:
        self._ended = True


def _counted(count: int, most: int, what: str) -> int:
    if count >= most:
        raise Malformed(f"there are more than {most} {what}")
    return count + 1
