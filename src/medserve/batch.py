"""Studies one after another, each with its report or its own error: one bad file stops no other."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from shutil import copymode
from typing import TYPE_CHECKING, Any

import typer

from medserve import exports, references
from medserve.console import fault, visible, visible_lines
from medserve.engines import Engine
from medserve.errors import EngineError, InvalidRequest, SourceFailed
from medserve.examination import calibrations_of, examine
from medserve.generation import Sampling
from medserve.images import Study
from medserve.imaging import intake
from medserve.imaging.intake import Reading, Wanted
from medserve.imaging.material import DEFAULT
from medserve.models import Models
from medserve.reports import Report, Step, as_text
from medserve.settings import Settings
from medserve.threads import in_thread
from medserve.workflow import Workflow

if TYPE_CHECKING:
    from rich.status import Status as Spinner

WIDEST_ANSWER = 60
"""Characters of an answer in the progress display."""


@dataclass(frozen=True)
class Order:
    """What is to be done with every study, and where its report goes."""

    workflow: Workflow
    options: Mapping[str, Any]
    sampling: Sampling
    as_json: bool = False
    folder: Path | None = None
    wanted: Wanted = DEFAULT
    formats: tuple[str, ...] = ()

    @property
    def sought(self) -> Wanted:
        """What is wanted of the files: where nobody says how they were made, what the workflow is for."""
        modality = self.wanted.modality or self.workflow.modality
        return replace(self.wanted, modality=modality, volume=self.workflow.measures)


@dataclass
class Tally:
    """How it went: studies that were refused, studies the model failed on, and reports that need review."""

    refused: int = 0
    failed: int = 0
    review: int = 0


async def examine_all(order: Order, studies: Iterable[Sequence[str]], settings: Settings, *, quiet: bool) -> Tally:
    """Examine every study and deliver its report; raises ModelError when the model cannot be loaded.

    A study is what `reading` takes: paths and references that belong together.
    """
    tally = Tally()
    models = Models(settings)
    try:
        with progress_display(quiet) as progress:
            model = models.get()
            progress.say(f"loading {model.name}")
            await model.ready()
            for names in studies:
                called = visible(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more")
                progress.note(called)
                try:
                    report, study = await _report(order, names, model, settings, progress)
                except InvalidRequest as error:
                    progress.fault(f"{called}: {error.message}")
                    tally.refused += 1
                except (EngineError, SourceFailed) as error:
                    progress.fault(f"{called}: {error.message}")
                    tally.failed += 1
                else:
                    tally.review += report.needs_review
                    progress.pause()
                    made: dict[str, bytes] = {}
                    try:
                        made = await _made(order, report, study, names, settings)
                    except (InvalidRequest, EngineError, SourceFailed) as error:  # the report itself is there
                        progress.fault(f"{called}: {error.message}")
                        tally.refused += 1
                    await _deliver(report, made, order, called)
    finally:
        await models.close()
    return tally


async def reading(names: Sequence[str], settings: Settings, wanted: Wanted) -> Reading:
    """The one study in files, folders, archives and references; raises InvalidRequest or SourceFailed."""
    if not all(names):  # as a path it would be the folder that the command was started in
        raise InvalidRequest("a path is empty; name a file, a folder or an archive", param="files")
    async with references.gathered(_given(names), settings) as materials:
        return await intake.reading(materials, settings.limits, wanted)


def _given(names: Sequence[str]) -> list[str | Path]:
    """References as they are, all else as paths."""
    return [name if references.is_reference(name) else Path(name) for name in names]


async def _report(
    order: Order, names: Sequence[str], engine: Engine, settings: Settings, progress: "Progress"
) -> tuple[Report, Study]:
    study = (await reading(names, settings, order.sought)).study
    report = await examine(
        order.workflow,
        study,
        engine,
        options=order.options,
        sampling=order.sampling,
        progress=progress.step,
        calibrations=await calibrations_of(order.workflow, order.options, engine, settings.home),
    )
    return report, study


async def _made(
    order: Order, report: Report, study: Study, names: Sequence[str], settings: Settings
) -> dict[str, bytes]:
    """The report in every format that is asked for, by the format's name."""
    return {name: await exported(report, name, names, settings, order.sought, study) for name in order.formats}


