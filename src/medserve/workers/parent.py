"""A worker's side of the protocol of `medserve.process`: it tells, asks for memory, and leaves with its parent."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from medserve.errors import MedserveError


def failed(error: MedserveError) -> dict[str, Any]:
    """How the protocol tells of an error."""
    return {"error": {"code": error.code, "message": error.message}}


def answer(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer the one line of standard input in one line: what `work` makes of it, or its error."""
    asked = json.loads(sys.stdin.readline())
    try:
        said = work(asked)
    except MedserveError as error:
        said = failed(error)
    sys.stdout.write(json.dumps(said) + "\n")


class Pipe:
    """The way to who started this process, who is told things in lines; who is gone need not be told."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    @classmethod
    def taken(cls) -> Self:
        """The parent at standard output, out of reach of native code that prints: that goes to standard error."""
        pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        return cls(pipe)

    def say(self, what: dict[str, Any]) -> None:
        """One line."""
        with suppress(OSError):
            self._pipe.write(json.dumps(what) + "\n")
            self._pipe.flush()

    def tell(self, stage: str, done: float | None = None, *, reads: int = 0) -> None:
        """Say what is done now, and which share of it is, 0 to 1, or how many bytes of files it will read."""
        self.say({"progress": {"stage": stage, "done": done, "reads": reads}})

    def fail(self, error: MedserveError) -> None:
        """Say why nothing can be served."""
        self.say(failed(error))

    def _need(self, memory_bytes: int) -> None:
        self.say({"need": {"memory_bytes": memory_bytes}})


class Parent(Pipe):
    """Who started this process: it gives room, is told how far the load is, and is not outlived."""

    def __init__(self, pipe: TextIO) -> None:
        super().__init__(pipe)
        self._lines = threading.Semaphore(0)

    def ask_for(self, memory_bytes: int) -> None:
        """Return once so much memory may be taken; where it may not, the parent ends this process."""
        self._need(memory_bytes)
        self._lines.acquire()

    def leave_with_it(self, directory: Path, leave: Callable[[int], Any] = os._exit) -> threading.Thread:
        """From now on end, and remove `directory`, when the parent closes standard input or ends however suddenly."""
        watcher = threading.Thread(target=self._follow, args=(directory, leave), daemon=True)
        watcher.start()
        return watcher

    def _follow(self, directory: Path, leave: Callable[[int], Any]) -> None:
        """Standard input brings a line for `ask_for`, or its end."""
        while os.read(0, 4096):
            self._lines.release()
        shutil.rmtree(directory, ignore_errors=True)
        leave(0)
