"""A study that is examined later lies as files in its job's folder, and is read from there as if it had just come."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medserve import references, workflows
from medserve.api import later, studies
from medserve.errors import InvalidRequest
from medserve.examination import calibrations_of, examine
from medserve.generation import Sampling
from medserve.imaging import encoded
from medserve.imaging.intake import Wanted
from medserve.jobs import Work
from medserve.models import Models
from medserve.reports import Report, Step
from medserve.settings import Settings
from medserve.threads import in_thread
from medserve.workflow import Progress, Workflow, quiet


@dataclass(frozen=True)
class Kept:
    """A study as files, and what each of them is: a `file` as it came, or a `reference` (its text)."""

    files: tuple[Path, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """What was chosen beside the pictures; as JSON it is part of a job's order."""

    workflow: str
    model: str
    options: Mapping[str, Any]
    temperature: float = 0.0
    seed: int | None = None

    @classmethod
    def of(cls, order: Mapping[str, Any]) -> "Chosen":
        """What the order of a job says."""
        return cls(order["workflow"], order["model"], order["options"], order["temperature"], order["seed"])

    @property
    def order(self) -> dict[str, Any]:
        return {
            "workflow": self.workflow,
            "model": self.model,
            "options": dict(self.options),
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def check(self, models: Models, settings: Settings) -> "Chosen":
        """The same with the model's name, once everything that can be refused at once is not; raises InvalidRequest."""
        workflows.find(self.workflow, settings.workflow_folder).chosen(self.options)
        name = models.get(self.model or None).name
        return Chosen(self.workflow, name, self.options, self.temperature, self.seed)


async def keep(given: Sequence[str | Path], settings: Settings, folder: Path, param: str = "images") -> Kept:
    """A study as it came, with what is text in it written to `folder` (which is empty or the caller's own).

    Raises InvalidRequest, with the name of the field, for what is no base64 and for references that are not allowed.
    """
    files: list[Path] = []
    kinds: list[str] = []
    for place, one in enumerate(given):
        if isinstance(one, Path):
            kind, file = "file", one
        else:
            try:
                kind, data = await _content(one, settings)
            except InvalidRequest as error:
                raise type(error)(f"{param}.{place}: {error.message}", param=f"{param}.{place}") from None
            file = folder / f"{param}.{place}"
            await in_thread(file.write_bytes, data)
        files.append(file)
        kinds.append(kind)
    return Kept(tuple(files), tuple(kinds))


async def _content(text: str, settings: Settings) -> tuple[str, bytes]:
    if not references.is_address(text):
        return "file", await encoded.read(text, settings.limits)
    references.check(text, settings)
    return "reference", text.encode("utf-8", "surrogatepass")


def restored(files: Sequence[Path], kinds: Sequence[str]) -> list[str | Path]:
    """A kept study as `studies.read` takes it. Blocking."""
    pairs: Iterator[tuple[Path, str]] = zip(files, kinds, strict=True)
    return [file.read_text("utf-8", "surrogatepass") if kind == "reference" else file for file, kind in pairs]


async def examined(
    chosen: Chosen,
    kept: Kept,
    models: Models,
    settings: Settings,
    *,
    progress: Progress = quiet,
    param: str = "images",
) -> Report:
    """The report on a kept study; waits for a model that is busy or on its way for as long as it takes."""
    workflow = workflows.find(chosen.workflow, settings.workflow_folder)
    given = await in_thread(restored, kept.files, kept.kinds)
    study = (await studies.read(given, settings, wanted_of(workflow), param)).study
    handle = models.get(chosen.model)
    sampling = Sampling(temperature=chosen.temperature, seed=chosen.seed)

    async def ask() -> Report:
        await handle.ready()
        return await examine(
            workflow,
            study,
            handle,
            options=chosen.options,
            sampling=sampling,
            progress=progress,
            calibrations=await calibrations_of(workflow, chosen.options, handle, settings.home),
        )

    workflow.check(study)
    return await later.patiently(ask)


async def worked(work: Work, kinds: Sequence[str], models: Models, settings: Settings) -> Report:
    """The report on a job's study, whose files are of these `kinds`. Its steps are the job's progress.

    Nobody knows before how many steps there will be.
    """
    done = 0

    def told(name: str, step: Step | None) -> None:
        nonlocal done
        done += step is not None
        work.note(done, 0, name)

    return await examined(Chosen.of(work.order), Kept(work.files, tuple(kinds)), models, settings, progress=told)


def as_result(brought: BaseModel) -> dict[str, Any]:
    """What a job brought as it is kept: as JSON, where what is no number is null."""
    found: dict[str, Any] = json.loads(brought.model_dump_json())
    return found


def wanted_of(workflow: Workflow) -> Wanted:
    """What a workflow wants to see of files."""
    return Wanted(workflow.modality, volume=workflow.measures)
