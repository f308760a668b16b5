"""The commands about the models on this machine: which there are, fetching and forgetting them, what can run."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medserve.cli import configured, options, terminal
from medserve.errors import InvalidRequest

if TYPE_CHECKING:
    from medserve.settings import ModelSpec, Settings


def ls() -> None:
    """List the declared models and the workflows, and say why a workflow cannot be used. The exit code is then 2.

    \b
    Example:
      medserve ls
    """
    from medserve import workflows
    from medserve.hub.store import Store

    settings = configured.settings()
    models = [
        (spec.name, spec.engine, _weights(spec), _marks(spec, settings), _where(spec.path)) for spec in settings.models
    ]
    found = workflows.known(settings.workflow_folder)
    known = [(w.name, w.takes, w.summary) for w in found.workflows.values()]
    typer.echo(terminal.table(("MODEL", "ENGINE", "WEIGHTS", "", "WHERE"), models))
    typer.echo()
    typer.echo(terminal.table(("WORKFLOW", "TAKES", "ABOUT"), known))
    terminal.tell([*found.faults, *Store(settings.home).kept().faults])


def _marks(spec: "ModelSpec", settings: "Settings") -> str:
    marks = {"default": spec.name == settings.default, "pinned": spec.pinned, "preloaded": spec.preload}
    return ", ".join(mark for mark, holds in marks.items() if holds)


def _weights(spec: "ModelSpec") -> str:
    """The weights' name and their size, with the vision part's."""
    if spec.path is None:
        return "-"
    try:
        return f"{spec.path.name} ({sum(_bytes(path) for path in (spec.path, spec.projector) if path) / 2**20:.1f} MiB)"
    except OSError:
        return f"{spec.path.name} (missing)"


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size


def _where(path: Path | None) -> str:
    """The folder that weights are in; in the user's home, as the user would write it."""
    if path is None:
        return ""
    folder = (path if path.is_dir() else path.parent).absolute()
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="4b, 1.5-4b, 27b or 27b-text; a repository of the hub, OWNER/NAME; a folder; a GGUF file.",
            show_default=False,
        ),
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            metavar="KIND",
            help="Which GGUF file: Q4_K_M, Q8_0, BF16, ...; Q4_K_M when left out.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Literal["gguf", "safetensors"] | None,
        typer.Option("--format", help="Which files to take; GGUF where there are any.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="A branch, a tag or a commit of the repository.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the model; by what it is when left out.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a model, check it, and know it by name from then on. A download that broke off goes on where it ended.

    Files from the hub go into its usual cache (HF_HOME says where), and files of one's own stay where they are. For
    models whose terms have to be accepted, accept them on the page that is told and set HF_TOKEN. Only GGUF and
    safetensors are taken: no pickles, no code. The model's name is printed.

    \b
    Examples:
      medserve pull 1.5-4b
      medserve pull 4b --quant Q8_0
      medserve pull unsloth/medgemma-27b-it-GGUF:Q3_K_M --name big
      medserve pull google/medgemma-4b-it --revision main
      medserve pull models/medgemma-4b-it-Q8_0.gguf
    """
    from medserve.hub.display import Display
    from medserve.hub.pulling import Means, Wish
    from medserve.hub.pulling import pull as fetch

    with Display(quiet) as display:
        model = fetch(Wish(what, format_, quant, revision, name), Means(configured.settings(), display, display.tell))
    typer.echo(model.name)


def rm(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The pulled model's name; `ls` shows them.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a pulled model and delete what was downloaded for it.

    Files of one's own, and files that another pulled model needs, stay. A running service keeps what it has loaded.

    \b
    Example:
      medserve rm medgemma-4b-q4_k_m --yes
    """
    from medserve.hub.pulling import remove
    from medserve.hub.store import Store
    from medserve.residency import size

    settings = configured.settings()
    model = Store(settings.home).require(name)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("nobody can be asked here; say that it is meant with --yes", param="yes")
        what = f"delete its files ({size(model.size)})" if model.repo else "forget it; its files stay"
        typer.confirm(f"{model.name}: {what}?", abort=True, err=True)
    _, freed = remove(model.name, settings)
    left = f"{size(freed)} are free again" if model.repo else "its files stay where they are"
    typer.echo(f"{model.name} is removed; {left}", err=True)


def doctor() -> None:
    """Say in plain words what this machine can run, and what stands in the way and how to mend it.

    Each model's engine looks at its settings and files as it would before it starts, and starts nothing. Servers that
    models are behind are asked who they are. The exit code is 3 when something stands in the way.

    \b
    Example:
      medserve doctor
    """
    from medserve.doctor import examine_machine

    checks = asyncio.run(examine_machine(configured.settings()))
    typer.echo(
        terminal.table((), [("ok" if check.good else "OBSTACLE", f"{check.what}: {check.words}") for check in checks])
    )
    if not all(check.good for check in checks):
        raise typer.Exit(3)
