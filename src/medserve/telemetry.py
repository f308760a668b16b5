"""Logs say what the service did and never to whom: names of models, numbers and codes, no prompts, no files."""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

DEEPEST = 6
"""Frames of an error's trace that are logged, the innermost last."""


def configure(level: str) -> None:
    """Send logs of `level` and above to standard error: for people on a terminal, as JSON lines otherwise.

    The logs of libraries come the same way, so that no library's habit of printing what it was given gets around it.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    person = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if person else structlog.processors.JSONRenderer()
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
    formatter = structlog.stdlib.ProcessorFormatter(processors=[_bare, renderer], foreign_pre_chain=shared)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs what it is sent


def _bare(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in ("_record", "_from_structlog"):
        event.pop(name, None)
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
