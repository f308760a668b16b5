"""A workflow in words, and a file to start one from: what a person looks at before trusting a protocol."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medserve import protocols, workflows
from medserve.errors import InvalidRequest
from medserve.workflow import Question, Workflow

START = Path(__file__).parent / "examples" / "workflows" / "start.yaml"
OWN = "my-workflow"
"""The name in START, in whose place the wanted one comes."""


def begin(name: str, file: Path, folder: Path) -> None:
    """Write START under a name of its own to a file that must not exist; raises InvalidRequest."""
    content = START.read_bytes().replace(OWN.encode(), name.encode("utf-8", "replace"))
    if faults := protocols.faults(content):
        raise InvalidRequest(f"a name has small letters, digits and -, and begins with a letter: {faults[0].reason}")
    if name in workflows.workflows(folder):
        raise InvalidRequest(workflows.taken(name), param="name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as opened:
            opened.write(content)
    except FileExistsError:
        raise InvalidRequest(f"{file} is there already; it is not written over", param="out") from None
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}", param="out") from None


def faults(file: Path, folder: Path) -> list[str]:
    """Everything that is wrong with a workflow file, one line each: file, line, place and reason."""
    content = protocols.content(file)
    found = [f"{file}:{fault}" for fault in protocols.faults(content)]
    if found:
        return found
    name = protocols.read(content).name
    known = workflows.known(folder)
    is_itself = name in known.files and known.files[name].resolve() == file.resolve()
    return [] if is_itself or name not in known.workflows else [f"{file}: name: {workflows.taken(name)}"]


def in_a_line(file: Path) -> str:
    """A file that has no fault: its workflow's name and version, and how much there is in it."""
    content = protocols.content(file)
    protocol, workflow = protocols.parsed(content), protocols.read(content)
    parts: dict[str, Mapping[str, Any]] = {
        "question": protocol.questions,
        "label": protocol.labels,
        "option": protocol.options,
    }
    counts = ", ".join(f"{len(part)} {name}{'' if len(part) == 1 else 's'}" for name, part in parts.items())
    return f"{file}: {workflow.name} {workflow.version}: {counts}"


def as_text(name: str, folder: Path) -> str:
    """A workflow for people: a file as it is written, or what code declares; raises UnknownWorkflow."""
    workflow = workflows.find(name, folder)
    file = workflows.known(folder).files.get(name)
    if file is not None:
        head = f"# {file}, version {workflow.version}"
        return f"{head}\n{protocols.content(file).decode('utf-8-sig').rstrip()}"
    return "\n".join(_parts(workflow))


def _parts(workflow: Workflow) -> Iterator[str]:
    yield f"{workflow.name} {workflow.version}: {workflow.title}"
    yield workflow.summary
    yield ""
    pictures = "one picture" if workflow.max_images == 1 else f"at most {workflow.max_images} pictures"
    yield f"Takes      {workflow.takes}; {pictures}"
    for label, meaning in workflow.labels.items():
        yield f"Label      {label}: {meaning}"
    for name, one in workflow.options.model_fields.items():
        yield f"Option     {name} = {one.default}: {one.description or ''}".rstrip(": ")
    for question in questions(workflow):
        yield ""
        yield from _question(question)
    yield ""
    yield f"When each is asked, and what is made of earlier answers, is code: {workflow.run.__module__}"


def questions(workflow: Workflow) -> Sequence[Question[Any]]:
    """The questions that the module of a workflow's code declares, in their order; code may ask others too."""
    module = vars(sys.modules[workflow.run.__module__])
    listed = [one if isinstance(one, tuple) else (one,) for name, one in module.items() if not name.startswith("_")]
    found = [question for group in listed for question in group if isinstance(question, Question)]
    return [question for place, question in enumerate(found) if question not in found[:place]]


def _question(question: Question[Any]) -> Iterator[str]:
    yield question.step
    for line in question.prompt.split("\n"):
        yield f"    {line}"
    if question.otherwise:
        yield f"  in other words: {question.otherwise}"
    answers = ", ".join(question.read.options)
    yield f"  read as {question.read.kind}" + (f": {answers}" if answers else "")
