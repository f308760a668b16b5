"""What a GGUF file says of itself, read in milliseconds and checked against the file's own length.

The reader of the `gguf` package makes a Python object of every vocabulary entry, seconds of work on Gemma's 262 144;
here strings of an array are skipped, unless asked for, and tensors are looked up but not read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType

MAGIC = b"GGUF"
SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
NEWER = (1, 0)
"""A quantisation made after the `gguf` package was: its tensors are not measured; llama.cpp will judge."""
SAMPLES = 64
SAMPLE_BYTES = 65_536
SHORT_ARRAY = 64
"""Arrays longer than this are vocabulary; their length is kept, not their entries."""


class Malformed(ValueError):
    """The bytes are not a whole GGUF file."""


@dataclass(frozen=True)
class Header:
    """The file's metadata by key, the number of its weights, and a fingerprint of its content."""

    metadata: dict[str, Any]
    parameters: int
    fingerprint: str
    lengths: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.metadata[key]
        except KeyError:
            raise Malformed(f"the entry {key!r} is missing") from None

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)


def read(path: Path) -> Header:
    """The header of the file; raises Malformed when it is no GGUF file or shorter than its tensors need."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise Malformed("it does not begin with the letters GGUF")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            try:
                return _Cursor(data).header()
            except Malformed:
                raise
            except (struct.error, ValueError, KeyError, IndexError, RecursionError):
                raise Malformed("its header ends or breaks off early") from None


class _Cursor:
    """A place in the file that moves forward as values are read."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._at = 4

    def header(self) -> Header:
        version, tensors, entries = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in (2, 3):
            raise Malformed(f"its version is {version}; versions 2 and 3 are read here")
        metadata: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(entries):
            key = self._text()
            value, length = self._value(GGUFValueType(self._take("<I")))
            metadata[key] = value
            lengths[key] = length
        sizes = list(self._tensors(tensors))
        self._check_length(metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT), sizes)
        return Header(metadata, sum(count for count, _, _ in sizes), self._fingerprint(), lengths)

    def _tensors(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Of each tensor: how many numbers it holds, where it begins after the header, how many bytes it takes."""
        for _ in range(number):
            self._text()
            count = 1
            for _ in range(self._take("<I")):
                count *= self._take("<Q")
            block, size = GGML_QUANT_SIZES.get(self._take("<I"), NEWER)
            yield count, self._take("<Q"), count // block * size

    def _check_length(self, alignment: int, sizes: list[tuple[int, int, int]]) -> None:
        start = -(-self._at // alignment) * alignment
        needed = start + max((offset + size for _, offset, size in sizes), default=0)
        if needed > len(self._data):
            raise Malformed(f"it is cut short: {len(self._data)} bytes of {needed}")

    def _fingerprint(self) -> str:
        """SHA-256 of the length and of evenly spaced samples: quick for any size, and other weights differ in it."""
        total = len(self._data)
        digest = sha256(str(total).encode())
        for step in range(SAMPLES):
            at = step * max(total - SAMPLE_BYTES, 0) // (SAMPLES - 1)
            digest.update(self._data[at : at + SAMPLE_BYTES])
        return digest.hexdigest()

    def _value(self, kind: GGUFValueType) -> tuple[Any, int]:
        if kind is GGUFValueType.STRING:
            return self._text(), 1
        if kind is GGUFValueType.ARRAY:
            return self._array()
        return self._take(SCALARS[kind]), 1

    def _array(self) -> tuple[Any, int]:
        kind, length = GGUFValueType(self._take("<I")), self._take("<Q")
        if length <= SHORT_ARRAY:
            return tuple(self._value(kind)[0] for _ in range(length)), length
        if kind is GGUFValueType.STRING:
            self._skip_texts(length)
        else:
            self._at += length * struct.calcsize(SCALARS[kind])
        return None, length

    def _skip_texts(self, number: int) -> None:
        at, data, length = self._at, self._data, struct.Struct("<Q").unpack_from
        for _ in range(number):
            at += 8 + length(data, at)[0]
        self._at = at

    def _text(self) -> str:
        length = self._take("<Q")
        self._at += length
        if self._at > len(self._data):
            raise Malformed("its header ends early")
        return self._data[self._at - length : self._at].decode()

    def _take(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value
