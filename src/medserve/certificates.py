"""A certificate says whether a build answers as the reference does, and it holds for that build and no other.

It is made by `medserve verify` and kept in the home of the settings, under what decides how a model answers: engine and
build, fingerprints of the weights, precision, devices. An engine that may be silently wrong about pictures looks for
its certificate when it starts:

    parity = certificates.parity(settings.home, facts)
    parity.fact      # ("parity", "verified 2026-11-20"), ("parity", "failed ...") or ("parity", NOT_VERIFIED)
    parity.refusal   # why pictures must be refused; "" where they need not be

A certificate tells of numbers, hashes and versions; no name of a file, no picture and no question of a user's is in it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from json import dumps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from medserve import __version__, outputs
from medserve.reports import Record

DECISIVE = (
    "engine",
    "build",
    "attention",
    "devices",
    "weights",
    "fingerprint",
    "projector_fingerprint",
    "precision",
    "quantisation",
    "resample",
    "parallel",
    "image_mask",
    "arguments",
    "address_fingerprint",
)
"""The facts of an engine (`Capabilities.facts`) that a certificate holds for; one that is not known is left out."""
PARITY = "parity"
"""The fact that says which certificate an engine has."""
NOT_VERIFIED = "not verified"


class Outcome(StrEnum):
    """How a check ended; one that was not done says why."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_DONE = "not_done"


class Verdict(StrEnum):
    """What all checks say together: incomplete where none failed and one that is needed was not done."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


class Measure(Record):
    """A number that a check looked at; None where it could not be measured, with the reason beside it."""

    name: str
    value: float | None
    unit: str = ""
    most: float | None = Field(None, description="the check fails above this")
    least: float | None = Field(None, description="the check fails below this")
    reason: str = ""


class Check(Record):
    """One thing that was compared, how that ended, in words and in numbers."""

    name: Literal["sees", "pixels", "template", "labels", "causes"]
    outcome: Outcome
    reason: str
    needed: bool = Field(True, description="whether the verdict needs it: a model without vision need not see")
    measures: tuple[Measure, ...] = ()


class Finding(StrEnum):
    """Whether a known fault is what the build has."""

    FOUND = "found"
    EXCLUDED = "excluded"
    UNDECIDED = "undecided"
    NOT_TRIED = "not_tried"


class Cause(Record):
    """A known fault of builds, planted into the reference, and how near the build's answers come to it.

    Distances are medians over the `n` answers that the fault changes: the mean absolute difference, in nats, between
    the log-probabilities of an answer's labels.
    """

    name: str
    meaning: str
    finding: Finding
    reason: str
    n: int = 0
    nearer: int = Field(0, description="answers of the build nearer to the fault's than to the reference's")
    effect: float | None = Field(None, description="from the reference to the fault")
    to_reference: float | None = Field(None, description="from the build to the reference")
    to_fault: float | None = Field(None, description="from the build to the fault")


class Speed(Record):
    """How fast one side was; never a reason to pass or fail. None where the engine does not tell its own times."""

    side: Literal["subject", "reference"]
    encode_seconds: float | None = Field(None, description="for one picture, vision encoder and projector")
    prompt_tokens: float | None = Field(None, description="tokens read in a second")
    answer_tokens: float | None = Field(None, description="tokens written in a second, one answer at a time")
    reason: str = Field("", description="why a number is missing")


class Certificate(Record):
    """What was compared between a build and the reference, and what came out."""

    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    medserve: str = __version__
    model: str
    verdict: Verdict
    summary: str = Field(description="the verdict in a sentence")
    subject: dict[str, str] = Field(description="facts of the build's engine")
    reference: dict[str, str] = Field(description="facts of the reference's engine")
    settings: dict[str, str | int | float]
    pictures: int
    pictures_refused: int = Field(0, description="files that could not be read, which were left out")
    picture_set: str = Field(description="SHA-256 of the content of the pictures and of the questions asked")
    checks: tuple[Check, ...]
    causes: tuple[Cause, ...] = ()
    speeds: tuple[Speed, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if self.verdict is not verdict(self.checks):
            raise ValueError("the verdict is not the one that the checks lead to")
        return self

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASSED

    @property
    def refusal(self) -> str:
        """Why pictures must not be shown to this build; empty where nothing failed."""
        return self.summary if self.verdict is Verdict.FAILED else ""


def verdict(checks: tuple[Check, ...]) -> Verdict:
    """What the checks say together."""
    if any(check.outcome is Outcome.FAILED for check in checks):
        return Verdict.FAILED
    done = all(check.outcome is Outcome.PASSED for check in checks if check.needed)
    return Verdict.PASSED if done and any(check.needed for check in checks) else Verdict.INCOMPLETE


@dataclass(frozen=True)
class Parity:
    """What is known of a build: the fact for its record, and why pictures must be refused (empty: they need not be)."""

    fact: tuple[str, str]
    refusal: str = ""


def parity(home: Path, facts: Mapping[str, str]) -> Parity:
    """What the certificate of this build says. Blocks for as long as reading a small file takes.

    Pixels and prompts are medserve's own: what another version of it found right is not known of this one.
    """
    found = find(home, facts)
    if found is None or (found.passed and found.medserve != __version__):
        return Parity((PARITY, NOT_VERIFIED))
    said = {
        Verdict.PASSED: f"verified {found.created:%Y-%m-%d}",
        Verdict.FAILED: f"failed {found.created:%Y-%m-%d}",
        Verdict.INCOMPLETE: NOT_VERIFIED,
    }
    return Parity((PARITY, said[found.verdict]), found.refusal)


def is_unverified(facts: Mapping[str, str]) -> bool:
    """Whether an engine says of itself that it should have a certificate and has none that it passed."""
    return PARITY in facts and not facts[PARITY].startswith("verified")


def find(home: Path, facts: Mapping[str, str]) -> Certificate | None:
    """The certificate of an engine with these facts; None where there is none, or what is there is damaged."""
    try:
        found = Certificate.model_validate_json(_file(home, facts).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if subject_of(found.subject) == subject_of(facts) else None


def prepared(home: Path) -> Path:
    """The folder of certificates, in which a file can be written; raises InvalidRequest where none can.

    To be asked before the work of minutes whose outcome is kept there.
    """
    return outputs.kept_in(home, "certificates")


def keep(home: Path, certificate: Certificate) -> Path:
    """Write a certificate where `find` finds it, in place of an earlier one of the same build; returns its file."""
    folder, file = prepared(home), _file(home, certificate.subject)
    with NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=".", delete=False) as fresh:
        fresh.write(certificate.model_dump_json(indent=1) + "\n")
        fresh.flush()
        os.fsync(fresh.fileno())
    Path(fresh.name).replace(file)
    return file


def subject_of(facts: Mapping[str, str]) -> dict[str, str]:
    """Those of an engine's facts that a certificate holds for."""
    return {name: facts[name] for name in DECISIVE if name in facts}


def _file(home: Path, facts: Mapping[str, str]) -> Path:
    key = sha256(dumps(subject_of(facts), sort_keys=True).encode()).hexdigest()[:32]
    return home / "certificates" / f"{key}.json"
