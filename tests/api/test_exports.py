"""A report over HTTP leaves in the format that the Accept header asks for, now or later, and so does its plain text."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pypdfium2
import pytest

from medserve.reports import NOTICE, Conclusion, Report
from tests.exports.samples import harmful, report
from tests.hostile import samples
from tests.imaging import phantoms
from tests.serving import Service

DERMOSCOPY = "/v1/workflows/dermoscopy"


def sent(service: Service, accept: str, data: bytes) -> httpx.Response:
    """A picture sent as a form."""
    files = {"images": ("x", data)}
    return httpx.post(f"{service.url}{DERMOSCOPY}", files=files, headers={"Accept": accept}, timeout=60)


def posted(service: Service, path: str, accept: str = "*/*", **body: Any) -> httpx.Response:
    """A JSON body sent."""
    return httpx.post(f"{service.url}{path}", json=body, headers={"Accept": accept}, timeout=60)


def as_json(made: Report) -> Any:
    return json.loads(made.model_dump_json())


def photograph_of_record() -> bytes:
    """A DICOM photograph of a patient with a name."""
    pixels = samples.drawing(64, 64)
    return phantoms.dicom(pixels, sop_class=phantoms.SCREENSHOT, modality="XC", BurnedInAnnotation="NO")


@pytest.mark.parametrize(
    ("accept", "begins", "type_"),
    [
        ("*/*", b"{", "application/json"),
        ("text/plain", b"Dermoscopy report", "text/plain; charset=utf-8"),
        ("text/markdown", b"# Dermoscopy report", "text/markdown; charset=utf-8"),
        ("text/html,*/*;q=0.8", b"<!doctype html>", "text/html; charset=utf-8"),
        ("application/pdf", b"%PDF-", "application/pdf"),
        ("application/fhir+json", b"{", "application/fhir+json"),
    ],
)
def test_a_workflow_answers_in_the_format_that_is_asked_for(
    service: Service, dermoscopy: Path, accept: str, begins: bytes, type_: str
) -> None:
    """One request, one report, any format; the picture is in those that show pictures."""
    answer = sent(service, accept, dermoscopy.read_bytes())

    assert 200 == answer.status_code, answer.text
    assert answer.content.startswith(begins)
    assert type_ == answer.headers["content-type"]
    assert "Accept" == answer.headers["vary"]
    assert "nosniff" == answer.headers["x-content-type-options"]
    if "html" in type_:
        assert b"Picture 1 of 1" in answer.content
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_format_that_there_is_not_is_refused_before_any_work(service: Service) -> None:
    """Even the picture is not looked at: this one is none."""
    answer = sent(service, "image/png", b"no picture")

    assert 406 == answer.status_code
    assert "application/pdf" in answer.json()["error"]["message"]


def test_a_structured_report_of_an_upload_belongs_to_its_patient(service: Service) -> None:
    """The uploaded file is the source; neither answer nor log of the service holds more than that document."""
    data = photograph_of_record()
    answer = sent(service, "application/dicom", data)
    document = pydicom.dcmread(BytesIO(answer.content))

    assert 200 == answer.status_code, answer.text
    assert "application/dicom" == answer.headers["content-type"]
    assert phantoms.SECRETS["PatientName"] == document.PatientName
    assert pydicom.dcmread(BytesIO(data)).StudyInstanceUID == document.StudyInstanceUID
    assert phantoms.SECRETS["PatientID"].encode() not in service.log


def test_a_structured_report_of_a_photograph_is_refused(service: Service, dermoscopy: Path) -> None:
    """There is no study that it could belong to."""
    answer = sent(service, "application/dicom", dermoscopy.read_bytes())

    assert (400, "format") == (answer.status_code, answer.json()["error"]["param"])


def test_a_recorded_report_leaves_in_another_format(service: Service, dermoscopy: Path) -> None:
    """The JSON of yesterday is the PDF of today, with the picture where it is sent along."""
    recorded = sent(service, "*/*", dermoscopy.read_bytes()).json()
    picture = base64.b64encode(dermoscopy.read_bytes()).decode()
    without = posted(service, "/v1/reports/export", "application/pdf", report=recorded)
    with_picture = posted(service, "/v1/reports/export", "application/pdf", report=recorded, images=[picture])

    assert (200, 200) == (without.status_code, with_picture.status_code), with_picture.text
    assert len(with_picture.content) > len(without.content)
    assert NOTICE[:40] in " ".join(pypdfium2.PdfDocument(without.content)[0].get_textpage().get_text_bounded().split())


def test_a_report_with_harm_in_it_leaves_as_a_page_without(service: Service) -> None:
    """Whoever wrote the report: markup in it is text."""
    answer = posted(service, "/v1/reports/export", "text/html", report=as_json(harmful()))

    assert 200 == answer.status_code
    assert b"<script" not in answer.content
    assert b"&lt;script&gt;" in answer.content


def test_what_is_no_report_is_refused_by_the_name_of_the_field(service: Service) -> None:
    """And pictures of another study by their content."""
    nothing = posted(service, "/v1/reports/export", report={"title": "x"})
    other = base64.b64encode(samples.picture("PNG")).decode()
    another = posted(service, "/v1/reports/export", "text/html", report=as_json(report()), images=[other])

    assert 400 == nothing.status_code
    assert nothing.json()["error"]["param"].startswith("report.")
    assert 400 == another.status_code
    assert "not the pictures that the report is about" in another.json()["error"]["message"]


def test_a_leaflet_is_made_of_the_reports_findings(service: Service) -> None:
    """The model of this service says "Round." whatever it is asked: of a class of this name that is supported."""
    made = report(conclusion=Conclusion(label="round"), domain=None, flags=())
    answer = posted(service, "/v1/reports/leaflet", report=as_json(made), level=5)
    text = posted(service, "/v1/reports/leaflet", "text/plain", report=as_json(made))

    assert ("Round.", 5) == (answer.json()["text"], answer.json()["level"])
    assert text.text.startswith("Round.\n")
    assert NOTICE in text.text


def test_there_is_no_leaflet_without_a_finding(service: Service) -> None:
    """A refusal, not a text."""
    made = report(conclusion=Conclusion(), domain=None, flags=())
    answer = posted(service, "/v1/reports/leaflet", report=as_json(made))

    assert 400 == answer.status_code
    assert "no finding that may be told" in answer.json()["error"]["message"]
