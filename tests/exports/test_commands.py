"""`medserve run --format`, `export` and `leaflet`: reports in files and on standard output, refusals in words."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from medserve import cli
from medserve.images import Modality
from medserve.reports import Conclusion, Finding
from tests.commands import DERMOSCOPY, scripted
from tests.exports.samples import about, report
from tests.imaging import phantoms


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives the seven answers of a dermoscopy report, twice over."""
    monkeypatch.setenv("MEDSERVE_CONFIG", str(scripted(tmp_path, *DERMOSCOPY * 2)))


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: bytes
    err: bytes


Run = Callable[..., Said]


@pytest.fixture
def medserve(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["medserve", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsysbinary.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.mark.usefixtures("script")
def test_run_writes_a_report_in_every_format_that_is_asked_for(medserve: Run, dermoscopy: Path, tmp_path: Path) -> None:
    """Beside JSON and text, under the same name."""
    done = medserve("run", "dermoscopy", dermoscopy, "--out", tmp_path / "out", "--format", "pdf", "--format", "html")
    written = {"".join(path.suffixes): path for path in (tmp_path / "out").iterdir()}

    assert 0 == done.code, done.err
    assert {".json", ".txt", ".pdf", ".html"} == set(written)
    assert written[".pdf"].read_bytes().startswith(b"%PDF-")
    assert b"Picture 1 of 1" in written[".html"].read_bytes()


@pytest.mark.usefixtures("script")
def test_one_format_goes_to_standard_output(medserve: Run, dermoscopy: Path) -> None:
    """Byte for byte, so that it can be piped; two do not."""
    one = medserve("run", "dermoscopy", dermoscopy, "--format", "pdf")
    two = medserve("run", "dermoscopy", dermoscopy, "--format", "pdf", "--format", "html")

    assert 0 == one.code, one.err
    assert one.out.startswith(b"%PDF-")
    assert one.out.rstrip().endswith(b"%%EOF")
    assert 2 == two.code
    assert b"give --out for several" in two.err


@pytest.mark.usefixtures("script")
def test_a_structured_report_of_a_picture_is_refused_and_says_why(
    medserve: Run, dermoscopy: Path, tmp_path: Path
) -> None:
    """Exit code 2, and the format to take instead; the report itself is kept."""
    done = medserve("run", "dermoscopy", dermoscopy, "--format", "dicom-sr", "--out", tmp_path / "out")

    assert 2 == done.code
    assert b"did not come from DICOM files" in done.err
    assert {".json", ".txt"} == {path.suffix for path in (tmp_path / "out").iterdir()}


def test_export_needs_no_model(medserve: Run, tmp_path: Path) -> None:
    """A recorded report as Markdown on standard output, and as FHIR in a file."""
    kept = tmp_path / "report.json"
    kept.write_text(report().model_dump_json())
    shown = medserve("export", kept, "--format", "markdown")
    written = medserve("export", kept, "--format", "fhir", "--out", tmp_path / "report.fhir.json")

    assert 0 == shown.code, shown.err
    assert shown.out.startswith(b"# Kidney stone report\n")
    assert 0 == written.code, written.err
    assert "DiagnosticReport" == json.loads((tmp_path / "report.fhir.json").read_text())["resourceType"]


def test_export_files_a_structured_report_with_the_study_it_is_about(medserve: Run, tmp_path: Path) -> None:
    """From the folder of the series; no name is printed."""
    files = phantoms.series(phantoms.abdomen(6))
    made, _ = asyncio.run(about(files, Modality.CT))
    (tmp_path / "series").mkdir()
    for place, data in enumerate(files):
        (tmp_path / "series" / f"{place}.dcm").write_bytes(data)
    (tmp_path / "report.json").write_text(made.model_dump_json())
    out = tmp_path / "report.dcm"
    done = medserve("export", tmp_path / "report.json", tmp_path / "series", "--format", "dicom-sr", "--out", out)

    assert 0 == done.code, done.err
    assert phantoms.SECRETS["PatientName"] == pydicom.dcmread(out).PatientName
    assert b"Mustermann" not in done.out + done.err


def test_export_refuses_what_it_does_not_know(medserve: Run, tmp_path: Path) -> None:
    """The formats are listed."""
    kept = tmp_path / "report.json"
    kept.write_text(report().model_dump_json())
    done = medserve("export", kept, "--format", "docx")

    assert 2 == done.code
    assert b"there are: dicom-sr, fhir, html, json, markdown, pdf, text" in done.err


@pytest.mark.usefixtures("script")
def test_leaflet_tells_what_was_found_or_refuses(medserve: Run, tmp_path: Path) -> None:
    """The script says "A round shape."; a report without findings has no text, and exit code 2."""
    scripted(tmp_path, "A round shape.")
    kept, empty = tmp_path / "report.json", tmp_path / "empty.json"
    shape = Conclusion(findings=(Finding(name="Shape", value="round"),))
    kept.write_text(report(conclusion=shape, domain=None, flags=()).model_dump_json())
    empty.write_text(report(conclusion=Conclusion(), domain=None, flags=()).model_dump_json())
    told, refused = medserve("leaflet", kept, "--json"), medserve("leaflet", empty)

    assert 0 == told.code, told.err
    assert "A round shape." == json.loads(told.out)["text"]
    assert (2, b"") == (refused.code, refused.out)
    assert b"no finding that may be told" in refused.err
