"""The commands: a report in one line, a service in another, and plain words about what this machine can do.

Exit codes: 0 done, 1 unexpected failure or a replay that differs, 2 bad input or usage, 3 the model or its engine
failed, 4 (with --strict) a report needs review.

Every command imports what it needs when it runs, so that `medserve --help` answers at once.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from medserve import __version__
from medserve.errors import EngineError, InvalidRequest, MedserveError, SourceFailed

if TYPE_CHECKING:
    from socket import socket

    from medserve.evaluation import Evaluation, Labelled, Order, Outcome
    from medserve.imaging.material import Wanted
    from medserve.inspection import Inspected
    from medserve.keys import Key, Scope
    from medserve.leaflets import Leaflet
    from medserve.remote import Service
    from medserve.reports import Report
    from medserve.settings import ModelSpec, Settings

app = typer.Typer(
    name="medserve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A declared or pulled model's name, a GGUF file, a folder, or a server's address.",
        show_default=False,
    ),
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
UrlOption = Annotated[
    str,
    typer.Option(
        "--url", help="Where the service listens; your settings' host and port by default.", show_default=False
    ),
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
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="json, text, markdown, html, pdf, fhir or dicom-sr; repeatable with --out, which also gets these.",
        ),
    ] = None,
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
      medserve run dermoscopy lesion.jpg --format pdf > report.pdf
      medserve run dermoscopy lesion.jpg --option signs=true --model medgemma-4b-it-Q8_0.gguf
    """
    from medserve import batch, telemetry, workflows
    from medserve.generation import Sampling

    settings = _with_model(_settings(), model, mmproj, context, threads)
    sampling = Sampling(temperature=temperature, seed=seed)
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    formats = _formats(format_ or [], folder, as_json)
    found = workflows.find(workflow, settings.workflow_folder)
    order = batch.Order(found, _options(option or []), sampling, as_json, folder, wanted, formats)
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


def _formats(names: Sequence[str], folder: Path | None, as_json: bool) -> tuple[str, ...]:
    """The formats by name, each once; without a folder there is one, and it goes to standard output."""
    from medserve import exports

    found = tuple(dict.fromkeys(exports.find(name).name for name in names))
    if found and folder is None and (len(found) > 1 or as_json):
        raise InvalidRequest("standard output takes one format; give --out for several", param="format")
    return found


@app.command()
def export(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report that `run --out` or the HTTP API wrote, as JSON.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="The study that the report is about, for its pictures; dicom-sr needs it.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="json, text, markdown, html, pdf, fhir or dicom-sr.")
    ] = "html",
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this file instead of standard output.")] = None,
    modality: ModalityOption = "",
    patches: PatchesOption = 125,
    magnification: MagnificationOption = 0.0,
    slide_seed: SlideSeedOption = 0,
    mpp: MppOption = 0.0,
) -> None:
    """Write a report in another format. No model is needed.

    With the study's files its pictures are part of html and pdf; they have to be the very ones that the report is
    about. dicom-sr copies from the DICOM files whose study it is. What `run` was told about the files has to be told
    again.

    \b
    Examples:
      medserve export report.json --format markdown
      medserve export report.json lesion.jpg --format pdf --out report.pdf
      medserve export report.json series/ --format dicom-sr --out report.dcm
    """
    from medserve import batch, exports

    recorded = _recorded(report)
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    wanted = replace(wanted, modality=wanted.modality or recorded.study.modality)
    name = exports.find(format_).name
    content = asyncio.run(batch.exported(recorded, name, files or (), _settings(), wanted))
    if out is None:
        typer.echo(content, nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror}", param="out") from None
    typer.echo(f"written: {out}", err=True)


@app.command()
def leaflet(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report that `run --out` or the HTTP API wrote, as JSON.")
    ],
    level: Annotated[int, typer.Option(min=1, max=16, help="The school grade of the readers.")] = 6,
    model: ModelOption = "",
    mmproj: ProjectorOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON: what was left out, and why.")] = False,
) -> None:
    """Tell a report's findings to the patient in plain words, and nothing that is not in the report.

    Each sentence of the model's is held against the finding it is about; what the finding does not support is left
    out and shown as such. Where there is no finding there is no text: the exit code is then 2. A person has to read
    it before a patient does.

    \b
    Examples:
      medserve leaflet reports/dermoscopy-0f3a1c52e9b07d44-5d1c09aa.json
      medserve leaflet report.json --level 8 --json
    """
    from medserve import leaflets, telemetry

    recorded = _recorded(report)
    if not leaflets.tellable(recorded)[0]:
        raise leaflets.nothing_to_tell()
    telemetry.configure("critical")
    made = asyncio.run(_explained(recorded, _with_model(_settings(), model, mmproj, context, threads), level))
    typer.echo(made.model_dump_json() if as_json else leaflets.as_text(made))


