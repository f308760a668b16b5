"""Bytes that nobody vouches for are decoded in a process of their own, whose crash, hang or greed costs one refusal.

Two children at most, started when first needed and kept warm, each with one file at a time. A child that dies, answers
too late, answers nonsense or has grown is replaced. It is told what to read over a socket that nobody else can reach,
gets bytes as an open file, and answers as `medserve.imaging.wire` describes: what it sends is checked like any other
input, because a file may have taken over the decoder that read it. When this process ends, however suddenly, its
children end with it.
"""

import atexit
import math
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Literal

import anyio
import numpy as np
import structlog
from anyio.lowlevel import RunVar
from numpy.typing import NDArray

from medserve import scratch
from medserve.errors import ImageError, ImageUnreadable, InvalidRequest, MedserveError, WorkerCrashed, by_code
from medserve.images import Image, Study
from medserve.imaging import wire
from medserve.imaging.material import Material, Wanted, is_folder
from medserve.settings import Limits
from medserve.threads import in_lane

MODULE = "medserve.workers.imaging"
HERE = Path(__file__).parents[2]
"""Where this very package was imported from; the children must come from there too."""

CHILDREN = 2
START_SECONDS = 30.0
LEAST_SECONDS = 4.5
"""For files of up to SMALL bytes. A caller who is kept for five seconds by a few bytes has been attacked."""
SMALL = 10_000_000
BYTES_PER_SECOND = 2_000_000
"""How slowly the rest of a sound file may be decoded; JPEG 2000 on a busy core does ten times as much."""
MOST_SECONDS = 30.0
MOST_CROWDED = 4.0
DOCUMENT_SECONDS = 15.0
"""More time for a document, whose library is loaded when first needed."""
MOST_REPLY = 2**30
"""Bytes of pixels in one reply: 125 patches of a slide are a third of this."""
GROWN = 384 * 2**20
"""Resident bytes beyond which a child is not kept after its reply."""
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONPATH",
)
ENVIRONMENT = {
    # Files are decoded one at a time on one core; each idle thread of a numeric library costs memory.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """One thing to read: `size` bytes of the file that comes along, or where `path` is given, that (hex, as it is)."""

    size: int = 0
    path: str = ""


@dataclass(frozen=True)
class Order:
    """What a child is to do: read these parts within `seconds`. `limits` is JSON.

    Or, to `write` "document", make a structured report: the first part is a report's JSON, the others are its study.
    """

    parts: tuple[Part, ...]
    wanted: Wanted
    limits: str
    seconds: float
    write: Literal["", "document"] = ""


@dataclass(frozen=True)
class Reading:
    """What was read; of a slide also `overview`, the whole of it with the chosen patches drawn on it."""

    study: Study
    overview: Image | None = None


@dataclass(frozen=True)
class Failure:
    """Why nothing was read: an error of the tree by its code; `surprise` is where in our code an unforeseen one was."""

    code: str
    message: str
    param: str | None = None
    surprise: str = ""


@dataclass(frozen=True)
class Reply:
    """A reading, a document's bytes or a failure; exactly one of them."""

    reading: Reading | None = None
    failure: Failure | None = None
    document: NDArray[np.uint8] | None = None


class Gone(Exception):
    """The child ended, stopped making sense, or ran out of time; `late` tells the last case."""

    def __init__(self, how: str, *, late: bool = False) -> None:
        super().__init__(how)
        self.how = how
        self.late = late


async def read(materials: Sequence[Material], limits: Limits, wanted: Wanted) -> Reading:
    """Have a child read the materials as one study. Raises InvalidRequest (mostly ImageError), or WorkerCrashed."""
    return await in_lane(_lane(), decoders().read, materials, limits, wanted)


async def document(report: bytes, materials: Sequence[Material], limits: Limits, wanted: Wanted) -> bytes:
    """Have a child write a report (JSON) on the study in `materials` as a DICOM structured report.

    Raises InvalidRequest where the materials are not that study, or WorkerCrashed.
    """
    return await in_lane(_lane(), decoders().document, report, materials, limits, wanted)


_limiter: RunVar[anyio.CapacityLimiter] = RunVar("medserve-decoders")


def _lane() -> anyio.CapacityLimiter:
    """As many threads as there are children: who waits for a child waits in the event loop, not in a thread."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(lane := anyio.CapacityLimiter(CHILDREN))
        return lane


@cache
def decoders() -> "Decoders":
    """This process's children."""
    pool = Decoders()
    atexit.register(pool.close)
    return pool


def budget(materials: Sequence[Material]) -> float:
    """Seconds within which the materials must be read: the more, the more bytes they have; for a folder the most."""
    size = 0
    for material in materials:
        if isinstance(material, bytes):
            size += len(material)
        elif is_folder(material):
            return MOST_SECONDS
        else:
            with suppress(OSError):
                size += material.stat().st_size
    return min(MOST_SECONDS, LEAST_SECONDS + max(0, size - SMALL) / BYTES_PER_SECOND)


def crowding() -> float:
    """How much slower than alone a decoder runs now: programs that want a core, for each core; between 1 and 4.

    Seconds on the clock are what a caller waits, but on a crowded machine a sound file must not be called damaged.
    """
    return min(MOST_CROWDED, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


class Decoders:
    """The children, each with at most one file. Calls block, and may come from any thread."""

    def __init__(self, size: int = CHILDREN, *, seconds: float | None = None) -> None:
        self.replaced = 0
        self._seconds = seconds
        self._free: queue.LifoQueue[Decoder | None] = queue.LifoQueue()  # the warm one first
        for _place in range(size):
            self._free.put(None)

    def read(self, materials: Sequence[Material], limits: Limits, wanted: Wanted) -> Reading:
        """One study; raises InvalidRequest with the reason when there is none."""
        seconds = self._seconds or budget(materials) * crowding()
        parts = tuple(_part(material) for material in materials)
        reply = self._answered(Order(parts, wanted, limits.model_dump_json(), seconds), materials)
        if reply.reading is None:
            raise _error(reply.failure or Failure(ImageUnreadable.code, "the decoder said nothing"))
        return reply.reading

    def document(self, report: bytes, materials: Sequence[Material], limits: Limits, wanted: Wanted) -> bytes:
        """A structured report's file; raises InvalidRequest with the reason when there is none."""
        seconds = self._seconds or (DOCUMENT_SECONDS + budget(materials)) * crowding()
        given = (report, *materials)
        parts = tuple(_part(material) for material in given)
        reply = self._answered(Order(parts, wanted, limits.model_dump_json(), seconds, "document"), given)
        if reply.document is None:
            raise _error(reply.failure or Failure(ImageUnreadable.code, "the decoder said nothing"))
        return reply.document.tobytes()

    def _answered(self, order: Order, materials: Sequence[Material]) -> Reply:
        with _nameless() as given, _nameless() as pixels:
            for material in materials:
                if isinstance(material, bytes):
                    given.write(material)
            given.flush()
            pixels.truncate(MOST_REPLY)  # takes no memory until it is written to
            return self._ask(order, given.fileno(), pixels.fileno())

    def pids(self) -> tuple[int, ...]:
        """The idle children's process numbers."""
        return tuple(decoder.pid for decoder in list(self._free.queue) if decoder is not None)

    def close(self) -> None:
        """End the children that are idle; the pool can be used again and starts new ones."""
        idle: list[Decoder | None] = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for decoder in idle:
            if decoder is not None:
                decoder.end()
            self._free.put(None)

    def _ask(self, order: Order, given: int, pixels: int) -> Reply:
        decoder = self._free.get()
        try:
            if decoder is not None and not decoder.alive:  # killed while idle, by the system or a person
                decoder.end()
                decoder = None
            decoder = decoder or Decoder()
            reply = decoder.ask(order, given, pixels)
        except Gone as gone:
            self._replace(decoder, gone.how)
            decoder = None
            raise _refusal(gone, order.seconds) from None
        except BaseException:
            self._replace(decoder, "was interrupted")
            decoder = None
            raise
        else:
            if decoder.resident() > GROWN:
                self._replace(decoder, "had grown")
                decoder = None
        finally:
            self._free.put(decoder)
        return reply

    def _replace(self, decoder: "Decoder | None", why: str) -> None:
        if decoder is not None:
            self.replaced += 1
            log.warning("decoder_replaced", why=why)
            decoder.end()


class Decoder:
    """One child process, ready to read."""

    def __init__(self) -> None:
        self._folder = str(scratch.folder())  # the only place it may change
        self._channel, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), self._folder],
                stdin=subprocess.PIPE,  # nothing is ever sent: its end tells the child that we are gone
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what native decoders print may quote the file
                env=_environment(self._folder),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            self._forget()
            raise WorkerCrashed(f"the decoder could not be started: {error.strerror}") from None
        finally:
            theirs.close()
        self._greet()

    def _greet(self) -> None:
        try:
            wire.receive(self._channel, deadline=monotonic() + START_SECONDS)
        except (EOFError, OSError, wire.Malformed):
            self.end()
            raise WorkerCrashed(
                f"the decoder did not start ({self._obituary()}); `medserve doctor` says what is missing"
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, order: Order, given: int, pixels: int) -> Reply:
        """The child's reply; raises Gone when there is none to be had."""
        deadline = monotonic() + order.seconds
        try:
            self._channel.settimeout(order.seconds)
            wire.send(self._channel, wire.packed(order).text, files=(given, pixels))
            received = wire.receive(self._channel, deadline=deadline)
            if received.payload > MOST_REPLY:
                raise wire.Malformed("more pixels than there is room for")
            return wire.unpacked(Reply, received.text, wire.File(pixels, received.payload))
        except TimeoutError:
            raise Gone("was late", late=True) from None
        except (EOFError, OSError):
            raise Gone(self._obituary()) from None
        except (wire.Malformed, MedserveError, ValueError, TypeError):
            raise Gone("made no sense") from None

    def resident(self) -> int:
        """Bytes of memory the child holds; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def end(self) -> None:
        """Kill the child and forget it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._forget()

    def _forget(self) -> None:
        self._channel.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _obituary(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        status = self._process.poll()
        if status is None:
            return "hung up"
        return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _environment(folder: str) -> dict[str, str]:
    """What a child inherits: a short list, because keys and tokens have names that nobody can foresee."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), inherited.get("PYTHONPATH"))))
    return {**inherited, **ENVIRONMENT, "TMPDIR": folder, "HOME": folder}


def _part(material: Material) -> Part:
    if isinstance(material, bytes):
        return Part(size=len(material))
    return Part(path=os.fsencode(material.absolute()).hex())


def _nameless() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("medserve"), "wb")
    return tempfile.TemporaryFile()


def _refusal(gone: Gone, seconds: float) -> InvalidRequest:
    if gone.late:
        return ImageUnreadable(
            f"decoding took longer than {math.ceil(seconds)} seconds and was given up; the file is damaged, or far "
            "larger than it needs to be: save it again, or send less at once",
            param="image",
        )
    return ImageUnreadable(
        f"the decoder crashed on this file ({gone.how}); the file is damaged or made to do harm: save it again, "
        "as PNG or as uncompressed DICOM",
        param="image",
    )


def _error(failure: Failure) -> InvalidRequest:
    """The error of the tree under InvalidRequest that carries the code; ImageError for a code that nobody knows."""
    if failure.surprise:
        log.error("decoder_surprised", where=failure.surprise[:200])
    kind = by_code(failure.code, InvalidRequest) or ImageError
    return kind(failure.message[:1000], param=failure.param)
