"""A workflow can be a YAML file: questions, how they are read, when to stop or flag, and what to conclude.

A file is checked as a whole before anything runs, and every fault is told with its line. It can do what a workflow in
Python can do with closed questions, text and JSON; it holds no code. `yes` and `no` are words, as in YAML 1.2.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from medserve import guard
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.images import Modality, Study
from medserve.readers import Reader, any_of, code_of, json_of, one_of, opening, plain, prose, words_from
from medserve.reports import Conclusion, Finding
from medserve.workflow import SCORED_READERS, Answer, Consult, Domain, Options, Question, Workflow, once

MOST_BYTES = 256 * 1024
DEEPEST = 24
"""Levels of a file; a JSON Schema inside it has the most."""
SUFFIXES = (".yaml", ".yml")
DIGITS = 16
"""Characters of a file's SHA-256 that stand behind its version."""
PLACEHOLDER = re.compile(r"\{\{([a-z][a-z0-9_.]*)\}\}|\{([a-z][a-z0-9_.]*)\}")
"""`{name}` stands for an answer or an option, `{{name}}` for the word in braces."""
ODD_BREAK = re.compile("[\x85\u2028\u2029]")
"""YAML 1.1 ends lines here and editors do not, so that lines would be counted otherwise."""
UNREAD = "not readable"
UNASKED = "not asked"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Line = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$", max_length=200, description="one line")]
Words = Annotated[str, Field(pattern=r"\S", max_length=20_000)]
Place = tuple[Any, ...]


class Misfits(ValueError):
    """What in a file does not go together, each with its place."""

    def __init__(self, found: Sequence[tuple[Place, str]]) -> None:
        super().__init__("; ".join(f"{_dotted(place)}: {reason}" for place, reason in found))
        self.found = found


def _simple(value: Any) -> Any:
    """A value that an answer or an option may have."""
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError("has to be a word, a number, true, false or null")
    return value


def _simple_or_several(value: Any) -> Any:
    return tuple(map(_simple, value)) if isinstance(value, list | tuple) else _simple(value)


Value = Annotated[Any, AfterValidator(_simple)]
Values = Annotated[Any, AfterValidator(_simple_or_several)]


