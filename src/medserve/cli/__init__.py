"""The commands: a report in one line, a service in another, and plain words about what this machine can do.

Exit codes: 0 done, 1 unexpected failure, a replay that differs or a build that did not pass, 2 bad input or usage,
3 the model or its engine failed, 4 (with --strict) a report needs review, 130 stopped by Ctrl-C.

Each module is a family of commands. Every command imports what it needs when it runs, so that `medserve --help`
answers at once.
"""

from typing import Annotated

import typer

from medserve import __version__
from medserve.cli import converting, examining, jobs, keys, schemas, service, terminal, verifying, weights, workflow
from medserve.errors import InvalidRequest, MedserveError

app = typer.Typer(
    name="medserve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line; every foreseen error is one line and an exit code."""
    terminal.prepare()
    try:
        app()
    except InvalidRequest as error:
        terminal.fail(error.message, 2)
    except MedserveError as error:
        terminal.fail(error.message, 3)
    except OSError as error:  # a full disk, a folder that is not ours
        terminal.fail(": ".join(str(said) for said in (error.filename, error.strerror or error) if said), 1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medserve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Medical images in, checked reports out, on your own machine. Research use only."""


for _command in (  # in the order in which --help shows them
    examining.run,
    converting.inspect,
    converting.deidentify,
    converting.export,
    examining.leaflet,
    examining.evaluate,
    verifying.verify,
    examining.replay,
    service.serve,
    weights.ls,
    weights.pull,
    weights.rm,
    service.ps,
    service.load,
    service.stop,
    weights.doctor,
):
    app.command()(_command)
for _name, _family in (("workflow", workflow), ("jobs", jobs), ("schemas", schemas), ("keys", keys)):
    app.add_typer(_family.app, name=_name)