async def exported(
    report: Report,
    name: str,
    names: Sequence[str],
    settings: Settings,
    wanted: Wanted,
    study: Study | None = None,
) -> bytes:
    """The report in a format, with the study in `names` where there are any; raises InvalidRequest or SourceFailed."""
    if not names:
        return await exports.written(report, name)
    if study is None:
        study = (await reading(names, settings, replace(wanted, volume=False))).study
    if not exports.find(name).needs_files:
        return await exports.written(report, name, exports.Original(study))
    async with references.gathered(_given(names), settings) as materials:
        original = exports.Original(study, tuple(materials), settings.limits, replace(wanted, volume=False))
        return await exports.written(report, name, original)


async def _deliver(report: Report, made: Mapping[str, bytes], order: Order, called: str) -> None:
    """Print the report and write it where asked, under a name made of its content and never of the patient's file."""
    if order.folder is None and order.formats:
        for content in made.values():
            typer.echo(content, nl=False)
        return
    typer.echo(report.model_dump_json() if order.as_json else f"{visible_lines(as_text(report))}\n")
    if order.folder is not None:
        written = await in_thread(_write, report, made, order.folder)
        typer.echo(f"{called} -> {written}", err=True)


def file_name(report: Report) -> str:
    """The workflow, the study's content and the circumstances: only the same question to the same model has the same.

    Circumstances are everything in the provenance (model, its facts, options, versions), temperature and seed.
    """
    steps = [(step.temperature, step.seed) for step in report.steps]
    made = json.dumps([report.provenance.model_dump(mode="json"), steps], sort_keys=True)
    circumstances = sha256(made.encode()).hexdigest()[:8]
    return f"{report.provenance.workflow}-{report.study.sha256[:16]}-{circumstances}.json"


def _write(report: Report, made: Mapping[str, bytes], folder: Path) -> Path:
    target = folder / file_name(report)
    others = {exports.find(name).suffix: content for name, content in made.items()}
    shown = visible_lines(as_text(report))  # a terminal is where it is read
    own = {".json": f"{report.model_dump_json(indent=2)}\n".encode(), ".txt": f"{shown}\n".encode()}
    try:
        for suffix, content in {**own, **others}.items():
            _replace(target.with_suffix(suffix), content)
    except OSError as error:
        raise InvalidRequest(f"the report cannot be written to {folder}: {error.strerror}", param="out") from None
    return target


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: where there is no room for it, what stood there before stays.

    Whom the earlier one was closed to, this one is.
    """
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        half.touch()
        with suppress(FileNotFoundError):
            copymode(file, half)
        half.write_bytes(content)
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)


class Progress:
    """What a waiting person sees on standard error: the step in work, and each answer as it comes."""

    def __init__(self, spinner: "Spinner | None") -> None:
        self._spinner = spinner

    def say(self, words: str) -> None:
        """What is being done now."""
        if self._spinner is not None:
            self._spinner.update(words)
            self._spinner.start()

    def pause(self) -> None:
        """Leave the terminal to what is printed next."""
        if self._spinner is not None:
            self._spinner.stop()

    def note(self, words: str) -> None:
        """A line that stays, for a watching person only."""
        if self._spinner is not None:  # its own console prints above it and not into it
            self._spinner.console.print(words, highlight=False, soft_wrap=True)

    def fault(self, words: str) -> None:
        """A line that stays, for everyone."""
        self.pause()
        fault(words)

    def step(self, name: str, step: Step | None) -> None:
        """A question of the workflow as it begins (None) and as it ends."""
        if step is None:
            self.say(name)
            return
        seconds = step.prompt_seconds + step.completion_seconds
        shown = "not readable" if step.value is None else visible(" ".join(str(step.value).split()))
        self.note(f"  {name}: {shown[:WIDEST_ANSWER]}  ({seconds:.1f} s)")


@contextmanager
def progress_display(quiet: bool) -> Iterator[Progress]:
    """A display on a terminal, and nothing at all for scripts."""
    if quiet or not sys.stderr.isatty():
        yield Progress(None)
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, emoji=False).status("") as spinner:
        yield Progress(spinner)
