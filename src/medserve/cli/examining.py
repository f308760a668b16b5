"""The commands that ask a model about studies and reports, or ask its recorded answers again."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medserve.cli import configured, options, terminal
from medserve.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from medserve.evaluation import Evaluation, Labelled, Order, Outcome
    from medserve.imaging.material import Wanted
    from medserve.leaflets import Leaflet
    from medserve.reports import Report
    from medserve.settings import Settings


def run(
    workflow: options.WorkflowName,
    paths: options.Studies,
    together: options.Together = False,
    model: options.Model = "",
    mmproj: options.Projector = None,
    context: options.Context = None,
    threads: options.Threads = None,
    option: options.Pairs = None,
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
    modality: options.Modality = "",
    patches: options.Patches = 125,
    magnification: options.Magnification = 0.0,
    slide_seed: options.SlideSeed = 0,
    mpp: options.Mpp = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 when a report needs review.")] = False,
    quiet: options.Quiet = False,
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

    settings = configured.with_model(configured.settings(), model, mmproj, context, threads)
    sampling = Sampling(temperature=temperature, seed=seed)
    wanted = options.wanted(modality, patches, magnification, slide_seed, mpp)
    formats = _formats(format_ or [], folder, as_json)
    found = workflows.find(workflow, settings.workflow_folder)
    order = batch.Order(found, options.chosen(option or []), sampling, as_json, folder, wanted, formats)
    order.workflow.chosen(order.options)
    options.to_folder(folder)
    telemetry.configure("critical")  # every error is told in words of its own
    tally = asyncio.run(batch.examine_all(order, options.studies(paths, together), settings, quiet=quiet))
    if tally.failed or tally.refused:
        raise typer.Exit(3 if tally.failed else 2)
    if strict and tally.review:
        raise typer.Exit(4)


def _formats(names: Sequence[str], folder: Path | None, as_json: bool) -> tuple[str, ...]:
    """The formats by name, each once; without a folder there is one, and it goes to standard output."""
    from medserve import exports

    found = tuple(dict.fromkeys(exports.find(name).name for name in names))
    if found and folder is None and (len(found) > 1 or as_json):
        raise InvalidRequest("standard output takes one format; give --out for several", param="format")
    return found


def leaflet(
    report: options.ReportFile,
    level: Annotated[int, typer.Option(min=1, max=16, help="The school grade of the readers.")] = 6,
    model: options.Model = "",
    mmproj: options.Projector = None,
    context: options.Context = None,
    threads: options.Threads = None,
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

    recorded = options.recorded(report)
    if not leaflets.tellable(recorded)[0]:
        raise leaflets.nothing_to_tell()
    telemetry.configure("critical")
    made = asyncio.run(
        _explained(recorded, configured.with_model(configured.settings(), model, mmproj, context, threads), level)
    )
    typer.echo(made.model_dump_json() if as_json else leaflets.as_text(made))


async def _explained(recorded: "Report", settings: "Settings", level: int) -> "Leaflet":
    from medserve import leaflets
    from medserve.models import Models

    models = Models(settings)
    try:
        return await leaflets.explain(recorded, await models.get().ready(), level)
    finally:
        await models.close()


def evaluate(
    workflow: options.WorkflowName,
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
    model: options.Model = "",
    mmproj: options.Projector = None,
    context: options.Context = None,
    threads: options.Threads = None,
    option: options.Pairs = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object instead of text.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Also write it here: JSON, text, HTML, and a CSV of the studies.")
    ] = None,
    modality: options.Modality = "",
    patches: options.Patches = 125,
    magnification: options.Magnification = 0.0,
    slide_seed: options.SlideSeed = 0,
    mpp: options.Mpp = 0.0,
    quiet: options.Quiet = False,
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

    settings = configured.with_model(configured.settings(), model, mmproj, context, threads)
    chosen = options.chosen([*(option or []), *([f"controls={controls}"] if controls else [])])
    wanted = options.wanted(modality, patches, magnification, slide_seed, mpp)
    order = evaluation.Order(
        workflows.find(workflow, settings.workflow_folder),
        pictures,
        table=labels,
        options=chosen,
        finding=finding,
        calibrate=calibrate,
        limit=limit,
        picture=image_column,
        label=label_column,
        wanted=wanted,
    ).checked()
    options.to_folder(folder)
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


def replay(
    report: options.ReportFile,
    files: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="The study that the report is about, as it was given.", show_default=False),
    ],
    modality: options.Modality = "",
    patches: options.Patches = 125,
    magnification: options.Magnification = 0.0,
    slide_seed: options.SlideSeed = 0,
    mpp: options.Mpp = 0.0,
) -> None:
    """Run a report's workflow again with its recorded answers, and say whether the same report comes out.

    This needs no model: it checks that reading, cleaning and concluding still do what they did. What `run` was told
    about the files has to be told again. That the workflow has another version now, or another file, is told.

    \b
    Example:
      medserve replay reports/dermoscopy-0f3a1c52e9b07d44-5d1c09aa.json lesion.jpg
    """
    from medserve.console import visible_lines
    from medserve.replay import changed
    from medserve.reports import as_text

    recorded = options.recorded(report)
    settings = configured.settings()
    wanted = options.wanted(modality, patches, magnification, slide_seed, mpp)
    if note := changed(recorded, settings.workflow_folder):
        typer.echo(f"note: {note}", err=True)
    try:
        again = asyncio.run(_replay(recorded, files, settings, wanted))
    except EngineError as error:
        terminal.fail(f"the replay differs: {error.message}", 1)
    if not recorded.same_answers(again):
        typer.echo(f"{visible_lines(as_text(again))}\n")
        terminal.fail("the replayed report, shown above, differs from the recorded one", 1)
    typer.echo(f"the same report word for word: {len(again.steps)} steps, study {again.study.sha256[:16]}")


async def _replay(recorded: "Report", files: Sequence[str], settings: "Settings", wanted: "Wanted") -> "Report":
    from medserve.batch import reading
    from medserve.replay import replayed
    from medserve.workflows import find

    folder = settings.workflow_folder
    wanted = replace(wanted, modality=wanted.modality or find(recorded.provenance.workflow, folder).modality)
    return await replayed(recorded, (await reading(files, settings, wanted)).study, folder)
