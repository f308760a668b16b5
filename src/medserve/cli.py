"""The commands: a report in one line, a service in another, and plain words about what this machine can do.

Exit codes: 0 done, 1 unexpected failure or a replay that differs, 2 bad input or usage, 3 the model or its engine
failed, 4 (with --strict) a report needs review.

Every command imports what it needs when it runs, so that `medserve --help` answers at once.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from medserve import __version__
from medserve.errors import EngineError, InvalidRequest, MedserveError, SourceFailed

if TYPE_CHECKING:
    from socket import socket

    from medserve.imaging.material import Wanted
    from medserve.inspection import Inspected
    from medserve.reports import Report
    from medserve.settings import Settings

app = typer.Typer(
    name="medserve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A declared model's name, or a GGUF file.", show_default=False)
]
ProjectorOption = Annotated[
    Path | None, typer.Option("--mmproj", help="The vision part of a GGUF file; found beside it when left out.")
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Files, folders, zip or tar archives, or references (dicomweb:NAME/studies/...); each is a study.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=256,
        max=131_072,
        help="Tokens of context of a GGUF file given with --model; 85 slices need about 22,000.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=512, help="Threads for a GGUF file given with --model.")
]
ModalityOption = Annotated[str, typer.Option("--modality", help="For files that do not say it: CT, MR, DX, SM, ...")]
PatchesOption = Annotated[int, typer.Option("--patches", help="Of a slide: at most so many patches.")]
MagnificationOption = Annotated[
    float, typer.Option("--magnification", help="Of a slide: 5, 10 or 20; 0 is 10 or what there is.")
]
SlideSeedOption = Annotated[int, typer.Option("--slide-seed", help="Of a slide: which patches are drawn.")]
MppOption = Annotated[
    float, typer.Option("--mpp", help="Of a slide: micrometres a pixel, where it does not say; 0 is what it says.")
]
Together = Annotated[bool, typer.Option("--together", help="All paths are one study, such as a series' files.")]


def main() -> None:
    """Run the command line; every foreseen error is one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except InvalidRequest as error:
        _fail(error.message, 2)
    except MedserveError as error:
        _fail(error.message, 3)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"error: {message}", fg="red", err=True)
    sys.exit(code)


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