class Part(BaseModel):
    """A piece of a file; names that are not known are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reading(Part):
    """How a reply is read: exactly one of these."""

    one_of: tuple[Line, ...] | None = Field(None, min_length=2, description="exactly one of these answers")
    any_of: tuple[Line, ...] | None = Field(None, min_length=1, description="those of these that are there, or none")
    words_from: tuple[Line, ...] | None = Field(None, min_length=1, description="at least one of these words")
    code_of: dict[Line, tuple[Line, ...]] | None = Field(None, description="one code, by itself or by a name")
    schema_: dict[str, JsonValue] | None = Field(None, alias="json", description="a JSON Schema")
    text: Literal["plain", "second_look"] | None = Field(
        None, description="words, cleaned; a second look is also held to compare and to add, and to name no label"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of one_of, any_of, words_from, code_of, json, text")
        try:
            self.reader({})
        except (InvalidRequest, ValueError, RecursionError) as error:
            raise ValueError(str(error) or "cannot be read") from None
        return self

    def reader(self, labels: Mapping[str, str]) -> Reader[Any]:
        """The reader that this stands for; a second look must not name one of the `labels`."""
        if self.one_of:
            return one_of(*self.one_of)
        if self.any_of:
            return any_of(*self.any_of)
        if self.words_from:
            return words_from(*self.words_from)
        if self.code_of is not None:
            return code_of(self.code_of)
        if self.schema_ is not None:
            return json_of(self.schema_)
        return prose(labels) if self.text == "second_look" else plain()


class Condition(Part):
    """What must hold, all of it: answers that have one of some values, two that differ, options.

    `null` is an answer that could not be read, or was not asked for. Of a question with several answers (`any_of`,
    `words_from`) one of the values has to be among them. Answers that cannot be read differ from nothing; a doubt
    about an answer does not hide that another one contradicts it.
    """

    answers: dict[str, Values] = {}
    differ: tuple[str, str] | None = None
    options: dict[Name, Value] = {}

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give answers, differ or options")
        return self


class Ask(Part):
    """One question: its answer is known by `ask` from then on, and is a finding unless `finding` is false.

    JSON and the description of the report are no findings.
    """

    ask: Name
    name: Line
    prompt: Words
    otherwise: Annotated[str, Field(max_length=20_000, description="the question in other words")] = ""
    read: Reading
    opening: tuple[Line, ...] = Field((), description="words of which a text may begin with one: `name.opening`")
    probabilities: bool = False
    strict: bool = Field(False, description="an answer with a doubt about it counts as not readable")
    finding: bool = True
    look: bool = True
    max_tokens: int = Field(32, ge=1, le=8192)
    prefix: str = Field("", max_length=200)
    when: Condition | None = None
    unless: Condition | None = None


class Stop(Part):
    """Ends the protocol with a flag and without a label."""

    stop: Flag
    when: Condition | None = None
    unless: Condition | None = None

    @model_validator(mode="after")
    def _sometimes(self) -> Self:
        if self.when is None and self.unless is None:
            raise ValueError("give when or unless; it would always stop here")
        return self


class Raise(Part):
    """Raises a flag, and takes the label away unless it may `keep` it."""

    flag: Flag
    keep: bool = Field(False, description="the label stands nevertheless")
    when: Condition | None = None
    unless: Condition | None = None


KINDS_OF_STEP = ("ask", "stop", "flag")


def _kind(step: Any) -> str | None:
    """Which of the three a step is."""
    given = [kind for kind in KINDS_OF_STEP if kind in step] if isinstance(step, Mapping) else []
    return given[0] if given else None


AnyStep = Annotated[
    Annotated[Ask, Tag("ask")] | Annotated[Stop, Tag("stop")] | Annotated[Raise, Tag("flag")],
    Discriminator(_kind, custom_error_type="kind_of_step", custom_error_message="a step is one of ask, stop and flag"),
]


class Conclude(Part):
    """Which answers make the label, the description and the data of the report."""

    label: Name | None = None
    description: Name | None = None
    data: Name | None = None


class Takes(Part):
    """What the workflow takes: see `medserve.workflow.Domain`; `looks` are names of what the guard can compute."""

    what: Line
    modalities: tuple[Modality, ...] = ()
    looks: tuple[str, ...] = ()
    kind: str = ""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.looks:
            if name not in guard.LOOKS:
                raise ValueError(f"no look is called {name!r}; there are: {', '.join(guard.LOOKS)}")
        if self.kind and self.kind not in guard.KINDS:
            raise ValueError(f"no kind of picture is called {self.kind!r}; there are: {', '.join(guard.KINDS)}")
        return self


class Choice(Part):
    """An option of the caller's: a value of the type that is given, within what is allowed."""

    type: Literal["boolean", "integer", "number", "string"]
    default: Value
    description: Annotated[str, Field(max_length=500)] = ""
    choices: tuple[Line, ...] = Field((), description="of a string: the only values that it may have")
    least: float | None = Field(None, allow_inf_nan=False, description="of a number")
    most: float | None = Field(None, allow_inf_nan=False, description="of a number")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.choices and self.type != "string":
            raise ValueError("choices are for options of the type string")
        if self.type not in ("integer", "number") and (self.least, self.most) != (None, None):
            raise ValueError("least and most are for options of the types integer and number")
        if not self.allows(self.default):
            raise ValueError(f"the default is not what the option allows: {self.wanted}")
        return self

    @property
    def kind(self) -> Any:
        """The type of its values, as a model's field has it."""
        if self.choices:
            return Literal[self.choices]
        if self.type == "string":
            return Annotated[str, Field(strict=True, max_length=1000)]
        if self.type == "boolean":
            return Annotated[bool, Field(strict=True)]
        number = int if self.type == "integer" else float
        return Annotated[number, Field(strict=True, allow_inf_nan=False, ge=self.least, le=self.most)]

    def allows(self, value: object) -> bool:
        """Whether it may have this value."""
        try:
            TypeAdapter(self.kind).validate_python(value)
        except ValidationError:
            return False
        return True

    @property
    def wanted(self) -> str:
        """What it allows, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = [(self.least, "at least"), (self.most, "at most")]
        return " ".join(
            [
                f"{'an' if self.type == 'integer' else 'a'} {self.type}",
                *(f"{word} {bound:g}" for bound, word in bounds if bound is not None),
            ]
        )


class Protocol(Part):
    """A whole file."""

    medserve: Literal[1] = Field(description="the version of this format")
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=40, coerce_numbers_to_str=True)]
    title: Line
    summary: Line
    modality: Modality
    max_images: int = Field(1, ge=1, le=128)
    takes: Takes
    labels: dict[Line, Line] = {}
    options: dict[Name, Choice] = {}
    steps: tuple[AnyStep, ...] = Field(min_length=1, max_length=64)
    conclude: Conclude = Conclude()

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if found := [*self._options_at_fault(), *self._steps_at_fault(), *self._conclusion_at_fault()]:
            raise Misfits(found)
        return self

    @property
    def questions(self) -> dict[str, Ask]:
        """The questions by the names that their answers have."""
        return {step.ask: step for step in self.steps if isinstance(step, Ask)}

    def _options_at_fault(self) -> Iterator[tuple[Place, str]]:
        for name in self.options:
            if name in Options.model_fields:
                yield ("options", name), "every workflow has an option of this name"
            elif hasattr(Options, name) or name.startswith("model_"):
                yield ("options", name), "this name cannot be used for an option; choose another"

    def _steps_at_fault(self) -> Iterator[tuple[Place, str]]:
        answers: dict[str, tuple[str, ...]] = {}
        shown: set[str] = set()
        for number, step in enumerate(self.steps):
            place = ("steps", number)
            for role in ("when", "unless"):
                if condition := getattr(step, role):
                    yield from self._condition_at_fault((*place, role), condition, answers)
            if isinstance(step, Ask):
                yield from self._question_at_fault(place, step, answers)
                if step.name in shown:
                    yield (*place, "name"), "an earlier question is shown under this name"
                shown.add(step.name)
                answers[step.ask] = step.read.reader({}).options
                if step.opening:
                    answers[f"{step.ask}.opening"] = step.opening
        if not shown:
            yield ("steps",), "there is no question"

    def _condition_at_fault(
        self, place: Place, condition: Condition, answers: Mapping[str, tuple[str, ...]]
    ) -> Iterator[tuple[Place, str]]:
        for name in condition.differ or ():
            if name not in answers:
                yield (*place, "differ"), f"no earlier question is called {name!r}"
        for name, wanted in condition.answers.items():
            here = (*place, "answers", name)
            if name not in answers:
                yield here, "no earlier question has this name"
                continue
            known = ", ".join((*answers[name], "null"))
            for value in wanted if isinstance(wanted, tuple) else (wanted,):
                if value is not None and value not in answers[name]:
                    yield here, f"{value!r} is none of the answers; there are: {known}"
        for name, value in condition.options.items():
            if name not in self.options:
                yield (*place, "options", name), "no option of this file has this name"
            elif not self.options[name].allows(value):
                yield (*place, "options", name), f"the option never has this value, but {self.options[name].wanted}"

    def _question_at_fault(self, place: Place, step: Ask, answers: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
        if step.ask in answers:
            yield (*place, "ask"), "an earlier question has this name"
        if step.ask == "options":
            yield (*place, "ask"), "the options are called so; choose another name"
        if step.probabilities and step.read.reader({}).kind not in SCORED_READERS:
            yield (*place, "probabilities"), "only one_of and code_of have answers that exclude one another"
        for part in ("prompt", "otherwise"):
            for _, name in PLACEHOLDER.findall(getattr(step, part)):
                option = name.removeprefix("options.")
                if name and name not in answers and (option == name or option not in self.options):
                    yield (*place, part), f"{{{name}}} is neither an earlier question nor options. and an option's name"

    def _conclusion_at_fault(self) -> Iterator[tuple[Place, str]]:
        asked = self.questions
        for role, name in self.conclude:
            if name is not None and name not in asked:
                yield ("conclude", role), f"no question is called {name!r}"
        label, description, data = (asked.get(name or "") for _, name in self.conclude)
        if label and label.read.reader({}).kind not in SCORED_READERS:
            yield ("conclude", "label"), "a label is the answer to a one_of or a code_of question"
        elif label:
            if not self.labels:
                yield ("conclude", "label"), "labels, which says what each label means, is missing"
            for one in self.labels:
                if one not in label.read.reader({}).options:
                    yield ("labels", one), f"no answer to {label.ask!r} is this label"
        elif self.labels and self.conclude.label is None:
            yield ("labels",), "conclude.label, which says whose answer is the label, is missing"
        if description and description.read.text is None:
            yield ("conclude", "description"), "a description is the answer to a text question"
        if data and data.read.schema_ is None:
            yield ("conclude", "data"), "data are the answer to a json question"


# --- running -------------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """What is known while a protocol runs."""

    options: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Answer[Any]] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    withdrawn: bool = False

    def due(self, step: Ask | Stop | Raise) -> bool:
        """Whether it is this step's turn."""
        return (step.when is None or self.holds(step.when)) and (step.unless is None or not self.holds(step.unless))

    def holds(self, condition: Condition) -> bool:
        """Whether all of a condition is so."""
        return (
            all(_is(self.values.get(name), wanted) for name, wanted in condition.answers.items())
            and all(self.options[name] == wanted for name, wanted in condition.options.items())
            and (condition.differ is None or self._differ(*condition.differ))
        )

    def _differ(self, *names: str) -> bool:
        one, other = (self.answers[name].value if name in self.answers else self.values.get(name) for name in names)
        return one is not None and other is not None and one != other

    def filled(self, text: str) -> str:
        """A prompt with the answers and options in place of their names; what they hold is not looked at again."""
        return PLACEHOLDER.sub(lambda found: f"{{{found[1]}}}" if found[1] else self._spoken(found[2]), text)

    def _spoken(self, name: str) -> str:
        option = name.removeprefix("options.")
        value = self.options[option] if option != name else self.values.get(name)
        if value is None:
            return UNREAD if name in self.values else UNASKED
        if isinstance(value, tuple):
            return ", ".join(value) or "none"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def take(self, step: Ask, answer: Answer[Any]) -> None:
        """Remember an answer."""
        self.answers[step.ask] = answer
        self.values[step.ask] = answer.decided if step.strict else answer.value
        if step.opening:
            self.values[f"{step.ask}.opening"] = opening(answer.text, step.opening)


