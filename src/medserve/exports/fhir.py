"""FHIR R4 is a preliminary DiagnosticReport that carries all it refers to: findings, the algorithm, the study's facts.

Nobody is its subject and nobody its author, because a report holds no identity. A code stands only where it is certain;
all else is text. There are no extensions. It is built with R4B, in which DiagnosticReport, Observation, Device and
ImagingStudy are those of R4 (4.0.1).
"""

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any

from jinja2.filters import do_forceescape as xml

from medserve.errors import InvalidRequest
from medserve.exports import Format, Original
from medserve.exports.document import clean, said
from medserve.images import Modality
from medserve.reports import UNITS, Finding, Report, as_text, lacking
from medserve.threads import in_thread

UCUM = "http://unitsofmeasure.org"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
LOINC = "http://loinc.org"
STUDY_CODE = {"system": LOINC, "code": "18748-4", "display": "Diagnostic imaging study"}
IMAGED = frozenset({Modality.XRAY, Modality.CT, Modality.MR, Modality.ULTRASOUND})
"""Modalities whose report LOINC 18748-4 certainly is."""
CODE = re.compile(r"[!-~]{1,32}")
"""UCUM's codes are printable ASCII without spaces."""
UNRECORDED = {"display": "not recorded"}
OF = {"reference": "#study"}
BY = {"reference": "#algorithm"}


async def write(report: Report, _original: Original) -> bytes:
    """The resource as JSON."""
    return await in_thread(_written, report)


def _written(report: Report) -> bytes:
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport
    from pydantic import ValidationError

    try:
        resource = DiagnosticReport.model_validate(resource_of(report))
    except ValidationError:
        raise InvalidRequest("the report holds what FHIR cannot; take the JSON report", param="report") from None
    return (resource.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


def resource_of(report: Report) -> dict[str, Any]:
    """The DiagnosticReport as plain values, before it is checked."""
    results = list(_results(report))
    text = clean(as_text(report))
    found = report.conclusion
    return {
        "resourceType": "DiagnosticReport",
        "id": report.id,
        "meta": {
            "security": [{"system": REASON, "code": "HRESCH", "display": "healthcare research"}],
            "tag": [{"display": "research use only, not reviewed"}],
        },
        "text": {"status": "generated", "div": _narrative(text)},
        "contained": [*results, _algorithm(report), _study(report)],
        "status": "preliminary",
        "code": {"coding": [STUDY_CODE] if report.study.modality in IMAGED else None, "text": clean(report.title)},
        "subject": UNRECORDED,
        "issued": report.created.astimezone(UTC).isoformat(timespec="seconds"),
        "result": [{"reference": f"#{one['id']}"} for one in results],
        "imagingStudy": [OF],
        "conclusion": _conclusion(report),
        "conclusionCode": [{"text": clean(found.label_meaning or found.label)}] if found.label else None,
        "presentedForm": [
            {
                "contentType": "text/plain",
                "language": "en",
                "data": base64.b64encode(text.encode(errors="replace")).decode(),
                "title": clean(report.title),
                "creation": report.created.astimezone(UTC).isoformat(timespec="seconds"),
            }
        ],
    }


def _narrative(text: str) -> str:
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><pre>{xml(text)}</pre></div>'


def _conclusion(report: Report) -> str:
    """What was concluded, that it needs a review, and the notice."""
    found = report.conclusion
    meaning = f" ({found.label_meaning})" if found.label_meaning else ""
    words = [
        f"{found.label}{meaning}." if found.label else "No class was concluded.",
        f"The model's own words: {found.description}" if found.description else "",
        "Needs review." if report.needs_review else "",
        f"Flags: {'; '.join(f'{flag} ({flag.meaning})' for flag in report.flags)}." if report.flags else "",
        report.notice,
    ]
    return clean(" ".join(word for word in words if word))


def _results(report: Report) -> Iterator[dict[str, Any]]:
    """An observation for each finding and for the class; one that says so where there is nothing."""
    found = report.conclusion
    for place, finding in enumerate(found.findings, start=1):
        yield _observation(f"finding-{place}", finding)
    label = Finding(name="Classification", value=found.label, probabilities=found.probabilities)
    if found.label is not None or found.probabilities is not None or not found.findings:
        yield _observation("classification", label)


def _observation(name: str, finding: Finding) -> dict[str, Any]:
    how = "measured by medserve" if finding.source == "measured" else "read from the model's own words"
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "preliminary",
        "category": [{"coding": [{"system": CATEGORY, "code": "imaging", "display": "Imaging"}]}],
        "code": {"text": clean(finding.name)},
        "subject": UNRECORDED,
        **_value(finding),
        "method": {"text": how},
        "note": [{"text": f"{flag}: {flag.meaning}"} for flag in finding.flags] or None,
        "device": BY,
        "derivedFrom": [OF],
        "component": _shares(finding) or None,
    }


def _value(finding: Finding) -> dict[str, Any]:
    match finding.value:
        case None:
            coding = {"system": ABSENT, "code": "unknown", "display": "Unknown"}
            return {"dataAbsentReason": {"coding": [coding], "text": lacking(finding)}}
        case bool(value):
            return {"valueBoolean": value}
        case float(value):
            return {"valueQuantity": _quantity(value, finding.unit or "1")}
        case value:
            return {"valueString": said(value)}


def _quantity(value: float, unit: str) -> dict[str, Any]:
    """A number with its unit of UCUM ("1" is unity); what cannot be a code is the unit's text alone."""
    shown = {"value": value, "unit": clean(UNITS.get(unit, unit))}
    return shown | ({"system": UCUM, "code": unit} if CODE.fullmatch(unit) else {})


def _shares(finding: Finding) -> list[dict[str, Any]]:
    shares = finding.probabilities or {}
    return [
        {"code": {"text": clean(f"probability of {label}")}, "valueQuantity": _quantity(share, "1")}
        for label, share in shares.items()
    ]


def _algorithm(report: Report) -> dict[str, Any]:
    """The model and the software as a device: names, versions, and the hash of the weights where it is known."""
    made = report.provenance
    weights = [{"type": {"text": clean(f"SHA-256, {name}")}, "value": value} for name, value in hashes(made.facts)]
    return {
        "resourceType": "Device",
        "id": "algorithm",
        "identifier": weights or None,
        "status": "active",
        "deviceName": [{"name": clean(made.model), "type": "model-name"}],
        "type": {"text": "machine-learning software"},
        "version": [
            {"type": {"text": "medserve"}, "value": clean(made.medserve)},
            {"type": {"text": clean(f"workflow {made.workflow}")}, "value": clean(made.workflow_version)},
            {"type": {"text": "engine"}, "value": clean(made.engine)},
        ],
    }


def hashes(facts: Any) -> Sequence[tuple[str, str]]:
    """What the engine says of its weights in SHA-256, by name."""
    return [(name, value) for name, value in facts.items() if "sha256" in name and value]


def _study(report: Report) -> dict[str, Any]:
    """The study without identity: how it was made, and the hash of what it shows."""
    study = report.study
    return {
        "resourceType": "ImagingStudy",
        "id": "study",
        "identifier": [{"type": {"text": "SHA-256 of the pictures"}, "value": study.sha256}],
        "status": "available",
        "modality": [{"system": DCM, "code": study.modality.value}],
        "subject": UNRECORDED,
        "description": f"{len(study.pictures)} pictures",
    }


format = Format(  # noqa: A001
    "fhir", "application/fhir+json", ".fhir.json", "a preliminary DiagnosticReport of FHIR R4", write
)