@app.command()
def run(
    workflow: Annotated[
        str,
        typer.Argument(metavar="WORKFLOW", help="The workflow's name; `medserve ls` shows them.", show_default=False),
    ],
    paths: Studies,
    together: Together = False,
    model: ModelOption = "",
    mmproj: ProjectorOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the workflow; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON report a line instead of text.")] = False,
    folder: Annotated[Path | None, typer.Option("--out", help="Also write each report here, as JSON and text.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy and repeatable.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed for temperatures above 0.")] = None,
    modality: ModalityOption = "",
    patches: PatchesOption = 125,
    magnification: MagnificationOption = 0.0,
    slide_seed: SlideSeedOption = 0,
    mpp: MppOption = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 when a report needs review.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Run a workflow on studies and print the reports.

    A study that cannot be read is told of on standard error and the others go on; the exit code is then 2.
    --out names files by workflow, content of the study, model and options, so that a report is replaced only by the
    same question asked again.

    \b
    Examples:
      medserve run dermoscopy lesion.jpg
      medserve run dermoscopy *.jpg --json --out reports/
      medserve run dermoscopy series/ export.zip
      medserve run dermoscopy lesion.jpg --option signs=true --model medgemma-4b-it-Q8_0.gguf
    """
    from medserve import batch, telemetry, workflows
    from medserve.generation import Sampling

    settings = _with_model(_settings(), model, mmproj, context, threads)
    sampling = Sampling(temperature=temperature, seed=seed)
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    order = batch.Order(workflows.find(workflow), _options(option or []), sampling, as_json, folder, wanted)
    order.workflow.chosen(order.options)
    if folder is not None:
        _make(folder)
    telemetry.configure("critical")  # every error is told in words of its own
    tally = asyncio.run(batch.examine_all(order, _studies(paths, together), settings, quiet=quiet))
    if tally.failed or tally.refused:
        raise typer.Exit(3 if tally.failed else 2)
    if strict and tally.review:
        raise typer.Exit(4)


def _wanted(modality: str, patches: int, magnification: float, slide_seed: int, mpp: float) -> "Wanted":
    from medserve import inspection
    from medserve.imaging.material import Wanted

    return Wanted(inspection.modality(modality) if modality else None, patches, magnification, slide_seed, mpp)


def _studies(paths: Sequence[str], together: bool) -> list[tuple[str, ...]]:
    return [tuple(paths)] if together else [(path,) for path in paths]


@app.command()
def inspect(
    paths: Studies,
    together: Together = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write what the model sees here, as PNG; of one study only.")
    ] = None,
    modality: ModalityOption = "",
    patches: PatchesOption = 125,
    magnification: MagnificationOption = 0.0,
    slide_seed: SlideSeedOption = 0,
    mpp: MppOption = 0.0,
) -> None:
    """Show what a model would see of studies: facts, warnings and a contact sheet. No model is needed.

    \b
    Examples:
      medserve inspect chest.dcm --sheet seen.png
      medserve inspect series/ --json
      medserve inspect slide.svs --magnification 20 --patches 16 --sheet patches.png
    """
    from medserve import telemetry

    studies = _studies(paths, together)
    if sheet is not None and len(studies) > 1:
        raise InvalidRequest("--sheet shows one study; give one path, or --together", param="sheet")
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    telemetry.configure("critical")
    refused, failed = asyncio.run(_inspect_all(studies, _settings(), wanted, as_json, sheet))
    if refused or failed:
        raise typer.Exit(3 if failed else 2)


async def _inspect_all(
    studies: Sequence[Sequence[str]], settings: "Settings", wanted: "Wanted", as_json: bool, sheet: Path | None
) -> tuple[int, int]:
    """Print each study's inspection; how many were refused, and how many a server or the decoder failed on."""
    from medserve import inspection
    from medserve.batch import reading

    refused = failed = 0
    for names in studies:
        try:
            found = await inspection.shown(await reading(names, settings, wanted))
        except (InvalidRequest, EngineError, SourceFailed) as error:
            typer.secho(f"error: {names[0]}: {error.message}", fg="red", err=True)
            refused += isinstance(error, InvalidRequest)
            failed += not isinstance(error, InvalidRequest)
            continue
        typer.echo(found.inspection.model_dump_json() if as_json else inspection.as_text(found.inspection) + "\n")
        if sheet is not None:
            _write_sheet(found, sheet)
    return refused, failed


def _write_sheet(found: "Inspected", sheet: Path) -> None:
    from medserve import inspection

    try:
        written = inspection.save(found, sheet)
    except OSError as error:
        raise InvalidRequest(f"{sheet} cannot be written: {error.strerror}", param="sheet") from None
    for file in written:
        typer.echo(f"written: {file}", err=True)


@app.command()
def deidentify(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="DICOM files, folders, zip or tar archives.", show_default=False),
    ],
    folder: Annotated[Path, typer.Option("--out", help="The copies are written here.", show_default=False)],
) -> None:
    """Write copies of DICOM files without identity, by the basic profile of DICOM PS3.15.

    UIDs are new, and the same for what belongs together among the files of one call. A file with text that may be
    drawn into the picture is told of and not copied; the exit code is then 2. Names of the copies are made of their
    UIDs. This needs an extra: pip install 'medserve[deidentify]'.

    \b
    Example:
      medserve deidentify series/ --out copies/
    """
    from medserve import copies

    _make(folder)
    done = copies.write(paths, folder, _settings().limits)
    for called, reason in done.refused:
        typer.secho(f"error: {called}: {reason}", fg="red", err=True)
    if done.others:
        typer.echo(f"{done.others} files in folders or archives are no DICOM files and were left out", err=True)
    typer.echo(f"{done.written} copies are in {folder}")
    if done.refused:
        raise typer.Exit(2)


