"""What people see of every command alike: faults on standard error, tables that a script may read too."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import typer

from medserve.console import fault

__all__ = ["fail", "fault", "prepare", "table", "tell"]


def prepare() -> None:
    """Make the standard streams fit for any words, and put nothing in the place of those that were closed.

    Otherwise the next file that is opened, the database above all, would take their place and what is printed there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def fail(message: str, code: int) -> NoReturn:
    """Tell a fault and end with this exit code."""
    fault(message)
    sys.exit(code)


def tell(faults: Iterable[object]) -> None:
    """Each fault on a line of standard error, and the exit code that belongs to them."""
    told = list(faults)
    for one in told:
        fault(one)
    if told:
        raise typer.Exit(2)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, never cut: what reads them may be a script."""
    lines = [head, *rows] if head else rows
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
