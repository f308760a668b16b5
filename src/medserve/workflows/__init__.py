"""Every module of this folder that defines `workflow` is a clinical protocol; users add theirs as files or as code.

A third party's workflow is an entry point of the group `medserve.workflows` that names a `Workflow` value. A file is
one of the user's folder of `protocols`. A name is given out once: what would take another's place is a fault, and so is
what cannot be used. `medserve serve` does not start with one, and `medserve ls` tells them all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType

from medserve import protocols
from medserve.errors import InvalidRequest, UnknownWorkflow
from medserve.workflow import Workflow

GROUP = "medserve.workflows"


@dataclass(frozen=True)
class Known:
    """The workflows by name, the file of each that is one, and in words what cannot be used and why."""

    workflows: Mapping[str, Workflow]
    files: Mapping[str, Path]
    faults: tuple[str, ...] = ()


@cache
def known(folder: Path | None = None) -> Known:
    """What there is: this folder's workflows, other distributions', and the files of `folder`; each is read once."""
    found = {workflow.name: workflow for workflow in _built_in()}
    faults: list[str] = []
    for entry in sorted(entry_points(group=GROUP)):
        _add_code(entry, found, faults)
    files = _add_files(folder, found, faults) if folder is not None else {}
    return Known(MappingProxyType(found), MappingProxyType(files), tuple(faults))


def workflows(folder: Path | None = None) -> Mapping[str, Workflow]:
    """All workflows by name: this folder's, other distributions', and the files of `folder`."""
    return known(folder).workflows


def find(name: str, folder: Path | None = None) -> Workflow:
    """The workflow of that name; raises UnknownWorkflow, which says which names exist."""
    found = workflows(folder)
    try:
        return found[name]
    except KeyError:
        broken = "; some cannot be used, and `medserve ls` says why" if known(folder).faults else ""
        raise UnknownWorkflow(
            f"no workflow has that name; there are: {', '.join(found)}{broken}", param="workflow"
        ) from None


def check(folder: Path | None = None) -> None:
    """Raise InvalidRequest with the first reason why a workflow cannot be used."""
    if faults := known(folder).faults:
        more = f" ({len(faults) - 1} more: medserve ls)" if len(faults) > 1 else ""
        raise InvalidRequest(f"a workflow cannot be used: {faults[0]}{more}", param="workflow")


def taken(name: str) -> str:
    """Why a name cannot be given out again."""
    return f"there is a workflow {name!r} already; choose another name"


def _built_in() -> Iterator[Workflow]:
    for module in sorted(info.name for info in iter_modules(__path__)):
        workflow = getattr(import_module(f"{__name__}.{module}"), "workflow", None)
        if isinstance(workflow, Workflow):
            yield workflow


def _add_code(entry: EntryPoint, found: dict[str, Workflow], faults: list[str]) -> None:
    """Add another distribution's workflow, or why it cannot be used: its code may fail in any way."""
    called = f"entry point {entry.name} ({entry.value})"
    try:
        workflow = entry.load()
    except Exception as error:
        faults.append(" ".join(f"{called}: {type(error).__name__}: {error}".split()))
        return
    if not isinstance(workflow, Workflow):
        faults.append(f"{called}: is no medserve.workflow.Workflow")
    elif workflow.name in found:
        faults.append(f"{called}: {taken(workflow.name)}")
    else:
        found[workflow.name] = workflow


def _add_files(folder: Path, found: dict[str, Workflow], faults: list[str]) -> dict[str, Path]:
    """Add a folder's files, or why they cannot be used; the file of each name that was added."""
    files: dict[str, Path] = {}
    loaded = protocols.load(folder)
    faults.extend(loaded.faults)
    for file, workflow in loaded.workflows.items():
        if workflow.name in found:
            faults.append(f"{file.name}: name: {taken(workflow.name)}")
        else:
            found[workflow.name], files[workflow.name] = workflow, file
    return files
