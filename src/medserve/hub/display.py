"""What people see of a pull: a bar with speed and time left on a terminal, a line for each file anywhere else."""

from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from medserve.residency import size


class Display:
    """An `Onlooker` that writes to standard error, and nothing at all when it is quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if console.is_terminal and not self._quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, doing: str, total: int) -> None:
        """A file begins; see `Onlooker`."""
        if self._bar is not None:
            self._task = self._bar.add_task(doing, total=total)
        else:
            self.tell(f"{doing} ({size(total)})")

    def advance(self, number: int) -> None:
        """So many bytes more; see `Onlooker`."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, number)

    def tell(self, words: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(words, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            typer.echo(words, err=True)
