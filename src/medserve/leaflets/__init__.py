"""What a report found, told to the patient in plain words: nothing that the report does not hold, or nothing at all.

The model is asked once for each finding, without any picture, to say it in plain words. Every sentence of its answer is
held against that finding (`support`); what the finding does not support is left out and kept with the reason. How hard
the text is to read is measured, and said where it is harder than was asked for. There is no sentence of our own in it:
where the report has no finding that may be told, there is no text but an error that says so.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from medserve import __version__
from medserve.engines import Engine
from medserve.errors import InvalidRequest
from medserve.exports.document import clean, with_unit
from medserve.flags import Flag
from medserve.generation import GREEDY, GenerationRequest, Message, Result, collect
from medserve.leaflets.readability import Readability, measured
from medserve.leaflets.support import CLASS, Fault, doubt
from medserve.readers import Reading, plain
from medserve.reports import PLACE, Finding, Record, Report, Step, is_demonstration, lacking, notice_for
from medserve.text import sentences
from medserve.workflow import counts

LEVEL = 6
"""The reading level where none is asked for: what health services commonly recommend for patients."""
MOST_TOKENS = 96
UNTOLD = frozenset({Flag.NOT_ASSESSABLE, Flag.BLIND, Flag.PICTURE_IGNORED, Flag.DOMAIN_DOUBT})
"""Flags of a report after which none of its findings may be told: they may be about nothing that the picture shows."""
DISPUTED = frozenset({Flag.CONTRADICTION, Flag.MEASUREMENT_DISAGREEMENT})
"""Flags of a conclusion that sets findings against one another: none of them is told, though each may be without."""
METHOD = "Flesch-Kincaid grade; syllables by pyphen or vowel groups, whichever are more"


class Told(Record):
    """A sentence of the text, and the finding that it says."""

    sentence: str
    finding: str
    step: str


class LeftOut(Record):
    """A sentence of the model's that is no part of the text, and why: a fault, or the flag for what it is."""

    sentence: str
    finding: str
    reason: Fault | Flag
    words: tuple[str, ...] = Field((), description="the words or numbers that the finding does not have")


Unfit = Literal["not readable", "not measured", "a place", "flagged"]


class Untold(Record):
    """A finding that was not told, and why."""

    finding: str
    reason: Unfit | Literal["no sentence of the model's was supported"]


class Leaflet(Record):
    """A text for the patient about one report."""

    report: str = Field(description="the report's identifier")
    text: str = Field(description="sentences of the model's; empty where none was supported")
    told: tuple[Told, ...]
    removed: tuple[LeftOut, ...]
    untold: tuple[Untold, ...]
    level: int = Field(description="the school grade that was asked for")
    readability: Readability | None = Field(description="of the text without the notice; null where it is empty")
    method: str = METHOD
    flags: tuple[Flag, ...]
    steps: tuple[Step, ...]
    model: str
    medserve: str = __version__
    notice: str


async def explain(report: Report, engine: Engine, level: int = LEVEL) -> Leaflet:
    """A text for the patient from the findings of a report, for readers of a school grade from 1 to 16.

    Raises InvalidRequest where no finding may be told, and ModelError or EngineError where the model cannot answer.
    """
    if not 1 <= level <= 16:
        raise InvalidRequest(f"the reading level is a school grade from 1 to 16, not {level}", param="level")
    findings, untold = tellable(report)
    if not findings:
        raise nothing_to_tell()
    told: list[Told] = []
    removed: list[LeftOut] = []
    steps: list[Step] = []
    for finding in findings:
        step, reading = await _asked(engine, finding, level)
        kept, gone = _sorted_out(reading, finding, step.name)
        told += kept
        removed += gone
        steps.append(step)
        if not kept:
            untold.append(Untold(finding=finding.name, reason="no sentence of the model's was supported"))
    return _leaflet(report, engine, level, told, removed, untold, steps)


def nothing_to_tell() -> InvalidRequest:
    """The error for a report without a finding that may be told."""
    return InvalidRequest(
        "the report has no finding that may be told to a patient: none was made, or none is readable and free of "
        "flags; there is no text without one",
        param="report",
    )


def tellable(report: Report) -> tuple[list[Finding], list[Untold]]:
    """The findings that may be told, the class last, and those that may not.

    What cannot be read or bears a flag is not told, nor what other words were answered otherwise, nor a box, of which
    an empty one denies nothing. Nothing is where the report says that its answers may have nothing to do with the
    picture, that the picture may not be what the workflow takes, or that they speak against one another.
    """
    found = report.conclusion
    unfit = UNTOLD & {*report.flags, *found.flags} or DISPUTED & set(found.flags)
    if unfit or (report.domain and not report.domain.assessable):
        return [], [Untold(finding=finding.name, reason="flagged") for finding in found.findings]
    all_of_them = [*found.findings, *_classified(report)]
    worded = {name for run in report.controls if run.kind == "paraphrase" for name in run.changed}
    worded |= {CLASS} if "label" in worded else set()
    findings = [finding for finding in all_of_them if _why_not(finding) is None and finding.name not in worded]
    untold = [
        Untold(finding=finding.name, reason=_why_not(finding) or "flagged")
        for finding in all_of_them
        if finding not in findings
    ]
    return findings, untold