def _is(value: Any, wanted: Values) -> bool:
    """Whether an answer is one of those that are wanted, or holds one of them where it has several parts."""
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    if isinstance(value, tuple):
        return bool(set(value or ("none",)) & set(values))
    return value in values


def workflow(protocol: Protocol, digest: str = "") -> Workflow:
    """The workflow that a checked file describes; `digest` is its content's, which is part of the version."""

    async def run(_study: Study, consult: Consult, chosen: Options) -> Conclusion:
        return await _run(protocol, consult, chosen.model_dump())

    return Workflow(
        name=protocol.name,
        title=protocol.title,
        summary=protocol.summary,
        modality=protocol.modality,
        run=run,
        version=f"{protocol.version}+{digest[:DIGITS]}" if digest else protocol.version,
        labels=protocol.labels,
        options=_options(protocol),
        max_images=protocol.max_images,
        domain=Domain(
            takes=protocol.takes.what,
            modalities=frozenset(protocol.takes.modalities),
            looks=tuple(guard.LOOKS[name] for name in protocol.takes.looks),
            kind=protocol.takes.kind,
        ),
    )


def _options(protocol: Protocol) -> type[Options]:
    """The options of every workflow, and those of the file."""
    fields: dict[str, Any] = {
        name: (choice.kind, Field(choice.default, description=choice.description or None))
        for name, choice in protocol.options.items()
    }
    return create_model("ProtocolOptions", __base__=Options, **fields) if fields else Options


