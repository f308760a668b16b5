"""A report says what was asked, what was answered and what was made of it, completely enough to be replayed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from math import isclose
from textwrap import fill
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from medserve import __version__
from medserve.flags import Flag
from medserve.generation import Finish
from medserve.images import Modality, Study

NOTICE = (
    "Research use only. This report was written by a machine-learning model and has not been reviewed. It is not "
    "intended to inform diagnosis, patient management or treatment; every statement needs independent verification."
)
DEMO_NOTICE = (
    "It was written by the demonstration model that ships with medserve, which has only ever seen drawings: "
    "its answers have no clinical meaning at all."
)
HAI_DEF_NOTICE = (
    "HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use found at "
    "https://developers.google.com/health-ai-developer-foundations/terms"
)
LINE = 100
"""Characters of a line in a report's text."""
NEAR = 1e-4
"""Probabilities closer than this are equal."""
PLACE = "Place of "
"""How the names of findings begin that are boxes in a picture; an empty one denies nothing."""
UNITS = {"[hnsf'U]": "HU", "mm3": "mm³"}
"""How people write UCUM's units that look otherwise."""
DEMO_WEIGHTS = "medserve-demo"
"""The name that the demonstration model's weights carry inside."""


class Record(BaseModel):
    """What travels: frozen, and strict about names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class TokenCounts(Record):
    """Tokens as the engine counted them (`cached` and `image` are parts of `prompt`), and pictures encoded."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    image: int = 0
    encodes: int = Field(0, description="how often a picture went through the vision encoder")
    thinking: int | None = Field(
        None, exclude_if=lambda thought: thought is None, description="the part of completion that was thought"
    )


class Step(Record):
    """One question to the model, word for word, and everything that came back."""

    name: str
    prompt: str
    images: tuple[str, ...] = Field((), description="content hashes of the pictures shown, in order")
    prefix: str = ""
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    reply: str
    thinking: str = ""
    finish: Finish
    value: Any = Field(None, description="what the reply was read as; null when it could not be read")
    flags: tuple[Flag, ...] = ()
    label_logprobs: dict[str, float] | None = Field(
        None,
        description="natural-log probability of each label as the whole answer, from raw logits; -10000 means none",
    )
    tokens: TokenCounts = TokenCounts()
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0


class Finding(Record):
    """One statement of the report and where it comes from."""

    name: str
    value: str | float | bool | tuple[str, ...] | None
    unit: str = Field("", description="UCUM unit of a measured number, such as mm, mm3 or [hnsf'U]")
    source: Literal["model", "measured"] = "model"
    step: str = Field("", description="the step that the value was read from")
    probabilities: dict[str, float] | None = Field(
        None, description="probability of each closed answer given that the answer is one of them"
    )
    flags: tuple[Flag, ...] = ()


class Box(Record):
    """A place in a picture, in pixels of the picture as given: rows `top` to `bottom`, columns `left` to `right`.

    All borders lie between 0 and the picture's height or width; the lower ones are not part of the box.
    """

    label: str
    picture: int = Field(0, description="which picture of the study, from 0")
    top: float
    left: float
    bottom: float
    right: float
    source: Literal["model", "measured"] = "model"


class Figure(Record):
    """A picture that belongs to the report: what a measurement or a box was found on."""

    name: str
    caption: str
    png: str = Field(description="the picture, PNG in base64")
    picture: int | None = Field(None, description="which picture of the study it is drawn on, from 0")


class QuotedTable(Record):
    """A table from elsewhere, with where it comes from and what it cannot tell; quoted, never concluded from."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    limits: str


class Check(Record):
    """One look at whether a study is what the workflow takes; `passed` is null where it could not be judged."""

    name: str
    passed: bool | None
    detail: str


class Domain(Record):
    """What the workflow takes, and what was found when the study was held against it."""

    takes: str
    checks: tuple[Check, ...] = ()
    assessable: bool = True


class Control(Record):
    """The same protocol once more, with the picture or the words changed, and what became of the answers."""

    kind: Literal["blank", "swapped", "paraphrase"]
    changed: tuple[str, ...] = Field((), description="the findings, or `label`, whose value is another one")
    same: tuple[str, ...] = Field((), description="those that stayed as they were")
    reworded: tuple[str, ...] = Field((), description="the steps that were asked in other words")
    distance: float | None = Field(
        None,
        description="the greatest total variation, 0 to 1, between both runs' probabilities of one closed answer; "
        "null where there are none",
    )
    label: str | None = None
    probabilities: dict[str, float] | None = None
    steps: tuple[Step, ...] = ()


class Calibrated(Record):
    """How label probabilities were calibrated: on which data, by which method, and what they were before."""

    step: str = Field(description="the step whose scores they are")
    method: Literal["temperature", "platt"]
    parameters: dict[str, float]
    dataset: str = Field(description="SHA-256 of the data set that it was fitted on")
    n: int
    before: dict[str, float]


class RemovedSentence(Record):
    """A sentence of the model's that the report leaves out, and why."""

    sentence: str
    reason: Flag


