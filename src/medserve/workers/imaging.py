"""The process in which files of strangers are decoded: it reads one at a time, and ends with its parent.

Run by `medserve.imaging.isolation`, which describes what it is told and how it answers.
"""

import ctypes
import fcntl
import gc
import os
import socket
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ImageTooLarge, ImageUnreadable, MedserveError
from medserve.imaging import formats, lodging, wire
from medserve.imaging.isolation import MOST_REPLY, Failure, Order, Part, Reply
from medserve.imaging.material import File
from medserve.settings import Limits
from medserve.workers.confinement import confine, limit_processor_time

HERE = Path(__file__).parents[1]
NO_PAYLOAD = np.empty(0, np.uint8)
LARGE = 16 * 2**20
"""Bytes of a reply after which it is worth some milliseconds to return memory."""


def main() -> None:
    """Answer orders until there are no more."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _end_with_parent()
    tempfile.tempdir = sys.argv[2]  # by itself it would try out folders, and writing is forbidden
    lodging.prepare()
    confine(Path(sys.argv[2]))
    wire.send(channel, wire.packed(None).text)
    while True:
        try:
            received = wire.receive(channel, files=2)
        except (EOFError, OSError):
            return
        text, size = _answered(received)
        if size > LARGE:
            _give_back()
        wire.send(channel, text, size)


def _answered(received: wire.Received) -> tuple[bytes, int]:
    """The answer's JSON and the size of its pixels, which are in their file. Whatever else it took is free again."""
    given, pixels = received.files
    try:
        order = wire.unpacked(Order, received.text, NO_PAYLOAD)
        limit_processor_time(order.seconds)
        message = _message(answer(order, given))
        wire.write(message, pixels)
        return message.text, message.payload
    finally:
        os.close(given)
        os.close(pixels)


def _give_back() -> None:
    """Return freed memory to the system, which the C library would keep for the next large study."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def answer(order: Order, file: int) -> Reply:
    """The reading, or why there is none; nothing is raised."""
    try:
        limits = Limits.model_validate_json(order.limits)
        if order.write:
            return Reply(document=_document(order, file, limits))
        reading = formats.read(_found(order.parts, file), limits, order.wanted)
        return Reply(reading if order.wanted.volume else replace(reading, study=replace(reading.study, volume=None)))
    except MedserveError as error:
        return Reply(failure=Failure(error.code, error.message, error.param))
    except MemoryError:
        return _failed(ImageTooLarge("there is not enough memory to decode this; send less at once", param="image"))
    except BaseException as error:  # what no module foresaw; a panic of a decoder written in Rust is no Exception
        refusal = ImageUnreadable("the file is damaged, cut short or of a kind that is not read", param="image")
        return _failed(refusal, surprise=_place(error))


def _document(order: Order, file: int, limits: Limits) -> NDArray[np.uint8]:
    """The structured report that is asked for; its library, which is large, is loaded now and not before."""
    from medserve.workers import structured_report

    report, *files = _found(order.parts, file)
    return np.frombuffer(structured_report.written(report, files, limits, order.wanted), np.uint8)


def _message(reply: Reply) -> wire.Message:
    message = wire.packed(reply)
    if message.payload <= MOST_REPLY:
        return message
    return wire.packed(
        _failed(ImageTooLarge("there are more pixels than can be used at once; send less", param="image"))
    )


def _failed(error: MedserveError, surprise: str = "") -> Reply:
    return Reply(failure=Failure(error.code, error.message, error.param, surprise))


def _place(error: BaseException) -> str:
    """Where our own code met the error, and its type: never its words, which may quote the file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(HERE))]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
    return f"{type(error).__name__} at {place}"


def _found(parts: tuple[Part, ...], file: int) -> list[File | Path]:
    """The parts as files. A single one of bytes also gets a path, because readers of slides insist on one."""
    found: list[File | Path] = []
    start = 0
    for part in parts:
        if part.path:
            found.append(Path(os.fsdecode(bytes.fromhex(part.path))))
            continue
        path = Path(f"/dev/fd/{file}") if len(parts) == 1 else None
        found.append(File.of(os.pread(file, part.size, start), str(len(found)), path=path))
        start += part.size
    return found


def _end_with_parent() -> None:
    """Have the system end this process when its standard input ends, even while native code never comes back.

    Linux ends a process that gets SIGIO. Elsewhere an idle one ends with its socket, a busy one by its processor time.
    """
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
