"""The decoder's process with a reader that does what its file says: crash, hang, eat memory, lie. For tests only."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medserve.images import Image, Source, Study
from medserve.imaging import formats
from medserve.imaging.isolation import Reading
from medserve.imaging.material import File, Wanted
from medserve.settings import Limits
from medserve.workers import imaging


class Panic(BaseException):
    """As decoders written in Rust throw it."""


def read(found: Sequence[File | Path], limits: Limits, wanted: Wanted) -> Reading:
    """Do what the first file says, else read it as ever."""
    order = found[0].head if isinstance(found[0], File) else b""
    if order == b"CRASH":
        os.abort()
    if order == b"HANG":
        ctypes.PyDLL(None).pause()  # native code that keeps Python's lock and never comes back
    if order == b"EAT":
        return Reading(_study(np.ones((50_000, 50_000, 3), np.uint8)))
    if order == b"GROW":
        imaging.__dict__.setdefault("kept", []).append(np.ones(150 * 2**20, np.uint8))
    if order == b"RAISE":
        raise ZeroDivisionError("PLANTED^NAME")
    if order == b"PANIC":
        raise Panic
    if order == b"LIE":
        return Reading(_study(np.zeros((8, 8, 3), np.uint8), modality="PLANTED"))
    if order.isalpha():
        return Reading(_study(np.zeros((8, 8, 3), np.uint8)))
    return _read(found, limits, wanted)


def _study(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], modality: str | None = None) -> Study:
    study = Study((Image(pixels, Source("PNG", "RGB", 8, 8)),))
    if modality:
        object.__setattr__(study, "modality", modality)
    return study


if __name__ == "__main__":
    _read, formats.read = formats.read, read
    imaging.main()
