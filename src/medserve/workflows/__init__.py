"""Every module of this folder that defines `workflow` is a clinical protocol; other distributions add theirs.

A third party's workflow is an entry point of the group `medserve.workflows` that names a `Workflow` value.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import MappingProxyType

from medserve.errors import UnknownWorkflow
from medserve.workflow import Workflow


@cache
def workflows() -> Mapping[str, Workflow]:
    """All workflows by name, this folder's first; a name is given out once."""
    found: dict[str, Workflow] = {}
    for workflow in (*_built_in(), *_from_others()):
        found.setdefault(workflow.name, workflow)
    return MappingProxyType(found)


def find(name: str) -> Workflow:
    """The workflow of that name; raises UnknownWorkflow, which says which names exist."""
    try:
        return workflows()[name]
    except KeyError:
        known = ", ".join(workflows())
        raise UnknownWorkflow(f"no workflow is called {name!r}; there are: {known}", param="workflow") from None


def _built_in() -> Iterator[Workflow]:
    for module in sorted(info.name for info in iter_modules(__path__)):
        workflow = getattr(import_module(f"{__name__}.{module}"), "workflow", None)
        if isinstance(workflow, Workflow):
            yield workflow


def _from_others() -> Iterator[Workflow]:
    for entry in entry_points(group="medserve.workflows"):
        workflow = entry.load()
        if isinstance(workflow, Workflow):
            yield workflow
