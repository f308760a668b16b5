"""Logs say what the service did and never to whom: names of models, numbers and codes, no prompts, no files."""

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from medserve.console import coloured

DEEPEST = 6
"""Frames of an error's trace that are logged, the innermost last."""
FIXED_WORDS = frozenset({"uvicorn.error"})
"""Libraries whose warnings and errors are constant texts; any other library's may quote what it was given."""

log = structlog.get_logger()


def configure(level: str) -> None:
    """Send logs of `level` and above to standard error: for people on a terminal, as JSON lines otherwise.

    Warnings and errors of libraries come the same way: by the library's name and the place in its code, without its
    words. asyncio's would show a failed task's exception, a decoder's the value that it could not read.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    person = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer(colors=coloured()) if person else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_words,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[_bare, renderer], foreign_pre_chain=[*shared, _without_a_librarys_words]
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of every odd byte that it is sent


def guard_process() -> None:
    """Send what Python itself would print, warnings and the ends of threads and of the program, through the log."""
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: log.error("process.failed", exc_info=(kind, error, trace))
    sys.unraisablehook = lambda found: log.error("process.unraisable", exc_info=found.exc_value)
    threading.excepthook = lambda found: log.error("thread.failed", exc_info=found.exc_value)


def _bare(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in ("_record", "_from_structlog"):
        event.pop(name, None)
    return event


def _without_a_librarys_words(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record: logging.LogRecord = event["_record"]
    event["library"] = record.name
    if record.name not in FIXED_WORDS:
        event["event"] = "library.spoke"
        event["said_at"] = f"{record.filename}:{record.lineno}"
    return event


def _without_words(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception by its kind and its place; its words are left out, because they may quote a prompt or a file."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["at"] = _place(error.__traceback__)
    return event


def _place(trace: TracebackType | None) -> str:
    frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
    return " > ".join(frames[-DEEPEST:])