@app.command()
def replay(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report that `run --out` or the HTTP API wrote, as JSON.")
    ],
    files: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="The study that the report is about, as it was given.", show_default=False),
    ],
    modality: ModalityOption = "",
    patches: PatchesOption = 125,
    magnification: MagnificationOption = 0.0,
    slide_seed: SlideSeedOption = 0,
    mpp: MppOption = 0.0,
) -> None:
    """Run a report's workflow again with its recorded answers, and say whether the same report comes out.

    This needs no model: it checks that reading, cleaning and concluding still do what they did. What `run` was told
    about the files has to be told again.

    \b
    Example:
      medserve replay reports/dermoscopy-0f3a1c52e9b07d44-5d1c09aa.json lesion.jpg
    """
    from medserve.reports import as_text

    recorded = _recorded(report)
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    try:
        again = asyncio.run(_replay(recorded, files, _settings(), wanted))
    except EngineError as error:
        _fail(f"the replay differs: {error.message}", 1)
    if not recorded.same_answers(again):
        typer.echo(f"{as_text(again)}\n")
        _fail("the replayed report, shown above, differs from the recorded one", 1)
    typer.echo(f"the same report word for word: {len(again.steps)} steps, study {again.study.sha256[:16]}")


def _recorded(file: Path) -> "Report":
    from pydantic import ValidationError

    from medserve.reports import Report

    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", param="report") from None
    except ValidationError:
        raise InvalidRequest(f"{file} is not a report of this version of medserve", param="report") from None


async def _replay(recorded: "Report", files: Sequence[str], settings: "Settings", wanted: "Wanted") -> "Report":
    from medserve.batch import reading
    from medserve.replay import replayed
    from medserve.workflows import find

    wanted = replace(wanted, modality=wanted.modality or find(recorded.provenance.workflow).modality)
    return await replayed(recorded, (await reading(files, settings, wanted)).study)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless told.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    model: ModelOption = "",
    mmproj: ProjectorOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    open_to_network: Annotated[
        bool,
        typer.Option("--open-to-network", help="Allow an address that other machines reach. There are no keys yet."),
    ] = False,
) -> None:
    """Serve models and workflows over HTTP until stopped.

    \b
    Examples:
      medserve serve
      medserve serve --port 9000 --model medgemma-4b-it-Q8_0.gguf --mmproj mmproj-F16.gguf
    """
    import uvicorn

    from medserve import telemetry
    from medserve.api import create_app

    given = {"host": host, "port": port, "open_to_network": open_to_network or None}
    settings = _with_model(
        _settings(**{name: value for name, value in given.items() if value is not None}),
        model,
        mmproj,
        context,
        threads,
    )
    _check_reach(settings)
    telemetry.configure(settings.log_level)
    listener = _listener(settings)
    typer.echo(f"medserve listens at {_url(settings.host, listener.getsockname()[1])} (research use only)", err=True)
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,  # a path may hold what a caller put there
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _check_reach(settings: "Settings") -> None:
    from medserve.api.limits import is_loopback

    if not is_loopback(settings.host) and not settings.open_to_network:
        raise InvalidRequest(
            f"{settings.host} can be reached by other machines and this service has no keys; "
            "listen on 127.0.0.1, or add --open-to-network if a guarded network is meant",
            param="host",
        )


def _listener(settings: "Settings") -> "socket":
    """The socket to serve on, bound before anything is loaded: a port in use is told at once."""
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        where = _url(settings.host, settings.port)
        raise InvalidRequest(
            f"cannot listen at {where}: {error.strerror}; choose another with --port or --host", param="port"
        ) from None


@app.command()
def ls() -> None:
    """List the declared models and the workflows.

    \b
    Example:
      medserve ls
    """
    from medserve import workflows

    settings = _settings()
    models = [
        (spec.name, spec.engine, _weights(spec.path), "default" if spec.name == settings.default else "")
        for spec in settings.models
    ]
    known = [(w.name, w.modality.name.lower(), w.summary) for w in workflows.workflows().values()]
    typer.echo(_table(("MODEL", "ENGINE", "WEIGHTS", ""), models))
    typer.echo()
    typer.echo(_table(("WORKFLOW", "TAKES", "ABOUT"), known))


