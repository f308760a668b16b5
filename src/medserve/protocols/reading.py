"""A file's bytes become a protocol, or the faults in them, each with its line; no file makes an object or grows.

`yes` and `no` are words, as in YAML 1.2. Tags, anchors and aliases are refused, and so is a key that stands twice.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from medserve.errors import InvalidRequest
from medserve.protocols.parts import KINDS_OF_STEP, WHOLE, Misfits, Place, Protocol, dotted, in_one_line
from medserve.protocols.running import workflow
from medserve.workflow import Workflow

MOST_BYTES = 256 * 1024
DEEPEST = 24
"""Levels of a file; a JSON Schema inside it has the most."""
SUFFIXES = (".yaml", ".yml")
ODD_BREAK = re.compile("[\x85\u2028\u2029]")
"""YAML 1.1 ends lines here and editors do not, so that lines would be counted otherwise."""


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong with a file, where; the line counts from 1."""

    line: int
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.line}: {self.place}: {self.reason}"


class Faulty(Exception):
    """A file that is no workflow; its faults come in the order of their lines."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = tuple(sorted(set(faults)))


def read(content: bytes, called: str = WHOLE) -> Workflow:
    """The workflow of a file's bytes; raises InvalidRequest that tells the line of the first fault."""
    try:
        return workflow(parsed(content), sha256(content).hexdigest())
    except Faulty as error:
        more = f" (the first of {len(error.faults)} faults)" if len(error.faults) > 1 else ""
        raise InvalidRequest(f"{called}:{error.faults[0]}{more}", param="workflow") from None


def faults(content: bytes) -> tuple[Fault, ...]:
    """Everything that is wrong with a file's bytes, in the order of the lines."""
    try:
        parsed(content)
    except Faulty as error:
        return error.faults
    return ()


def parsed(content: bytes) -> Protocol:
    """A file's bytes as what they say; raises Faulty."""
    value, lines = _composed(_text(content))
    try:
        return Protocol.model_validate(value)
    except ValidationError as error:
        raise Faulty(*_faults(error, lines)) from None


def _text(content: bytes) -> str:
    if len(content) > MOST_BYTES:
        raise Faulty(Fault(1, WHOLE, f"is larger than {MOST_BYTES} bytes"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Faulty(Fault(line, WHOLE, "is not written in UTF-8")) from None
    if found := ODD_BREAK.search(text):
        line = text[: found.start()].count("\n") + 1
        raise Faulty(Fault(line, WHOLE, "holds a line break (U+0085, U+2028 or U+2029) that editors do not show"))
    return text


def _composed(text: str) -> tuple[Any, dict[Place, int]]:
    """The plain values of a text, and the line of each."""
    lines: dict[Place, int] = {(): 1}
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return (_plain(root, (), lines) if root is not None else None), lines
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise Faulty(Fault(line, WHOLE, "holds a character that YAML does not allow")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem))) or "is no YAML"
        raise Faulty(Fault(mark.line + 1 if mark else 1, WHOLE, in_one_line(reason))) from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """Composes nodes only. Tags and aliases, by which a file could make objects or grow, are refused."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused("anchors and aliases are not taken here; write it out", event)
        if getattr(event, "tag", None):
            raise _refused("tags are not taken here", event)
        if self.depth > DEEPEST:
            raise _refused("is nested too deeply", event)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(reason: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=at.start_mark)


CORE = (
    ("null", re.compile(r"^(?:~|null)?$"), lambda text: None),
    ("bool", re.compile(r"^(?:true|false)$"), lambda text: text == "true"),
    ("int", re.compile(r"^[-+]?[0-9]{1,18}$"), int),
    (
        "float",
        re.compile(r"^[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18}|[0-9]{1,18})(?:[eE][-+]?[0-9]{1,2})?$"),
        float,
    ),
)
"""How plain scalars are read, after YAML 1.2's core schema; everything else is a word."""


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    """A node as plain values, noting the line of each; raises a YAMLError for keys that stand twice."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, number), lines) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        for _, pattern, made in CORE:
            if pattern.match(node.value):
                return made(node.value)
    return node.value


def _mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused("a key is a word", key)
        if key.value in found:
            raise _refused(f"the key {key.value!r} stands twice", key)
        lines[(*place, key.value)] = key.start_mark.line + 1
        found[key.value] = _plain(value, (*place, key.value), lines)
    return found


REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "is no text; put it in quotes",
    "model_type": "has to be a mapping, key: value",
    "dict_type": "has to be a mapping, key: value",
    "tuple_type": "has to be a list",
    "too_short": "has to have at least {min_length}",
    "too_long": "has to have at most {max_length}",
}


def _faults(error: ValidationError, lines: Mapping[Place, int]) -> Iterator[Fault]:
    every = error.errors(include_url=False, include_input=False)
    for found in every:
        place = _meant(found["loc"])
        if found["type"] == "too_short" and any(_meant(one["loc"])[:-1][: len(place)] == place for one in every):
            continue  # it is short because of what is wrong inside it
        misfits = found.get("ctx", {}).get("error")
        if isinstance(misfits, Misfits):
            for inner, reason in misfits.found:
                yield _fault((*place, *inner), reason, lines)
        else:
            reason = REASONS.get(found["type"], found["msg"]).removeprefix("Value error, ")
            reason = reason.format_map(found["ctx"]) if found["type"] in ("too_short", "too_long") else reason
            yield _fault(place, reason, lines)


def _fault(place: Place, reason: str, lines: Mapping[Place, int]) -> Fault:
    line = next(lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in lines)
    return Fault(line, dotted(place), in_one_line(reason))


def _meant(place: Place) -> Place:
    """The place in the file: without the kind of a step, or the type of a union, that a fault was found in."""
    if place[:1] == ("steps",) and len(place) > 2 and place[2] in KINDS_OF_STEP:
        place = (*place[:2], *place[3:])
    return tuple(part for part in place if part != "[key]")


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """What the files of a folder hold: workflows by file, and what is wrong with the others."""

    workflows: Mapping[Path, Workflow]
    faults: tuple[str, ...] = ()


def load(folder: Path) -> Folder:
    """The workflows of a folder's files, in the order of their names; a folder that does not exist holds none."""
    found: dict[Path, Workflow] = {}
    wrong: list[str] = []
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    except FileNotFoundError:
        files = []
    except OSError as error:
        return Folder({}, (f"{folder}: {error.strerror}",))
    for file in files:
        try:
            found[file] = read(content(file), file.name)
        except InvalidRequest as error:
            wrong.append(error.message)
    return Folder(found, tuple(wrong))


def content(file: Path) -> bytes:
    """A file's bytes, at most one more than may be; raises InvalidRequest where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", param="workflow") from None