async def _run(protocol: Protocol, consult: Consult, options: Mapping[str, Any]) -> Conclusion:
    course = Course(options)
    for step in protocol.steps:
        if not course.due(step):
            continue
        if isinstance(step, Ask):
            (answer,) = await consult.ask_all([_question(step, course, protocol.labels)])
            course.take(step, answer)
        elif isinstance(step, Stop):
            return Conclusion(findings=_findings(protocol, course), flags=once((*course.flags, step.stop)))
        else:
            course.flags.append(step.flag)
            course.withdrawn |= not step.keep
    return _concluded(protocol, course)


def _question(step: Ask, course: Course, labels: Mapping[str, str]) -> Question[Any]:
    reader = step.read.reader(labels)
    return Question(
        step.name,
        course.filled(step.prompt),
        reader,
        step.max_tokens,
        look=step.look,
        prefix=step.prefix,
        score=reader.options if step.probabilities else (),
        otherwise=course.filled(step.otherwise),
        constrain=reader.schema is not None,
    )


def _findings(protocol: Protocol, course: Course) -> tuple[Finding, ...]:
    hidden = {name for name, step in protocol.questions.items() if not step.finding or step.read.schema_ is not None}
    return tuple(
        answer.finding()
        for name, answer in course.answers.items()
        if name not in {*hidden, protocol.conclude.description}
    )


def _concluded(protocol: Protocol, course: Course) -> Conclusion:
    named, told, data = (course.answers.get(name or "") for _, name in protocol.conclude)
    value = None if course.withdrawn else course.values.get(protocol.conclude.label or "")
    label = value if value in protocol.labels else None
    return Conclusion(
        findings=_findings(protocol, course),
        label=label,
        label_meaning=protocol.labels[label] if label else None,
        probabilities=named.probabilities if named else None,
        calibrated=named.calibrated if named else None,
        label_mass=named.scores.mass if named and named.scores else None,
        description=(told.value or "") if told else "",
        removed=told.left_out if told else (),
        data=data.value if data else None,
        flags=once(course.flags),
    )


# --- reading files -------------------------------------------------------------------------------------------------


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


WHOLE = "the file"


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
        raise Faulty(Fault(mark.line + 1 if mark else 1, WHOLE, _one_line(reason))) from None
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
    return Fault(line, _dotted(place), _one_line(reason))


def _meant(place: Place) -> Place:
    """The place in the file: without the kind of a step, or the type of a union, that a fault was found in."""
    if place[:1] == ("steps",) and len(place) > 2 and place[2] in KINDS_OF_STEP:
        place = (*place[:2], *place[3:])
    return tuple(part for part in place if part != "[key]")


def _dotted(place: Place) -> str:
    return _one_line(".".join(map(str, place))) or WHOLE


def _one_line(text: str) -> str:
    """The text on one line, of a thousand characters at most, without characters that a terminal obeys."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:1000]


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