@app.command()
def ps(
    url: Annotated[
        str,
        typer.Option(help="Where the service listens; your settings' host and port by default.", show_default=False),
    ] = "",
) -> None:
    """Show the models of the running service and the state of each.

    \b
    Example:
      medserve ps --url http://127.0.0.1:9000
    """
    import httpx

    settings = _settings()
    base = (url or _url(settings.host, settings.port)).rstrip("/")
    try:
        answer = httpx.get(f"{base}/v1/models", timeout=5, trust_env=False).raise_for_status().json()
        rows = [_running(model) for model in answer["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, TypeError, ValueError):
        _fail(f"no medserve answers at {base}; start one with: medserve serve", 3)
    typer.echo(_table(("MODEL", "STATE", "ENGINE", "LOADED IN", "NOTE"), rows))


def _running(model: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = model["load_seconds"]
    loaded = "-" if seconds is None else f"{seconds:.1f} s"
    return model["id"], model["state"], model["engine"], loaded, model["error"] or model["blind"] or ""


@app.command()
def doctor() -> None:
    """Say in plain words what this machine can run, and what is missing.

    The exit code is 3 when something that is needed is missing.

    \b
    Example:
      medserve doctor
    """
    from medserve.doctor import examine_machine

    checks = examine_machine(_settings())
    typer.echo(_table((), [("ok" if check.good else "MISSING", f"{check.what}: {check.words}") for check in checks]))
    if not all(check.good for check in checks):
        raise typer.Exit(3)


def _settings(**given: Any) -> "Settings":
    """The settings, with what was given on the command line; raises InvalidRequest that names the setting at fault."""
    from tomllib import TOMLDecodeError

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from medserve.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "models"
        raise InvalidRequest(f"setting {place}: {first['msg']}", param=place) from None
    except (SettingsError, TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the settings cannot be read: {error}", param="settings") from None


def _with_model(
    settings: "Settings", model: str, projector: Path | None, context: int | None, threads: int | None
) -> "Settings":
    """The settings with `model` as the default: a declared name, or a GGUF file that is declared by being named."""
    from medserve.settings import ModelSpec

    is_file = model.lower().endswith(".gguf")
    for name, value in (("mmproj", projector), ("context", context), ("threads", threads)):
        if value is not None and not is_file:
            raise InvalidRequest(
                f"--{name} belongs to a GGUF file given with --model; of a declared model it is set in the settings",
                param=name,
            )
    if not model:
        return settings
    if not is_file:
        return _with_declared(settings, model)
    path = Path(model)
    for file in (path, projector):
        if file is not None and not file.is_file():
            raise InvalidRequest(f"there is no file {file}", param="model")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem)
    spec = ModelSpec(name=name, path=path, projector=projector, threads=threads)
    spec = spec.model_copy(update={"context": context}) if context is not None else spec
    others = tuple(other for other in settings.models if other.name != name)
    return settings.model_copy(update={"models": (spec, *others), "default_model": name})


def _with_declared(settings: "Settings", model: str) -> "Settings":
    if model not in [spec.name for spec in settings.models]:
        known = ", ".join(spec.name for spec in settings.models)
        raise InvalidRequest(f"no model is called {model!r}; declared are {known}, or give a .gguf file", param="model")
    return settings.model_copy(update={"default_model": model})


def _options(pairs: Iterable[str]) -> dict[str, Any]:
    """Options from name=value; a value that is JSON is that (true, 3), any other is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise InvalidRequest(f"an option is given as name=value, not {pair!r}", param="option")
        if name in options:
            raise InvalidRequest(f"the option {name!r} is given more than once", param="option")
        try:
            options[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            options[name] = value
    return options


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"nothing can be written to {folder}: {error.strerror}", param="out") from None


def _url(host: str, port: int) -> str:
    """Where a client on this machine reaches a service that listens at `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://[{reached.strip('[]')}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _weights(path: Path | None) -> str:
    if path is None:
        return "-"
    try:
        return f"{path.name} ({path.stat().st_size / 2**20:.1f} MiB)"
    except OSError:
        return f"{path.name} (missing)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, never cut: what reads them may be a script."""
    lines = [head, *rows] if head else rows
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
