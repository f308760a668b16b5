"""What people see of every command alike: faults in red on standard error, tables that a script may read too."""

import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import typer


def fault(words: object) -> None:
    """What went wrong, as one line of standard error."""
    typer.secho(f"error: {words}", fg="red", err=True)


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
