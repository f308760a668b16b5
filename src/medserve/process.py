"""A child process that says when it is ready, tells why when it is not, and is gone when we are.

The protocol is of JSON lines. The parent writes one, what to load, and then keeps the child's standard input open. On
its standard output the child may say how it goes, any number of times,

    {"progress": {"stage": "reading the weights", "reads": 3000000}}

where `reads` is how many bytes of files this stage will read, which the parent then watches; or `"done": 0.4`, where
the child knows that itself. Before it takes memory it may say how much, once or several times,

    {"need": {"memory_bytes": 4000000000}}

and then waits for any line from the parent, which comes when there is room. Its last line is `{"ready": {...}}` with
facts, or `{"error": {"code": ..., "message": ...}}`. When its standard input ends, because the parent closed it or died
however suddenly, the child ends too.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medserve import machine, scratch
from medserve.errors import ModelFailed, by_code
from medserve.threads import in_thread

HERE = Path(__file__).parent.parent
"""Where this very package was imported from; its workers must come from there too."""
GRACE_SECONDS = 5.0
TAIL_LINES = 200
LINE_BYTES = 2**20
MOST_PATH_BYTES = 90
"""Of a directory with a socket in it: with its own name, Linux takes 107 and macOS 103."""
KILLED = "; if nobody killed it, the machine was short of memory: take a smaller model, `context` or `slots`"
SAMPLE_SECONDS = 0.2
"""How often it is looked how far a child has read."""
ENVIRONMENT = re.compile(
    r"PATH|HOME|LANG|LC_ALL|TMPDIR|PYTHONPATH|VIRTUAL_ENV|LD_LIBRARY_PATH|DYLD_.*|CUDA_.*|NVIDIA_.*|HIP_.*|ROCR_.*|GGML_.*"
)
"""What a child inherits. A list of what is allowed, because keys and tokens have names that nobody can foresee."""


@dataclass(frozen=True)
class Progress:
    """Where a load is: what is being done now, and how much of that is done, 0 to 1; None where nobody can know."""

    stage: str
    done: float | None = None


class Onlooker(Protocol):
    """Who is told how a load goes, and is asked for the memory it takes."""

    def progress(self, progress: Progress) -> None: ...

    async def make_room(self, memory_bytes: int) -> None:
        """Return once so many bytes may be taken in all; raises ModelError when they may not."""
        ...


ONLOOKER: ContextVar[Onlooker | None] = ContextVar("onlooker", default=None)
"""Of the load that runs in this task. An engine that starts no child of ours uses `tell` and `make_room` itself."""


def tell(progress: Progress) -> None:
    """Say how the load in this task goes, to whoever wants to know."""
    if onlooker := ONLOOKER.get():
        onlooker.progress(progress)


async def make_room(memory_bytes: int) -> None:
    """Return once the load in this task may take so much memory; raises ModelError when it may not."""
    if onlooker := ONLOOKER.get():
        await onlooker.make_room(memory_bytes)


class Child:
    """A running worker: its facts once ready, a private directory for its socket, and the moment it ends."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.directory = directory
        self.facts: Mapping[str, Any] = {}
        self._process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._listener = asyncio.create_task(self._listen())
        self._end = asyncio.create_task(process.wait())

    @classmethod
    async def start(
        cls,
        module: str,
        spec: Mapping[str, Any],
        *,
        seconds: float,
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> "Child":
        """Run `python -m module` and wait until it is ready; raises ModelFailed with the child's own reason."""
        directory = _short(await in_thread(_folder))
        try:
            child = cls(await _spawn(module, environment or {}, python), directory)
        except BaseException as error:
            shutil.rmtree(directory, ignore_errors=True)
            if python is not None and isinstance(error, OSError):
                raise ModelFailed("the model's `python` cannot be run; check the setting", param="python") from None
            raise
        try:
            child.facts = await child._ready({**spec, "directory": str(directory)}, seconds)
        except BaseException:
            await child.stop(grace=0)
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for the child's end, whatever its cause; its exit status, negative for a signal."""
        return await asyncio.shield(self._end)

    def obituary(self) -> str:
        """How the child ended, in words that hold no path and no prompt."""
        status = self._process.returncode
        if status is None:
            return "is still running"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    async def stop(self, *, grace: float = GRACE_SECONDS) -> None:
        """End the child and remove its directory; with force if it takes longer than `grace` seconds, or the caller
        is cancelled."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self.ended()
            self._kill()
            await self.ended()
        finally:
            self._kill()
            self._listener.cancel()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _kill(self) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _ready(self, spec: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        await self._write(json.dumps(spec))
        try:
            async with asyncio.timeout(seconds):
                said = await self._last_word()
        except TimeoutError:
            raise ModelFailed(
                f"the model was not loaded within {seconds:g} seconds; raise limits.load_seconds if it needs longer"
            ) from None
        if "ready" in said:
            ready: Mapping[str, Any] = said["ready"]
            return ready
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await asyncio.gather(self.ended(), self._listener)  # its last words explain why
        killed = KILLED if self._process.returncode == -signal.SIGKILL else ""
        ended = f"the model's worker {self.obituary()} while it loaded{killed}"
        error = said.get("error") or {"code": "", "message": ended}
        raise failure(error["code"], self._explained(error["message"]))

    async def _write(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def _last_word(self) -> Mapping[str, Any]:
        """What the child says in the end, nothing if it just ended; on the way it is followed and given its room."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        follower: asyncio.Task[None] | None = None
        try:
            while line := await self._process.stdout.readline():
                said = _said(line)
                if "need" in said:
                    await make_room(int(said["need"]["memory_bytes"]))
                    await self._write("go")
                elif "progress" in said:
                    if follower is not None:
                        follower.cancel()
                    follower = asyncio.create_task(self._follow(**said["progress"]))
                elif said:
                    return said
            return {}
        finally:
            if follower is not None:
                follower.cancel()

    async def _follow(self, stage: str, done: float | None = None, reads: int = 0) -> None:
        """Tell how a stage goes: native code that loads keeps the child from saying it, so its reading is measured."""
        tell(Progress(stage, done))
        before = await in_thread(machine.bytes_read, self.pid) if reads else None
        while before is not None and (now := await in_thread(machine.bytes_read, self.pid)) is not None:
            tell(Progress(stage, min(1.0, (now - before) / reads)))
            await asyncio.sleep(SAMPLE_SECONDS)

    def _explained(self, message: str) -> str:
        """The message and its cause: of llama.cpp's complaints the first, which led to the rest, of others the last."""
        logged = [line for line in self._tail if re.search(r" E ", line)][:1]
        raised = [line for line in self._tail if re.search(r"Error\b|assert|failed", line)][-1:]
        cause = next(iter(logged or raised), None)
        return f"{message} ({_without_paths(cause)})" if cause else message

    async def _listen(self) -> None:
        """Keep the end of what the child writes to standard error, so that it never blocks on a full pipe."""
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        rest = b""
        while piece := await self._process.stderr.read(LINE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            self._tail.extend(line.decode(errors="replace") for line in lines)
            rest = rest[-LINE_BYTES:]
        self._tail.append(rest.decode(errors="replace"))


def _folder() -> Path:
    """A new directory for a socket that only this user can reach."""
    try:
        return scratch.folder()
    except OSError as error:
        raise ModelFailed(
            f"the temporary directory cannot be used: {error.strerror}; make room in it, or set TMPDIR to another"
        ) from None


def _short(directory: Path) -> Path:
    """The directory, if the system takes the name of a socket in it; else it is removed and ModelFailed says why."""
    if len(os.fsencode(directory)) <= MOST_PATH_BYTES:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    raise ModelFailed("the name of the temporary directory is too long for sockets; set TMPDIR to a shorter one")


def inherited() -> dict[str, str]:
    """The environment of a child: what it may inherit, and where it finds this very package."""
    found = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), found.get("PYTHONPATH"))))}


async def _spawn(module: str, environment: Mapping[str, str], python: Path | None) -> asyncio.subprocess.Process:
    """A session of its own keeps a Ctrl-C at the terminal from ending the child before its parent has finished."""
    return await asyncio.create_subprocess_exec(
        str(python or sys.executable),
        "-P",
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited(), **environment},
        start_new_session=True,
        limit=LINE_BYTES,
    )


def _said(line: bytes) -> Mapping[str, Any]:
    """A line of the protocol; nothing for what a package of the child's interpreter printed before it began."""
    with suppress(ValueError):
        if isinstance(said := json.loads(line), dict):
            return said
    return {}


def failure(code: str, message: str) -> ModelFailed:
    """The error of the tree under ModelFailed that carries `code`."""
    return (by_code(code, ModelFailed) or ModelFailed)(message, param="model")


def _without_paths(line: str) -> str:
    """A line of a log without its time and with directories cut away: which machine this is, is nobody's business."""
    said = re.sub(r"^[\d.]+ E ", "", line)
    return re.sub(r"(?:/[^\s'\"/]+)+/", "", said).strip()[:300]
