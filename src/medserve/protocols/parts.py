"""A workflow file consists of these parts; each is valid by itself, and together they are held against one another."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

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
    model_validator,
)

from medserve import guard
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.images import Modality
from medserve.readers import Reader, any_of, code_of, json_of, one_of, plain, prose, words_from
from medserve.workflow import SCORED_READERS, Options

PLACEHOLDER = re.compile(r"\{\{([a-z][a-z0-9_.]*)\}\}|\{([a-z][a-z0-9_.]*)\}")
"""`{name}` stands for an answer or an option, `{{name}}` for the word in braces."""
WHOLE = "the file"
"""The place of what is wrong with a file as a whole."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Line = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$", max_length=200, description="one line")]
Words = Annotated[str, Field(pattern=r"\S", max_length=20_000)]
Place = tuple[Any, ...]


def dotted(place: Place) -> str:
    """A place in a file, as people write it."""
    return in_one_line(".".join(map(str, place))) or WHOLE


def in_one_line(text: str) -> str:
    """The text on one line, of a thousand characters at most, without characters that a terminal obeys."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:1000]


class Misfits(ValueError):
    """What in a file does not go together, each with its place."""

    def __init__(self, found: Sequence[tuple[Place, str]]) -> None:
        super().__init__("; ".join(f"{dotted(place)}: {reason}" for place, reason in found))
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
