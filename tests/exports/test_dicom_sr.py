"""A structured report belongs to the study that it is about: identity goes from file to file, and nowhere else."""

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom.sr import srread
from pydicom.uid import generate_uid

from medserve.errors import InvalidRequest
from medserve.exports import Original, written
from medserve.flags import Flag
from medserve.images import Modality
from medserve.imaging.intake import Wanted
from medserve.reports import Box, Conclusion, Finding, Report
from medserve.settings import Limits
from tests.exports import validators
from tests.exports.samples import about, conclusion, report
from tests.hostile import samples as hostile
from tests.imaging import phantoms
from tests.pictures import study

GOLDEN = Path(__file__).parents[1] / "golden" / "exports" / "report.sr.txt"
PLACE = Box(label="opacity", top=10, left=20.5, bottom=18, right=30)


async def document(files: list[bytes], modality: Modality = Modality.CT, **given: object) -> tuple[bytes, Report]:
    """The structured report on these files, and the report it was made of."""
    made, read = await about(files, modality, **given)
    original = Original(read, tuple(files), Limits(), Wanted(modality))
    return await written(made, "dicom-sr", original), made


def film() -> bytes:
    """A chest film of its own study."""
    return phantoms.dicom(hostile.drawing(64, 48), sop_class=phantoms.DX, modality="DX")


def places(data: bytes) -> list[list[list[float]]]:
    """The corners of each region that a structured report points at."""
    content: Any = srread(BytesIO(data)).content
    return [group.roi.value.tolist() for group in content.get_planar_roi_measurement_groups()]


def text_of(data: bytes) -> str:
    """The content tree, one item a line, without the UIDs and names of this very file."""
    lines = []

    def walk(item: pydicom.Dataset, depth: int) -> None:
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        value: object = item.get("TextValue", "")
        if "ConceptCodeSequence" in item:
            value = item.ConceptCodeSequence[0].CodeMeaning
        if "MeasuredValueSequence" in item:
            measured = item.MeasuredValueSequence[0]
            value = f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
        lines.append(f"{'  ' * depth}{item.ValueType} {name}: {value}".rstrip(": "))
        for child in item.get("ContentSequence", []):
            walk(child, depth + 1)

    walk(pydicom.dcmread(BytesIO(data)), 0)
    return "\n".join(line for line in lines if "Written by medserve" not in line) + "\n"


async def golden() -> str:
    """The content of the sample report as a structured report on a drawn abdomen."""
    return text_of((await document(phantoms.series(phantoms.abdomen(6))))[0])


async def test_the_golden_content() -> None:
    """Written again, after a look at the difference, by: python -m tests.exports.test_dicom_sr."""
    assert GOLDEN.read_text(encoding="utf-8") == await golden()


async def test_the_document_is_the_patients_and_the_studys_own() -> None:
    """Copied from the source: who, which study, which accession; and all instances are named as evidence."""
    files = phantoms.series(phantoms.abdomen())
    data, _ = await document(files)
    written_, source = pydicom.dcmread(BytesIO(data)), pydicom.dcmread(BytesIO(files[0]))
    evidence = written_.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence

    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert source[keyword].value == written_[keyword].value
    assert {pydicom.dcmread(BytesIO(file)).SOPInstanceUID for file in files} == {
        one.ReferencedSOPInstanceUID for one in evidence
    }


