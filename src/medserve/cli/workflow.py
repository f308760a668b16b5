"""`medserve workflow`: begin, check and show workflows of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from medserve.cli import configured, terminal

app = typer.Typer(no_args_is_help=True, help="Write a workflow of your own as a file, and look at workflows.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The workflow's name: small letters, digits and -.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write it to this file instead of the folder of workflows.", show_default=False),
    ] = None,
) -> None:
    """Write a file to start from: a workflow that is complete, with remarks on what else a file can say.

    It lies in the folder of workflows (`workflows` in the settings), where it can be run at once.

    \b
    Example:
      medserve workflow new stones
    """
    from medserve import outline

    settings = configured.settings()
    file = out or settings.workflow_folder / f"{name}.yaml"
    outline.begin(name, file, settings.workflow_folder)
    typer.echo(f"written: {file}", err=True)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Workflow files.", show_default=False)],
) -> None:
    """Check workflow files and tell every fault with its line. The exit code is 2 when there is one.

    \b
    Example:
      medserve workflow check stones.yaml
    """
    from medserve import outline

    faults: list[str] = []
    for file in files:
        found = outline.faults(file, configured.settings().workflow_folder)
        faults += found
        if not found:
            typer.echo(outline.in_a_line(file))
    terminal.tell(faults)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The workflow's name; `medserve ls` shows them.")],
) -> None:
    """Show a workflow: what it takes, its labels and options, and its questions word for word.

    A workflow that is a file is shown as that file.

    \b
    Example:
      medserve workflow show histology
    """
    from medserve import outline

    typer.echo(outline.as_text(name, configured.settings().workflow_folder))