class Conclusion(Record):
    """What a workflow makes of its answers. `label` is null when the model gave none that can be read."""

    findings: tuple[Finding, ...] = ()
    label: str | None = None
    label_meaning: str | None = None
    probabilities: dict[str, float] | None = Field(
        None,
        description="probability of each label given that the answer is one of them; `calibrated` says if it is that",
    )
    calibrated: Calibrated | None = None
    label_mass: float | None = Field(None, description="probability that the answer is any of the labels at all")
    description: str = ""
    removed: tuple[RemovedSentence, ...] = ()
    boxes: tuple[Box, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[QuotedTable, ...] = ()
    data: JsonValue = Field(None, description="the answer as JSON, where the workflow asks for that")
    missing: tuple[str, ...] = Field((), description="what was asked for and is not in `data`, as JSON pointers")
    flags: tuple[Flag, ...] = ()


class PictureFacts(Record):
    """What is recorded of a picture: its content hash and the file's technical facts, never a name."""

    sha256: str
    format: str
    mode: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


class StudyConcern(Record):
    """What a reader must know about the files: a name that does not change, and a sentence."""

    name: str
    meaning: str


class StudyFacts(Record):
    """What is recorded of a study."""

    sha256: str
    modality: Modality = Field(description="as the files say it; where they do not, what the workflow is for")
    pictures: tuple[PictureFacts, ...]
    concerns: tuple[StudyConcern, ...] = Field((), description="what the files give cause for; any needs a review")
    spacing: tuple[float, float, float] | None = Field(None, description="mm between slices, rows and columns")
    labels: tuple[str, ...] = Field((), description="the text that follows each picture in a prompt")
    slices: tuple[int, ...] = Field((), description="which slice of the volume each picture is, from 0")
    facts: dict[str, str] = Field({}, description="what the files say about themselves, without identity")

    @classmethod
    def of(cls, study: Study) -> Self:
        pictures = tuple(
            PictureFacts(
                sha256=image.sha256,
                format=image.source.format,
                mode=image.source.mode,
                width=image.source.width,
                height=image.source.height,
                notes=image.source.notes,
            )
            for image in study.images
        )
        return cls(
            sha256=study.sha256,
            modality=study.modality,
            pictures=pictures,
            concerns=tuple(StudyConcern(name=one.value, meaning=one.meaning) for one in study.concerns),
            spacing=study.spacing,
            labels=study.labels,
            slices=study.slices,
            facts=dict(study.facts),
        )


class Provenance(Record):
    """What made the report: enough to say later whether another run was the same run."""

    medserve: str = __version__
    workflow: str
    workflow_version: str
    options: dict[str, Any] = {}
    model: str
    engine: str
    facts: dict[str, str] = Field({}, description="what the engine says of its weights, build and settings")


class Report(Record):
    """The result of one workflow on one study."""

    id: str = Field(default_factory=lambda: uuid4().hex)
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    title: str
    study: StudyFacts
    domain: Domain | None = None
    conclusion: Conclusion
    controls: tuple[Control, ...] = ()
    depends_on_picture: bool | None = Field(
        None, description="whether the answers changed with every exchanged picture; null without such a control"
    )
    flags: tuple[Flag, ...] = ()
    needs_review: bool
    steps: tuple[Step, ...]
    tokens: TokenCounts = TokenCounts()
    seconds: float = 0.0
    provenance: Provenance
    notice: str = NOTICE

    def same_answers(self, other: "Report") -> bool:
        """Whether both runs asked and answered alike, word for word, with equal label probabilities (to 1e-4).

        Times and identifiers may differ. Probabilities are compared as numbers because an engine that reuses work adds
        the same products up in another order.
        """
        return self._said() == other._said() and all(map(_near, self._shares(), other._shares()))

    def _said(self) -> dict[str, Any]:
        """The words and what was made of them, as they travel: a list that was a tuple is the same list."""
        words = {"name", "prompt", "prefix", "reply", "thinking", "finish", "value", "flags"}
        made = {"findings", "label", "description", "removed", "flags", "boxes", "data", "missing"}
        control = {"kind", "changed", "same", "reworded", "label"}
        said = self.model_dump(
            mode="json",
            include={
                "domain": {"assessable": True, "checks": {"__all__": {"name", "passed"}}},
                "conclusion": made,
                "controls": {"__all__": {**dict.fromkeys(control, True), "steps": {"__all__": words}}},
                "depends_on_picture": True,
                "steps": {"__all__": {*words, "images"}},
            },
        )
        for finding in said["conclusion"]["findings"]:
            del finding["probabilities"]  # compared as numbers
        return said

    def _shares(self) -> list[Mapping[str, float] | None]:
        """All probabilities that were concluded, in a fixed order."""
        own, controls = self.conclusion, [run.probabilities for run in self.controls]
        return [own.probabilities, *(finding.probabilities for finding in own.findings), *controls]


def _near(one: Mapping[str, float] | None, other: Mapping[str, float] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(isclose(one[label], other[label], abs_tol=NEAR) for label in one)


def is_demonstration(facts: Mapping[str, str]) -> bool:
    """Whether these are the facts of an engine that runs the demonstration model, whatever it is called here."""
    return facts.get("weights") == DEMO_WEIGHTS


def notice_for(facts: Mapping[str, str]) -> str:
    """The research-use notice, with what the model in use adds to it."""
    if is_demonstration(facts):
        return f"{NOTICE} {DEMO_NOTICE}"
    weights = facts.get("weights", "")
    return f"{NOTICE} {HAI_DEF_NOTICE}" if "medgemma" in weights.lower() else NOTICE


def calibrated_how(made: Calibrated | None) -> str:
    """Whose probabilities they are, in words: calibrated on how many cases of which data set, or the model's own."""
    if made is None:
        return "the model's own, not calibrated"
    return f"calibrated by {made.method} on {made.n} cases of the data set {made.dataset[:12]}"


def as_text(report: Report) -> str:
    """The report for a person to read in a terminal or a letter, in lines of at most 100 characters."""
    parts = (
        _heading(report),
        _domain(report),
        _findings(report),
        _classification(report),
        _description(report),
        _data(report),
        _tables(report),
        _controls(report),
        _review(report),
    )
    text = "\n\n".join(part for part in (*parts, _footer(report)) if part)
    return "\n".join(_wrapped(line) for line in text.split("\n"))


def _wrapped(line: str) -> str:
    """The line in pieces of at most LINE characters, indented as it is."""
    indent = line[: len(line) - len(line.lstrip())]
    return fill(line, LINE, subsequent_indent=indent, break_on_hyphens=False) if line.strip() else line


def _heading(report: Report) -> str:
    pictures = report.study.pictures
    sizes = ", ".join(f"{p.format} {p.width}x{p.height}" for p in pictures[:3]) + (", ..." if len(pictures) > 3 else "")
    state = "NEEDS REVIEW" if report.needs_review else "complete"
    study = f"{report.study.sha256[:16]}  {sizes}"
    if len(pictures) > 1:
        study += f"  ({len(pictures)} pictures)"
    if report.study.spacing:
        study += f"  {' x '.join(f'{step:g}' for step in report.study.spacing)} mm"
    return (
        f"{report.title}\n{'=' * len(report.title)}\n"
        f"Report     {report.id}  ({state})\n"
        f"Study      {study}\n"
        f"Model      {report.provenance.model} on {report.provenance.engine}"
    )


def _findings(report: Report) -> str:
    findings = report.conclusion.findings
    if not findings:
        return ""
    width = max(len(finding.name) for finding in findings) + 2
    lines = [
        f"  {finding.name:<{width}}{_shown(finding)}{_in(finding)}{_shares(finding)}{_marked(finding.flags)}"
        + ("  (measured)" if finding.source == "measured" and finding.value is not None else "")
        for finding in findings
    ]
    return "\n".join(["Findings", *lines])


def _classification(report: Report) -> str:
    found = report.conclusion
    if found.label is None and found.probabilities is None:
        return ""
    meaning = f" ({found.label_meaning})" if found.label_meaning else ""
    lines = ["Classification", f"  {found.label or 'none was concluded'}{meaning}"]
    if found.probabilities:
        shares = "  ".join(f"{label} {share:.3f}" for label, share in found.probabilities.items())
        how = calibrated_how(found.calibrated)
        lines.append(f"  label probabilities ({how}): {shares}")
    if found.label_mass is not None:
        lines.append(f"  probability that the answer is any of the labels: {found.label_mass:.3f}")
    return "\n".join(lines)


def _description(report: Report) -> str:
    found = report.conclusion
    if not found.description and not found.removed:
        return ""
    lines = ["Description (the model's own words)", f"  {found.description or 'none'}"]
    lines += [f"  left out ({removed.reason}): {removed.sentence}" for removed in found.removed]
    return "\n".join(lines)


def _domain(report: Report) -> str:
    domain = report.domain
    against = [] if domain is None else [check for check in domain.checks if check.passed is False]
    if domain is None or not against:
        return ""
    head = f"{'A doubt' if domain.assessable else 'NOT ASSESSABLE'}: this workflow takes {domain.takes}"
    return "\n".join([head, *(f"  {check.name}: {check.detail}" for check in against)])


def _data(report: Report) -> str:
    found = report.conclusion
    if found.data is None and not found.missing:
        return ""
    lines = ["Data", *(f"  {line}" for line in dumps(found.data, indent=2, ensure_ascii=False).split("\n"))]
    return "\n".join([*lines, f"  missing: {', '.join(found.missing)}"] if found.missing else lines)


def _tables(report: Report) -> str:
    return "\n\n".join(_table(table) for table in report.conclusion.tables)


def _table(table: QuotedTable) -> str:
    rows = aligned(table.columns, *table.rows)
    return "\n".join([table.title, *rows, f"  Source: {table.source}", f"  Limits: {table.limits}"])


def aligned(*rows: Sequence[str]) -> list[str]:
    """Rows as indented lines of text, with their cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading with sentences and at most one table."""

    title: str
    words: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        """For a terminal."""
        words = (fill(line, LINE, initial_indent="  ", subsequent_indent="    ") for line in self.words)
        return "\n".join([self.title, *words, *(aligned(self.columns, *self.rows) if self.rows else ())])


def _controls(report: Report) -> str:
    if not report.controls:
        return ""
    lines = [
        f"  {control.kind}: {_became(control)}"
        + (f", probabilities by at most {control.distance:.3f}" if control.distance is not None else "")
        for control in report.controls
    ]
    told = {True: "the answers depend on the picture", False: "THE ANSWERS DO NOT DEPEND ON THE PICTURE"}
    return "\n".join(["Controls", *lines, *(f"  {told[d]}" for d in [report.depends_on_picture] if d is not None)])


def _became(control: Control) -> str:
    if control.kind == "paraphrase" and not control.reworded:
        return "no question of this workflow has other words"
    return f"{', '.join(control.changed) or 'nothing'} changed"


def _review(report: Report) -> str:
    parts = []
    if report.study.concerns:
        parts.append("\n".join(["Concerns", *(f"  {one.name}: {one.meaning}" for one in report.study.concerns)]))
    if report.flags:
        parts.append("\n".join(["Flags", *(f"  {flag}: {flag.meaning}" for flag in report.flags)]))
    return "\n\n".join(parts)


def _footer(report: Report) -> str:
    tokens = report.tokens
    return (
        f"{len(report.steps)} questions, {tokens.prompt} prompt tokens ({tokens.cached} reused), "
        f"{tokens.encodes} vision encode(s), {tokens.completion} written, {report.seconds:.1f} s\n{report.notice}"
    )


def lacking(finding: Finding) -> Literal["not readable", "not measured"]:
    """Why a finding has no value, in words: nobody reads what code measures."""
    return "not measured" if finding.source == "measured" else "not readable"


def in_words(value: str | float | bool | tuple[str, ...]) -> str:
    """A finding's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)


def _shown(finding: Finding) -> str:
    return lacking(finding) if finding.value is None else in_words(finding.value)


def _in(finding: Finding) -> str:
    unit = finding.unit
    return f" {UNITS.get(unit, unit)}" if unit and finding.value is not None else ""


def _shares(finding: Finding) -> str:
    shares = finding.probabilities or {}
    return f"  ({', '.join(f'{label} {share:.3f}' for label, share in shares.items())})" if shares else ""


def _marked(flags: tuple[Flag, ...]) -> str:
    return f"  [{', '.join(flags)}]" if flags else ""