async def test_a_name_in_another_character_set_stays_the_same_name() -> None:
    """The source is Latin-1, the document UTF-8; nobody is renamed on the way."""
    files = phantoms.series(phantoms.abdomen(6), SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    read = pydicom.dcmread(BytesIO((await document(files))[0]))

    assert ("ISO_IR 192", "Müller^Jörg") == (read.SpecificCharacterSet, str(read.PatientName))


async def test_the_document_keeps_the_sources_time_zone() -> None:
    """An offset holds for all times of a file, the copied ones too; 05:06:07 UTC is 07:06:07 there."""
    read = pydicom.dcmread(
        BytesIO((await document(phantoms.series(phantoms.abdomen(6), TimezoneOffsetFromUTC="+0200")))[0])
    )
    without = pydicom.dcmread(BytesIO((await document(phantoms.series(phantoms.abdomen(6))))[0]))

    assert ("+0200", "070607") == (read.TimezoneOffsetFromUTC, read.ContentTime)
    assert "TimezoneOffsetFromUTC" not in without


async def test_a_segmentation_beside_the_slices_is_no_source() -> None:
    """Archives hand such objects over with the series; the report did not see them."""
    files = phantoms.series(phantoms.abdomen(6))
    shown = hostile.drawing(48, 48)
    beside = phantoms.dicom(shown, sop_class="1.2.840.10008.5.1.4.1.1.66.4", modality="SEG", NumberOfFrames=1)
    data, _ = await document([*files, beside])
    uids = {pydicom.dcmread(BytesIO(file)).SOPInstanceUID for file in files}
    evidence = pydicom.dcmread(BytesIO(data)).CurrentRequestedProcedureEvidenceSequence

    assert uids == {
        one.ReferencedSOPInstanceUID
        for study_ in evidence
        for series in study_.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


async def test_identity_stays_out_of_the_report_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It passes from file to file in another process."""
    caplog.set_level(logging.DEBUG)
    _, made = await document(phantoms.series(phantoms.abdomen()))

    for secret in phantoms.SECRETS.values():
        assert secret not in made.model_dump_json()
        assert secret not in caplog.text


async def test_the_document_is_preliminary_and_unverified() -> None:
    """Partial where something could not be read, complete where all was; never final, never verified."""
    partial, _ = await document(phantoms.series(phantoms.abdomen()))
    whole = conclusion(findings=(Finding(name="Stone visible", value="yes"),))
    complete, _ = await document(phantoms.series(phantoms.abdomen()), conclusion=whole, flags=(Flag.DEMONSTRATION,))

    for data, completion in ((partial, "PARTIAL"), (complete, "COMPLETE")):
        read = pydicom.dcmread(BytesIO(data))
        assert (completion, "PRELIMINARY", "UNVERIFIED") == (
            read.CompletionFlag,
            read.PreliminaryFlag,
            read.VerificationFlag,
        )


async def test_measurements_have_units_and_every_group_its_algorithm() -> None:
    """What code measured and what the model said are told apart by who made it."""
    data, _ = await document(phantoms.series(phantoms.abdomen()))
    tree = text_of(data)

    assert "NUM Largest diameter: 7.25 mm" in tree
    assert "NUM Mean density: 901.5 [hnsf'U]" in tree
    assert "TEXT Algorithm Name: medserve measurement" in tree
    assert "TEXT Algorithm Name: medserve/medserve-demo" in tree
    assert "CODE Stone visible: yes" in tree
    assert "TEXT Comment: Side: not readable" in tree
    assert report().notice in tree


async def test_a_box_is_a_region_of_the_film_it_was_drawn_on() -> None:
    """A closed line of five corners, (column, row), in the pixels of the instance."""
    data, _ = await document([film()], Modality.XRAY, conclusion=conclusion(boxes=(PLACE,)))

    assert [[[20.5, 10], [30, 10], [30, 18], [20.5, 18], [20.5, 10]]] == places(data)


async def test_boxes_of_a_series_point_at_no_instance() -> None:
    """Which of many files a picture was made of is not recorded, so no place is claimed."""
    data, _ = await document(phantoms.series(phantoms.abdomen()), conclusion=conclusion(boxes=(PLACE,)))

    assert not places(data)


async def test_a_report_that_did_not_come_from_dicom_is_refused() -> None:
    """There is no study it could belong to; the error says what to take instead."""
    shown = study(10)
    made = report(study=report().study.model_copy(update={"sha256": shown.sha256}))

    with pytest.raises(InvalidRequest, match="did not come from DICOM files") as caught:
        await written(made, "dicom-sr", Original(shown, (b"anything",)))
    assert "format" == caught.value.param


async def test_without_the_files_it_is_refused() -> None:
    """Identity is in them and in no report."""
    made, _ = await about(phantoms.series(phantoms.abdomen()), Modality.CT)

    with pytest.raises(InvalidRequest, match="give them beside the report"):
        await written(made, "dicom-sr")


async def test_files_of_another_study_are_refused() -> None:
    """By content: a report is never filed under another patient."""
    made, _ = await about(phantoms.series(phantoms.abdomen()), Modality.CT)
    others = phantoms.series(phantoms.abdomen(8))

    with pytest.raises(InvalidRequest, match="not the pictures that the report is about"):
        await written(made, "dicom-sr", Original(None, tuple(others), Limits(), Wanted(Modality.CT)))


async def test_equal_pictures_of_another_patients_study_are_refused() -> None:
    """The pixels are the same and the study is not: the hash of its UID tells."""
    values = phantoms.abdomen()
    made, _ = await about(phantoms.series(values), Modality.CT)
    others = phantoms.series(values, StudyInstanceUID=generate_uid())

    with pytest.raises(InvalidRequest, match="no DICOM instance of the report's study"):
        await written(made, "dicom-sr", Original(None, tuple(others), Limits(), Wanted(Modality.CT)))


@pytest.mark.parametrize("junk", [b"", b"no file at all", bytes(2000), b"\0" * 128 + b"DICM" + b"\xff" * 400])
async def test_files_that_are_none_are_refused(junk: bytes) -> None:
    """What is opened here is opened like any file of a stranger's, and so is it refused."""
    made, _ = await about(phantoms.series(phantoms.abdomen()), Modality.CT)

    with pytest.raises(InvalidRequest):
        await written(made, "dicom-sr", Original(None, (junk,), Limits(), Wanted(Modality.CT)))
    assert (await document([film()], Modality.XRAY))[0]


async def test_a_study_that_was_not_assessable_says_so() -> None:
    """No findings are no error, and no empty document either."""
    nothing = Conclusion(flags=(Flag.NOT_ASSESSABLE,))
    data, _ = await document([film()], Modality.XRAY, conclusion=nothing, flags=(Flag.NOT_ASSESSABLE,))

    assert "Flag not_assessable" in text_of(data)
    assert "PARTIAL" == pydicom.dcmread(BytesIO(data)).CompletionFlag


@pytest.mark.skipif(not validators.DCIODVFY, reason="dciodvfy is not installed (Debian: apt install dicom3tools)")
async def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    """David Clunie's verifier knows the information object; that our own code scheme is unknown to it is a warning."""
    for name, data in await _both():
        (tmp_path / name).write_bytes(data)
        _, said = validators.run(str(validators.DCIODVFY), str(tmp_path / name))

        assert "ComprehensiveSR" in said
        assert not [line for line in said.splitlines() if line.startswith("Error")]


@pytest.mark.skipif(not validators.DSRDUMP, reason="dsrdump is not installed (Debian: apt install dcmtk)")
async def test_dcmtk_reads_the_document(tmp_path: Path) -> None:
    """Another reader walks the whole tree and finds the measurements."""
    for name, data in await _both():
        (tmp_path / name).write_bytes(data)
        status, said = validators.run(str(validators.DSRDUMP), str(tmp_path / name))

        assert 0 == status, said
        assert "Verification Flag   : UNVERIFIED" in said
        assert '(mm,UCUM,"mm")' in said


@pytest.mark.skipif(
    not (validators.JAVA and validators.PIXELMED.exists()),
    reason="PixelMed's validator is not installed (Debian: apt install libpixelmed-java)",
)
async def test_pixelmed_finds_the_template_kept(tmp_path: Path) -> None:
    """TID 1500, row by row: no error. What an extensible template does not name is a warning to it.

    A document that has a place beside other groups is not for it: it takes them all for groups with a place.
    """
    file = tmp_path / "report.dcm"
    file.write_bytes((await document(phantoms.series(phantoms.abdomen(6))))[0])
    said = validators.pixelmed(file)

    assert "Found Root Template TID_1500 (MeasurementReport)" in said
    assert "IOD validation complete" in said
    assert not [line for line in said.splitlines() if line.startswith("Error")]


async def _both() -> list[tuple[str, bytes]]:
    """A report on a series with measurements, and one on a film with a place."""
    series, _ = await document(phantoms.series(phantoms.abdomen(6)))
    chest, _ = await document([film()], Modality.XRAY, conclusion=conclusion(boxes=(PLACE,)))
    return [("film.dcm", chest), ("series.dcm", series)]


if __name__ == "__main__":
    import asyncio

    GOLDEN.write_text(asyncio.run(golden()), encoding="utf-8")
