"""A checked file runs as any workflow does: step after step, and what was answered decides which ones are taken."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, create_model

from medserve import guard
from medserve.flags import Flag
from medserve.images import Study
from medserve.protocols.parts import PLACEHOLDER, Ask, Condition, Protocol, Raise, Stop, Values
from medserve.readers import opening
from medserve.reports import Conclusion, Finding
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow, once

DIGITS = 16
"""Characters of a file's SHA-256 that stand behind its version."""
UNREAD = "not readable"
UNASKED = "not asked"


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