async def _explained(recorded: "Report", settings: "Settings", level: int) -> "Leaflet":
    from medserve import leaflets
    from medserve.models import Models

    models = Models(settings)
    try:
        return await leaflets.explain(recorded, await models.get().ready(), level)
    finally:
        await models.close()


@app.command()
def evaluate(
    workflow: Annotated[
        str,
        typer.Argument(metavar="WORKFLOW", help="The workflow's name; `medserve ls` shows them.", show_default=False),
    ],
    pictures: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The pictures; a folder in it is one study.", show_default=False),
    ],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="What is true of them, as CSV; FOLDER/labels.csv when left out.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="The column of the pictures' names, if it is called oddly.")] = "",
    label_column: Annotated[str, typer.Option(help="The column of what is true, if it is called oddly.")] = "",
    finding: Annotated[
        str, typer.Option("--finding", help="Hold this finding against the labels, in place of the workflow's label.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="So many studies, drawn always alike.")] = None,
    calibrate: Annotated[
        Literal["temperature", "platt"] | None,
        typer.Option("--calibrate", help="Fit a calibration, and keep it if it helps on studies it has not seen."),
    ] = None,
    controls: Annotated[str, typer.Option("--controls", help="blank, swapped, paraphrase, with commas.")] = "",
    model: ModelOption = "",
    mmproj: ProjectorOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the workflow; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object instead of text.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Also write it here: JSON, text, HTML, and a CSV of the studies.")
    ] = None,
    modality: ModalityOption = "",
    patches: PatchesOption = 125,
    magnification: MagnificationOption = 0.0,
    slide_seed: SlideSeedOption = 0,
    mpp: MppOption = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Measure a workflow on labelled studies: accuracy with intervals, beside what is reached without looking.

    Every study is examined as `run` does it; none that is refused or not answered is left out of the numbers. Studies
    are told by the row of the table and by the hash of their content, and never by the names of files. The exit code
    is 3 when the model failed on one, 0 otherwise, however wrong the answers are.

    \b
    Examples:
      medserve evaluate dermoscopy pictures/
      medserve evaluate histology tiles/ --labels truth.csv --out evaluation/
      medserve evaluate dermoscopy pictures/ --calibrate temperature
      medserve evaluate chest-xray films/ --finding "Heart enlarged" --controls blank,swapped
    """
    from medserve import evaluation, telemetry, workflows
    from medserve.evaluation import pages

    settings = _with_model(_settings(), model, mmproj, context, threads)
    options = _options([*(option or []), *([f"controls={controls}"] if controls else [])])
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    order = evaluation.Order(
        workflows.find(workflow, settings.workflow_folder),
        pictures,
        table=labels,
        options=options,
        finding=finding,
        calibrate=calibrate,
        limit=limit,
        picture=image_column,
        label=label_column,
        wanted=wanted,
    ).checked()
    if folder is not None:
        _make(folder)
    telemetry.configure("critical")
    found, labelled = asyncio.run(_evaluated(order, settings, quiet))
    typer.echo(found.model_dump_json() if as_json else pages.as_text(found))
    if folder is not None:
        for file in pages.write(found, labelled, folder):
            typer.echo(f"written: {file}", err=True)
    if found.statuses["failed"]:
        raise typer.Exit(3)


async def _evaluated(order: "Order", settings: "Settings", quiet: bool) -> tuple["Evaluation", "Labelled"]:
    from medserve import evaluation
    from medserve.batch import progress_display

    with progress_display(quiet) as progress:
        progress.say("loading the model")

        def told(done: int, total: int, study: "Outcome") -> None:
            progress.say(f"{done} of {total} studies")
            if study.code is not None:
                progress.fault(f"row {study.row}: {study.status} ({study.code})")

        return await evaluation.evaluate(order, settings, told)


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
    about the files has to be told again. That the workflow has another version now, or another file, is told.

    \b
    Example:
      medserve replay reports/dermoscopy-0f3a1c52e9b07d44-5d1c09aa.json lesion.jpg
    """
    from medserve.replay import changed
    from medserve.reports import as_text

    recorded = _recorded(report)
    settings = _settings()
    wanted = _wanted(modality, patches, magnification, slide_seed, mpp)
    if note := changed(recorded, settings.workflow_folder):
        typer.echo(f"note: {note}", err=True)
    try:
        again = asyncio.run(_replay(recorded, files, settings, wanted))
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

    folder = settings.workflow_folder
    wanted = replace(wanted, modality=wanted.modality or find(recorded.provenance.workflow, folder).modality)
    return await replayed(recorded, (await reading(files, settings, wanted)).study, folder)


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
        typer.Option(
            "--open-to-network", help="Allow an address that other machines reach also while there are no keys."
        ),
    ] = False,
) -> None:
    """Serve models and workflows over HTTP until stopped.

    Once there are keys (`medserve keys add`), every request but the probes' needs one. Without keys only this machine
    is served, unless --open-to-network is given.

    \b
    Examples:
      medserve serve
      medserve serve --port 9000 --model medgemma-4b-it-Q8_0.gguf --mmproj mmproj-F16.gguf
    """
    from medserve import telemetry
    from medserve.api import create_app, server

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
    telemetry.guard_process()
    service = create_app(settings)
    listener = _listener(settings)
    typer.echo(f"medserve listens at {_url(settings.host, listener.getsockname()[1])} (research use only)", err=True)
    server.Server(server.config(settings, service)).run(sockets=[listener])


