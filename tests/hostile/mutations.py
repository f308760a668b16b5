"""Ways to damage a sound file: each takes its bytes and a source of chance, and gives other bytes."""

import random
import struct
import zlib
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
HEADER = 600
"""Bytes at the beginning where most formats keep what they believe about the rest."""


def truncated(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def beheaded(data: bytes, chance: random.Random) -> bytes:
    """The beginning is there, and then something is missing."""
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randint(1, 64) :]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """A few bits are turned, anywhere."""
    return _flipped(data, chance, len(data))


def flipped_header(data: bytes, chance: random.Random) -> bytes:
    """A few bits are turned in the header."""
    return _flipped(data, chance, HEADER)


def _flipped(data: bytes, chance: random.Random, within: int) -> bytes:
    out = bytearray(data)
    for _time in range(chance.choice((1, 2, 8, 32))):
        out[chance.randrange(min(within, len(out)))] ^= 1 << chance.randrange(8)
    return bytes(out)


def lying(data: bytes, chance: random.Random) -> bytes:
    """A number somewhere in the header says something extreme."""
    out = bytearray(data)
    form = chance.choice(("<H", ">H", "<I", ">I", "<Q"))
    width = struct.calcsize(form)
    value = chance.choice(EXTREMES) & ((1 << 8 * width) - 1)
    place = chance.randrange(max(1, min(chance.choice((HEADER, len(out))), len(out)) - width))
    out[place : place + width] = struct.pack(form, value)
    return bytes(out)


def repeated(data: bytes, chance: random.Random) -> bytes:
    """A piece comes several times."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.randint(1, 512)]
    return data[:start] + piece * chance.randint(2, 50) + data[start:]


def overwritten(data: bytes, chance: random.Random) -> bytes:
    """A stretch holds other bytes: zeros, ones, or noise."""
    start, length = chance.randrange(len(data)), chance.randint(1, 256)
    piece = chance.choice((b"\0" * length, b"\xff" * length, chance.randbytes(length)))
    return data[:start] + piece + data[start + length :]


def resealed(data: bytes) -> bytes:
    """A PNG with true checksums again, so that more than the first check sees what is wrong with it."""
    out = bytearray(data)
    place = 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[place + 4 : end]))
        place = end + 4
    return bytes(out)


MUTATIONS: tuple[Mutation, ...] = (truncated, beheaded, flipped, flipped_header, lying, lying, repeated, overwritten)
