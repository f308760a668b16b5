"""A worker's side of the protocol of `medserve.process`: it tells, asks for memory, and leaves with its parent."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


class Parent:
    """Who started this process: it gives room, is told how far the load is, and is not outlived."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe
        self._lines = threading.Semaphore(0)

    @classmethod
    def taken(cls) -> "Parent":
        """The parent at standard output, out of reach of native code that prints: that goes to standard error."""
        pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        return cls(pipe)

    def say(self, what: dict[str, Any]) -> None:
        """One line."""
        self._pipe.write(json.dumps(what) + "\n")
        self._pipe.flush()

    def ask_for(self, memory_bytes: int) -> None:
        """Return once so much memory may be taken; where it may not, the parent ends this process."""
        self.say({"need": {"memory_bytes": memory_bytes}})
        self._lines.acquire()

    def tell(self, stage: str, done: float | None = None, *, reads: int = 0) -> None:
        """Say what is done now, and which share of it is, 0 to 1, or how many bytes of files it will read."""
        self.say({"progress": {"stage": stage, "done": done, "reads": reads}})

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