def _check_reach(settings: "Settings") -> None:
    from medserve import keys
    from medserve.api.limits import is_loopback

    if settings.admin_key_file is None and (is_loopback(settings.host) or settings.open_to_network):
        return
    if not asyncio.run(keys.any_valid(settings)):
        raise InvalidRequest(
            f"{settings.host} can be reached by other machines and there is no valid key; make one with: "
            "medserve keys add NAME, listen on 127.0.0.1, or add --open-to-network if everybody on a guarded "
            "network is meant",
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
    """List the declared models and the workflows, and say why a workflow cannot be used. The exit code is then 2.

    \b
    Example:
      medserve ls
    """
    from medserve import workflows
    from medserve.hub.store import Store

    settings = _settings()
    models = [
        (spec.name, spec.engine, _weights(spec), _marks(spec, settings), _where(spec.path)) for spec in settings.models
    ]
    found = workflows.known(settings.workflow_folder)
    known = [(w.name, w.takes, w.summary) for w in found.workflows.values()]
    typer.echo(_table(("MODEL", "ENGINE", "WEIGHTS", "", "WHERE"), models))
    typer.echo()
    typer.echo(_table(("WORKFLOW", "TAKES", "ABOUT"), known))
    _tell([*found.faults, *Store(settings.home).kept().faults])


def _tell(faults: Iterable[object]) -> None:
    """Each fault on a line of standard error, and the exit code that belongs to them."""
    told = list(faults)
    for fault in told:
        typer.secho(f"error: {fault}", fg="red", err=True)
    if told:
        raise typer.Exit(2)


def _marks(spec: "ModelSpec", settings: "Settings") -> str:
    marks = {"default": spec.name == settings.default, "pinned": spec.pinned, "preloaded": spec.preload}
    return ", ".join(mark for mark, holds in marks.items() if holds)


@app.command()
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
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
        model = fetch(Wish(what, format_, quant, revision, name), Means(_settings(), display, display.tell))
    typer.echo(model.name)


@app.command()
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

    settings = _settings()
    model = Store(settings.home).require(name)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("nobody can be asked here; say that it is meant with --yes", param="yes")
        what = f"delete its files ({size(model.size)})" if model.repo else "forget it; its files stay"
        typer.confirm(f"{model.name}: {what}?", abort=True, err=True)
    _, freed = remove(model.name, settings)
    left = f"{size(freed)} are free again" if model.repo else "its files stay where they are"
    typer.echo(f"{model.name} is removed; {left}", err=True)


@app.command()
def ps(
    url: UrlOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="What the service says, as JSON.")] = False,
) -> None:
    """Show the models of the running service: state and progress, memory, answers at work and waiting, idle time.

    A service that asks for keys is shown the one in MEDSERVE_KEY; that holds for `load` and `stop` too.

    \b
    Examples:
      medserve ps
      medserve ps --url http://127.0.0.1:9000 --json
    """
    from medserve import remote

    models = _service(url).models()
    head = ("MODEL", "STATE", "ENGINE", "MEMORY", "ANSWERING", "WAITING", "IDLE", "LOADED IN", "NOTE")
    typer.echo(json.dumps(models) if as_json else _table(head, [remote.row(model) for model in models]))