def _why_not(finding: Finding) -> Unfit | None:
    """What about a finding itself keeps it from being told."""
    if finding.value is None:
        return lacking(finding)
    if isinstance(finding.value, tuple) and finding.name.startswith(PLACE):
        return "a place"
    return "flagged" if finding.flags else None


def _classified(report: Report) -> list[Finding]:
    """The class as a finding, with the flags of the step that it was read from."""
    found = report.conclusion
    if found.label is None:
        return []
    flags = next((step.flags for step in reversed(report.steps) if step.value == found.label), ())
    return [Finding(name=CLASS, value=found.label_meaning or found.label, flags=flags)]


def prompt_for(finding: Finding, level: int) -> str:
    """The question: one finding, and what must not be made of it."""
    return (
        "A computer program looked at a medical picture and wrote down this finding.\n"
        f"Finding: {finding.name}\nValue: {with_unit(finding)}\n\n"
        f"Say this to the patient in one short sentence that a reader of school grade {level} understands. Say only "
        "what the finding says, with its own numbers. Name no cause, no risk, no other finding, and give no advice."
    )


async def _asked(engine: Engine, finding: Finding, level: int) -> tuple[Step, Reading[str]]:
    prompt = prompt_for(finding, level)
    thinking = 0 if engine.capabilities.thinking else None
    request = GenerationRequest((Message("user", (prompt,)),), MOST_TOKENS, GREEDY, thinking=thinking)
    result = await collect(engine.stream(request))
    reading = plain().read(result.text)
    return _step(finding, prompt, result, reading), reading


def _step(finding: Finding, prompt: str, result: Result, reading: Reading[str]) -> Step:
    return Step(
        name=f"Plain words: {finding.name}",
        prompt=prompt,
        max_tokens=MOST_TOKENS,
        reply=result.text,
        thinking=result.thinking,
        finish=result.finish,
        value=reading.value,
        flags=reading.flags,
        tokens=counts(result.usage),
        prompt_seconds=result.timings.prompt,
        completion_seconds=result.timings.completion,
    )


def _sorted_out(reading: Reading[str], finding: Finding, step: str) -> tuple[list[Told], list[LeftOut]]:
    """The sentences that the finding supports, each once, and the others with the reason."""
    removed = [LeftOut(sentence=gone.sentence, finding=finding.name, reason=gone.reason) for gone in reading.removed]
    told: dict[str, Told] = {}
    for sentence in sentences(reading.value or ""):
        found = doubt(sentence, finding)
        if found is None:
            told.setdefault(sentence, Told(sentence=sentence, finding=finding.name, step=step))
        else:
            removed.append(LeftOut(sentence=sentence, finding=finding.name, reason=found.fault, words=found.words))
    return list(told.values()), removed


def _leaflet(
    report: Report,
    engine: Engine,
    level: int,
    told: Sequence[Told],
    removed: Sequence[LeftOut],
    untold: Sequence[Untold],
    steps: Sequence[Step],
) -> Leaflet:
    text = " ".join(one.sentence for one in told)
    found = measured(text)
    facts = dict(engine.capabilities.facts)
    noticed = {
        Flag.CLEANING_EMPTIED: not text,
        Flag.INCOMPLETE: bool(untold),
        Flag.HARD_TO_READ: found is not None and found.grade > level,
        Flag.DEMONSTRATION: Flag.DEMONSTRATION in report.flags or is_demonstration(facts),
    }
    return Leaflet(
        report=report.id,
        text=text,
        told=tuple(told),
        removed=tuple(removed),
        untold=tuple(untold),
        level=level,
        readability=found,
        flags=tuple(flag for flag, raised in noticed.items() if raised),
        steps=tuple(steps),
        model=engine.name,
        notice=_notice(report.notice, notice_for(facts)),
    )


def _notice(of_the_report: str, of_the_model: str) -> str:
    """The notice of both, said once where one is part of the other."""
    if of_the_model in of_the_report:
        return of_the_report
    return of_the_model if of_the_report in of_the_model else f"{of_the_report} {of_the_model}"


def as_text(leaflet: Leaflet) -> str:
    """The text with the notice, and what a person who hands it on must know."""
    found = leaflet.readability
    level = f"Reading level: grade {found.grade:g} (asked for: {leaflet.level})" if found else "Reading level: no text"
    short = "" if found is None or found.reliable else "; fewer than 100 words, for which the measure is uncertain"
    parts = [
        leaflet.text or "No sentence of the model's was supported by the report, so there is no text.",
        level + short,
        "\n".join(f"Left out: {gone.sentence} ({gone.reason})" for gone in leaflet.removed),
        "\n".join(f"Not told: {one.finding} ({one.reason})" for one in leaflet.untold),
        "\n".join(f"{flag}: {flag.meaning}" for flag in leaflet.flags),
        leaflet.notice,
    ]
    return clean("\n\n".join(part for part in parts if part))
