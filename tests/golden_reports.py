"""Whole reports as they were when somebody last looked at them, in tests/golden."""

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from medserve.reports import Report

Fields = dict[str, Any]
FOLDER = Path(__file__).parent / "golden"
RUN: Fields = {"id": True, "created": True, "seconds": True, "provenance": {"medserve"}}
"""What differs from run to run."""
PICTURES: Fields = {"conclusion": {"figures": {"__all__": {"png"}}}}
"""What differs between libraries that write PNG."""


def steady(made: Report, *, pictures: bool = True) -> Any:
    """A report as JSON, without what differs from run to run, and without its figures' bytes if they are not wanted."""
    return json.loads(made.model_dump_json(exclude=RUN if pictures else RUN | PICTURES))


def kept(name: str) -> Any:
    """The report of that name as it was last looked at."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def keep(name: str, making: Coroutine[Any, Any, Any]) -> None:
    """Write the report of that name again."""
    (FOLDER / f"{name}.json").write_text(json.dumps(asyncio.run(making), indent=2) + "\n", encoding="utf-8")
