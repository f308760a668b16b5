"""The commands that need no model: what one would see, copies without identity, reports in other formats."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medserve.cli import configured, options, terminal
from medserve.errors import EngineError, InvalidRequest, SourceFailed

if TYPE_CHECKING:
    from medserve.imaging.material import Wanted
    from medserve.inspection import Inspected
    from medserve.settings import Settings


def inspect(
    paths: options.Studies,
    together: options.Together = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write what the model sees here, as PNG; of one study only.")
    ] = None,
    modality: options.Modality = "",
    patches: options.Patches = 125,
    magnification: options.Magnification = 0.0,
    slide_seed: options.SlideSeed = 0,
    mpp: options.Mpp = 0.0,
) -> None:
    """Show what a model would see of studies: facts, warnings and a contact sheet. No model is needed.

    \b
    Examples:
      medserve inspect chest.dcm --sheet seen.png
      medserve inspect series/ --json
      medserve inspect slide.svs --magnification 20 --patches 16 --sheet patches.png
    """
    from medserve import telemetry

    studies = options.studies(paths, together)
    if sheet is not None and len(studies) > 1:
        raise InvalidRequest("--sheet shows one study; give one path, or --together", param="sheet")
    options.to_file(sheet, "sheet")
    wanted = options.wanted(modality, patches, magnification, slide_seed, mpp)
    telemetry.configure("critical")
    refused, failed = asyncio.run(_inspect_all(studies, configured.settings(), wanted, as_json, sheet))
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
            terminal.fault(f"{names[0]}: {error.message}")
            refused += isinstance(error, InvalidRequest)
            failed += not isinstance(error, InvalidRequest)
            continue
        typer.echo(found.inspection.model_dump_json() if as_json else inspection.as_text(found.inspection) + "\n")
        if sheet is not None:
            _write_sheet(found, sheet)
    return refused, failed


def _write_sheet(found: "Inspected", sheet: Path) -> None:
    from medserve import inspection

    with options.writing("sheet"):
        written = inspection.save(found, sheet)
    for file in written:
        typer.echo(f"written: {file}", err=True)


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

    options.to_folder(folder)
    done = copies.write(paths, folder, configured.settings().limits)
    for called, reason in done.refused:
        terminal.fault(f"{called}: {reason}")
    if done.others:
        typer.echo(f"{done.others} files in folders or archives are no DICOM files and were left out", err=True)
    typer.echo(f"{done.written} copies are in {folder}")
    if done.refused:
        raise typer.Exit(2)


def export(
    report: options.ReportFile,
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
    modality: options.Modality = "",
    patches: options.Patches = 125,
    magnification: options.Magnification = 0.0,
    slide_seed: options.SlideSeed = 0,
    mpp: options.Mpp = 0.0,
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

    options.to_file(out)
    recorded = options.recorded(report)
    wanted = options.wanted(modality, patches, magnification, slide_seed, mpp)
    wanted = replace(wanted, modality=wanted.modality or recorded.study.modality)
    name = exports.find(format_).name
    content = asyncio.run(batch.exported(recorded, name, files or (), configured.settings(), wanted))
    if out is None:
        typer.echo(content, nl=False)
        return
    options.write(content, out)
