"""A report says what was asked, what was answered and what was made of it, completely enough to be replayed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isclose
from textwrap import fill
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

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
    source: Literal["model", "measured"] = "model"
    step: str = Field("", description="the step that the value was read from")
    flags: tuple[Flag, ...] = ()


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
        None, description="probability of each label given that the answer is one of them; not calibrated"
    )
    label_mass: float | None = Field(None, description="probability that the answer is any of the labels at all")
    description: str = ""
    removed: tuple[RemovedSentence, ...] = ()
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
    conclusion: Conclusion
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
        return self._said() == other._said() and _near(self.conclusion.probabilities, other.conclusion.probabilities)

    def _said(self) -> dict[str, Any]:
        """The words and what was made of them, as they travel: a list that was a tuple is the same list."""
        words = {"name", "prompt", "images", "prefix", "reply", "thinking", "finish", "value", "flags"}
        made = {"findings", "label", "description", "removed", "flags"}
        return self.model_dump(mode="json", include={"conclusion": made, "steps": {"__all__": words}})


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


def as_text(report: Report) -> str:
    """The report for a person to read in a terminal or a letter, in lines of at most 100 characters."""
    parts = (_heading(report), _findings(report), _classification(report), _description(report), _review(report))
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
        f"  {finding.name:<{width}}{_shown(finding.value)}{_marked(finding.flags)}"
        + ("  (measured)" if finding.source == "measured" else "")
        for finding in findings
    ]
    return "\n".join(["Findings", *lines])


def _classification(report: Report) -> str:
    found = report.conclusion
    if found.label is None and found.probabilities is None:
        return ""
    meaning = f" ({found.label_meaning})" if found.label_meaning else ""
    lines = ["Classification", f"  {found.label or 'none could be read'}{meaning}"]
    if found.probabilities:
        shares = "  ".join(f"{label} {share:.3f}" for label, share in found.probabilities.items())
        lines.append(f"  label probabilities (the model's own, not calibrated): {shares}")
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


def _shown(value: object) -> str:
    if value is None:
        return "not readable"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)


def _marked(flags: tuple[Flag, ...]) -> str:
    return f"  [{', '.join(flags)}]" if flags else ""