@app.command()
def load(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name; `ps` shows them.")],
    url: UrlOption = "",
    wait: Annotated[bool, typer.Option(help="Wait until it is loaded.")] = True,
) -> None:
    """Load a model of the running service, also one whose last load failed. The exit code is 3 when it fails.

    \b
    Examples:
      medserve load medgemma-4b
      MEDSERVE_KEY=ms-... medserve load medgemma-4b --url http://10.0.0.5:8080 --no-wait
    """
    for step in _service(url).loading(name, wait=wait):
        typer.echo(step, err=True)


@app.command()
def stop(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name; `ps` shows them.")],
    url: UrlOption = "",
) -> None:
    """Unload a model of the running service and give its memory back. The next request loads it again.

    A model that is answering is not unloaded; the exit code is then 3.

    \b
    Example:
      medserve stop medgemma-4b
    """
    _service(url).unload(name)
    typer.echo(f"{name} is unloaded", err=True)


workflow_app = typer.Typer(no_args_is_help=True, help="Write a workflow of your own as a file, and look at workflows.")
app.add_typer(workflow_app, name="workflow")


@workflow_app.command("new")
def workflow_new(
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

    settings = _settings()
    file = out or settings.workflow_folder / f"{name}.yaml"
    outline.begin(name, file, settings.workflow_folder)
    typer.echo(f"written: {file}", err=True)


@workflow_app.command("check")
def workflow_check(
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
        found = outline.faults(file, _settings().workflow_folder)
        faults += found
        if not found:
            typer.echo(outline.in_a_line(file))
    _tell(faults)


@workflow_app.command("show")
def workflow_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The workflow's name; `medserve ls` shows them.")],
) -> None:
    """Show a workflow: what it takes, its labels and options, and its questions word for word.

    A workflow that is a file is shown as that file.

    \b
    Example:
      medserve workflow show histology
    """
    from medserve import outline

    typer.echo(outline.as_text(name, _settings().workflow_folder))


jobs_app = typer.Typer(no_args_is_help=True, help="Look at the jobs of the running service, and stop them.")
app.add_typer(jobs_app, name="jobs")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name; `jobs ls` shows them.")]
JOB_HEAD = ("JOB", "KIND", "STATE", "DONE", "STEP", "TOOK", "NOTE")


@jobs_app.command("ls")
def jobs_ls(
    url: UrlOption = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="The latest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="What the service says, as JSON.")] = False,
) -> None:
    """List your jobs, newest first: state, progress, and why one failed.

    A service that asks for keys is shown the one in MEDSERVE_KEY, and tells of the jobs of that key.

    \b
    Example:
      medserve jobs ls
    """
    from medserve import remote

    jobs = _service(url).jobs(limit)
    typer.echo(json.dumps(jobs) if as_json else _table(JOB_HEAD, [remote.job_row(job) for job in jobs]))


@jobs_app.command("show")
def jobs_show(job: JobArgument, url: UrlOption = "") -> None:
    """Show one of your jobs, as JSON.

    \b
    Example:
      medserve jobs show job_0f3a1c52e9b07d445d1c09aa0f3a1c52
    """
    typer.echo(json.dumps(_service(url).job(job), indent=2))


@jobs_app.command("cancel")
def jobs_cancel(job: JobArgument, url: UrlOption = "") -> None:
    """Stop one of your jobs. What a batch has done so far stays; a job that has ended stays as it is.

    \b
    Example:
      medserve jobs cancel job_0f3a1c52e9b07d445d1c09aa0f3a1c52
    """
    from medserve import remote

    typer.echo(_table(JOB_HEAD, [remote.job_row(_service(url).cancel(job))]))


def _service(url: str) -> "Service":
    """The service at `url`, else where the settings say that it listens, asked with their key."""
    from medserve.remote import Service

    settings = _settings()
    return Service(url or _url(settings.host, settings.port), settings.key.get_secret_value())


schemas_app = typer.Typer(no_args_is_help=True, help="Keep JSON Schemas under names, for answers as JSON.")
app.add_typer(schemas_app, name="schemas")

SchemaName = Annotated[str, typer.Argument(metavar="NAME", help="The schema's name.", show_default=False)]


@schemas_app.command("add")
def schemas_add(
    name: SchemaName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON Schema (draft 2020-12).", show_default=False)],
) -> None:
    """Keep a schema under a name, in place of the one that has it. A running service knows it at once.

    References may lead to places in the schema itself; patterns, and schemas within themselves, are not taken.

    \b
    Examples:
      medserve schemas add stones stones.json
      medserve run radiology series/ -o schema=stones -o instruction="Where are stones?"
    """
    from medserve.schemas import Schemas

    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", param="file") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{file} is no JSON", param="file") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{file} is no JSON Schema: it must be an object", param="file")
    new = Schemas(_settings().home).put(name, schema)
    typer.echo(f"{name} is {'kept' if new else 'replaced'}", err=True)


