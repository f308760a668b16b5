"""A study crosses from one process to another as JSON and raw pixels, and is built anew by the receiver's own types.

Nothing that arrives can name a class, a function or a size that was not expected: the receiver walks through the fields
of the type it asked for and takes from the message what these declare. That is why this is not pickle, which lets the
sender choose what the receiver runs. The pixels lie in a file without a name that the receiver provides.
"""

import json
import mmap
import os
import socket
import struct
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from math import prod
from time import monotonic
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

ALIGNMENT = 16
"""Each array begins at a multiple of this, so that samples of every type can be used where they lie."""
DTYPES = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "bool"})
SIZES = struct.Struct(">QQ")
"""What a message begins with: the bytes of its JSON, and those of its arrays."""
LONGEST_JSON = 16 * 2**20
LONGEST_TEXT = 10_000
LONGEST_LIST = 100_000


class Malformed(ValueError):
    """The message is not one of the type that was asked for."""


@dataclass(frozen=True)
class Message:
    """What travels: `text` is JSON, `arrays` go as raw bytes one after the other, each from a multiple of ALIGNMENT."""

    text: bytes
    arrays: tuple[NDArray[Any], ...] = ()

    @property
    def payload(self) -> int:
        """Bytes that the arrays take, with what lies between them."""
        return sum(_padded(array.nbytes) for array in self.arrays)

    def pieces(self) -> Iterator[memoryview]:
        """The payload, piece by piece, without a second copy of a contiguous array."""
        for array in self.arrays:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            yield memoryview(bytes(_padded(array.nbytes) - array.nbytes))


def packed(value: Any) -> Message:
    """The value as a message; raises TypeError for what is no record of plain values and arrays."""
    arrays: list[NDArray[Any]] = []
    text = json.dumps(_plain(value, arrays), separators=(",", ":")).encode()
    return Message(text, tuple(arrays))


class File:
    """A payload of `size` bytes in an open file, of which every piece that is taken is a copy of its own.

    So a picture keeps no more memory alive than its own pixels, and the volume that came with it goes when it may.
    """

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, piece: slice) -> NDArray[np.uint8]:
        start, stop, _step = piece.indices(self._size)
        return fetch(self._file, stop - start, start)


Payload = NDArray[np.uint8] | File


def unpacked(kind: type[T], text: bytes, payload: Payload) -> T:
    """The value of type `kind` in a message; raises Malformed, or what the type's own constructor raises."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    value: T = _Builder(payload).build(kind, plain)
    return value


@dataclass(frozen=True)
class Received:
    """What came: JSON, how many bytes of arrays are said to belong to it, and open files."""

    text: bytes
    payload: int
    files: tuple[int, ...]


def send(channel: socket.socket, text: bytes, payload: int = 0, files: Sequence[int] = ()) -> None:
    """Send a message's JSON and the size of its arrays, with the first byte open files. The arrays go by `write`."""
    socket.send_fds(channel, [SIZES.pack(len(text), payload)], list(files))
    channel.sendall(text)


def receive(channel: socket.socket, *, files: int = 0, deadline: float | None = None) -> Received:
    """The next JSON, and up to `files` open files that came with it; `deadline` is a time of the monotonic clock.

    Raises EOFError when the other side is gone, TimeoutError after the deadline, Malformed for too long a text.
    """
    _set_timeout(channel, deadline)
    first, received, _flags, _address = socket.recv_fds(channel, SIZES.size, files)
    if not first:
        raise EOFError
    length, payload = SIZES.unpack(first + _bytes(channel, SIZES.size - len(first), deadline))
    if length > LONGEST_JSON:
        raise Malformed("a message of more bytes than any should have")
    return Received(_bytes(channel, length, deadline), payload, tuple(received))


def write(message: Message, file: int) -> None:
    """Put a message's arrays into an open file by way of memory, as a process may that must not write to files."""
    if message.payload:
        with mmap.mmap(file, message.payload) as memory:
            for piece in message.pieces():
                memory.write(piece)


def fetch(file: int, size: int, start: int = 0) -> NDArray[np.uint8]:
    """`size` bytes of an open file from `start`, as a copy that the other side cannot change; raises EOFError.

    Not by way of memory: were the file made shorter meanwhile, that would end this process.
    """
    payload = np.empty(size, np.uint8)
    filled = 0
    while filled < size:
        count = os.preadv(file, [payload.data[filled:]], start + filled)
        if not count:
            raise EOFError
        filled += count
    return payload


def _bytes(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    pieces = bytearray()
    while len(pieces) < size:
        _set_timeout(channel, deadline)
        piece = channel.recv(min(size - len(pieces), 2**16))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def _set_timeout(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _plain(value: Any, arrays: list[NDArray[Any]]) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"dtype": value.dtype.name, "shape": list(value.shape)}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), arrays) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return [[_plain(key, arrays), _plain(item, arrays)] for key, item in value.items()]
    if isinstance(value, tuple | list):
        return [_plain(item, arrays) for item in value]
    raise TypeError(f"a {type(value).__name__} does not travel")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The fields that a record's constructor takes, with their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


class _Builder:
    """Builds values by their declared types, and hands out the payload's arrays in the order in which they come."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._used = 0

    def build(self, hint: Any, plain: Any) -> Any:
        origin = get_origin(hint)
        if origin in {Union, types.UnionType}:
            return self._either(get_args(hint), plain)
        if origin is Literal:
            return _same(plain, get_args(hint))
        if hint is np.ndarray or origin is np.ndarray:
            return self._array(hint, plain)
        if origin is not None:
            return self._collection(origin, get_args(hint), plain)
        return self._single(hint, plain)

    def _single(self, hint: Any, plain: Any) -> Any:
        if hint is None or hint is type(None):
            return _same(plain, (None,))
        if is_dataclass(hint) and isinstance(hint, type):
            return self._record(hint, plain)
        if isinstance(hint, type) and issubclass(hint, Enum):
            try:
                return hint(plain)
            except ValueError:
                raise Malformed(f"no {hint.__name__}") from None
        return _scalar(hint, plain)

    def _record(self, kind: Any, plain: Any) -> Any:
        declared = _hints(kind)
        if not isinstance(plain, dict) or set(plain) != set(declared):
            raise Malformed(f"no {kind.__name__}")
        return kind(**{name: self.build(hint, plain[name]) for name, hint in declared.items()})

    def _either(self, options: Sequence[Any], plain: Any) -> Any:
        for option in options:
            used = self._used
            try:
                return self.build(option, plain)
            except Malformed:
                self._used = used
        raise Malformed("none of the types that may stand here")

    def _collection(self, origin: Any, items: Sequence[Any], plain: Any) -> Any:
        if not isinstance(plain, list) or len(plain) > LONGEST_LIST:
            raise Malformed("no list, or too long a one")
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self._mapping(items, plain)
        if origin in {list, Sequence}:
            return [self.build(items[0], item) for item in plain]
        if origin is not tuple:
            raise Malformed(f"no way to receive {origin!r}")
        if len(items) == 2 and items[1] is Ellipsis:
            return tuple(self.build(items[0], item) for item in plain)
        if len(items) != len(plain):
            raise Malformed("a tuple of another length")
        return tuple(self.build(hint, item) for hint, item in zip(items, plain, strict=True))

    def _mapping(self, items: Sequence[Any], pairs: list[Any]) -> Any:
        if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
            raise Malformed("no mapping")
        return {self.build(items[0], key): self.build(items[1], value) for key, value in pairs}

    def _array(self, hint: Any, plain: Any) -> NDArray[Any]:
        dtype, shape = _declared(hint, plain)
        count = prod(shape)
        end = self._used + count * dtype.itemsize
        if end > len(self._payload):
            raise Malformed("more array than was sent")
        array = self._payload[self._used : end].view(dtype).reshape(shape)
        self._used = _padded(end)
        return array


def _declared(hint: Any, plain: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """An array's type and shape as the message has them, if they are what may stand here."""
    if not isinstance(plain, dict) or plain.get("dtype") not in DTYPES or not isinstance(plain.get("shape"), list):
        raise Malformed("no array")
    shape = plain["shape"]
    if len(shape) > 5 or any(not isinstance(side, int) or isinstance(side, bool) or side < 0 for side in shape):
        raise Malformed("no shape of an array")
    dtype = np.dtype(plain["dtype"])
    wanted = [item for argument in get_args(hint) for item in get_args(argument) if isinstance(item, type)]
    if wanted and not any(issubclass(dtype.type, item) for item in wanted if issubclass(item, np.generic)):
        raise Malformed("an array of another type")
    return dtype, tuple(shape)


def _scalar(hint: Any, plain: Any) -> Any:
    if hint is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if hint not in {bool, int, float, str} or type(plain) is not hint:
        raise Malformed(f"no {getattr(hint, '__name__', hint)}")
    return _text(plain) if isinstance(plain, str) else plain


def _text(text: str) -> str:
    """Text that may be shown: control characters could steer a terminal, and a flood could fill a log."""
    if len(text) > LONGEST_TEXT or not all(character.isprintable() or character == "\n" for character in text):
        raise Malformed("text that cannot be shown")
    return text


def _same(plain: Any, allowed: Sequence[Any]) -> Any:
    for value in allowed:
        if type(value) is type(plain) and value == plain:
            return value
    raise Malformed("another value than may stand here")