@schemas_app.command("ls")
def schemas_ls() -> None:
    """List the names of all schemas.

    \b
    Example:
      medserve schemas ls
    """
    from medserve.schemas import Schemas

    for name in Schemas(_settings().home).names():
        typer.echo(name)


@schemas_app.command("show")
def schemas_show(name: SchemaName) -> None:
    """Print a schema.

    \b
    Example:
      medserve schemas show stones
    """
    from medserve.schemas import Schemas

    typer.echo(json.dumps(Schemas(_settings().home).get(name), indent=2, ensure_ascii=False))


@schemas_app.command("rm")
def schemas_rm(name: SchemaName) -> None:
    """Forget a schema. Reports that used it keep it.

    \b
    Example:
      medserve schemas rm stones
    """
    from medserve.schemas import Schemas

    Schemas(_settings().home).remove(name)
    typer.echo(f"{name} is forgotten", err=True)


keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys that a service asks for.")
app.add_typer(keys_app, name="keys")


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the key is for.", show_default=False)],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="use, metrics or admin, which covers the others; repeatable. use, when left out."),
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="At most so many requests a minute.")
    ] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, help="At most so many requests at once.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="How long it is valid: 90d, 12h, 30m.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object with the key and what is kept of it.")] = False,
) -> None:
    """Make a key and print it, this once: only its SHA-256 is kept.

    A running service knows it within seconds. With the first key, the service asks everybody for one.

    \b
    Examples:
      medserve keys add clinic
      medserve keys add prometheus --scope metrics
      medserve keys add night-batch --per-minute 60 --at-once 4 --expires 90d
    """
    from medserve.keys import Scope

    known = [scope.value for scope in Scope]
    if unknown := next((scope for scope in scopes or () if scope not in known), None):
        raise InvalidRequest(f"there is no scope {unknown!r}; there are {', '.join(known)}", param="scope")
    wanted = [Scope(scope) for scope in scopes or ("use",)]
    key, secret = asyncio.run(_added_key(name, wanted, per_minute, at_once, _seconds(expires) if expires else None))
    if as_json:
        typer.echo(json.dumps({"key": secret, **_key_facts(key)}))
        return
    typer.echo("the key is shown this once; keep it where secrets are kept", err=True)
    typer.echo(secret)


@keys_app.command("ls")
def keys_ls(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the keys: what each may do, until when, and when it was last used. Times are in UTC.

    \b
    Example:
      medserve keys ls
    """
    listed = [_key_facts(key) for key in asyncio.run(_listed_keys())]
    if as_json:
        for facts in listed:
            typer.echo(json.dumps(facts))
        return
    rows = [
        (
            facts["name"],
            facts["state"],
            ",".join(facts["scopes"]),
            *(str(facts[limit] or "-") for limit in ("per_minute", "at_once")),
            *((facts[when] or "-")[:16].replace("T", " ") for when in ("created", "expires", "last_used")),
        )
        for facts in listed
    ]
    head = ("NAME", "STATE", "SCOPES", "PER MINUTE", "AT ONCE", "CREATED", "EXPIRES", "LAST USED")
    typer.echo(_table(head, rows))


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name; `medserve keys ls` shows all.")],
    forget: Annotated[bool, typer.Option("--forget", help="Also remove its name and what is known of it.")] = False,
) -> None:
    """Make a key worthless, within five seconds also at a running service.

    Its name stays taken, and the service goes on asking for keys. With --forget the name is free; when no key is left,
    a service on this machine only is open to everybody on it again.

    \b
    Examples:
      medserve keys revoke clinic
      medserve keys revoke trial --forget
    """
    asyncio.run(_revoke_key(name, forget))
    typer.echo(f"{name} is revoked; a running service refuses it within five seconds", err=True)


async def _added_key(
    name: str, scopes: Sequence["Scope"], per_minute: int | None, at_once: int | None, seconds: float | None
) -> tuple["Key", str]:
    from medserve.keys import opened

    async with opened(_settings()) as keys:
        return await keys.add(name, scopes, per_minute=per_minute, at_once=at_once, seconds=seconds)


async def _listed_keys() -> list["Key"]:
    from medserve.keys import opened

    async with opened(_settings()) as keys:
        return await keys.listed()


async def _revoke_key(name: str, forget: bool) -> None:
    from medserve.keys import opened

    async with opened(_settings()) as keys:
        await (keys.forget(name) if forget else keys.revoke(name))


def _key_facts(key: "Key") -> dict[str, Any]:
    """What is kept of a key, as it is shown; the digest stays where it is."""
    from datetime import UTC, datetime
    from time import time

    def shown(when: float | None) -> str | None:
        return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")

    return {
        "name": key.caller.name,
        "id": key.caller.id,
        "state": key.state(time()),
        "scopes": sorted(key.caller.scopes),
        "per_minute": key.caller.per_minute,
        "at_once": key.caller.at_once,
        "created": shown(key.created),
        "expires": shown(key.expires),
        "revoked": shown(key.revoked),
        "last_used": shown(key.last_used),
    }


def _seconds(text: str) -> float:
    """A span of time such as 90d, 12h or 30m, in seconds; at most a hundred years."""
    found = re.fullmatch(r"([0-9]{1,8})([dhm])", text)
    seconds = int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]] if found else 0
    if not 0 < seconds <= 36525 * 86400:
        raise InvalidRequest(f"a span of time is given as 90d, 12h or 30m, not {text!r}", param="expires")
    return float(seconds)


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

    from medserve.hub.store import declared
    from medserve.settings import Settings

    try:
        return declared(Settings(**given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "models"
        raise InvalidRequest(f"setting {place}: {first['msg']}", param=place) from None
    except (SettingsError, TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the settings cannot be read: {error}", param="settings") from None


def _with_model(
    settings: "Settings", model: str, projector: Path | None, context: int | None, threads: int | None
) -> "Settings":
    """The settings with `model` as the default: a declared or pulled name, or what is declared by being named."""
    from medserve.settings import ModelSpec

    is_file = model.lower().endswith(".gguf")
    named = None if is_file or not model else _named(settings, model)
    for name, value in (("mmproj", projector), ("context", context), ("threads", threads)):
        if value is not None and not is_file and (named is None or name == "mmproj"):
            raise InvalidRequest(
                f"--{name} belongs to a GGUF file given with --model; of a declared model it is set in the settings",
                param=name,
            )
    if not model:
        return settings
    if named is not None:
        given = {"context": context, "threads": threads}
        named = named.model_copy(update={field: value for field, value in given.items() if value is not None})
        return _with_default(settings, named)
    if not is_file:
        return _with_declared(settings, model)
    path = Path(model)
    for file in (path, projector):
        if file is not None and not file.is_file():
            raise InvalidRequest(f"there is no file {file}", param="model")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem)
    spec = ModelSpec(name=name, path=path, projector=projector, threads=threads)
    spec = spec.model_copy(update={"context": context}) if context is not None else spec
    return _with_default(settings, spec)


def _with_default(settings: "Settings", spec: "ModelSpec") -> "Settings":
    others = tuple(other for other in settings.models if other.name != spec.name)
    return settings.model_copy(update={"models": (spec, *others), "default_model": spec.name})


def _named(settings: "Settings", model: str) -> "ModelSpec | None":
    """What a pulled model's name, a folder or an address means, with the engine for it; None for anything else.

    A model that the settings declare by that name stands before one that was pulled.
    """
    from medserve.hub import picking
    from medserve.hub.store import Store

    declared = {spec.name: spec for spec in settings.models}
    pulled = {entry.name: entry.spec for entry in Store(settings.home).kept().models}
    if model in declared and declared[model] != pulled.get(model):
        return None
    return picking.spec_of(model, settings)


def _with_declared(settings: "Settings", model: str) -> "Settings":
    if model not in [spec.name for spec in settings.models]:
        known = ", ".join(spec.name for spec in settings.models)
        raise InvalidRequest(
            f"no model is called {model!r}; declared are {known}. Fetch one with: medserve pull 1.5-4b, or give a "
            ".gguf file, a folder or an address",
            param="model",
        )
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, never cut: what reads them may be a script."""
    lines = [head, *rows] if head else rows
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
