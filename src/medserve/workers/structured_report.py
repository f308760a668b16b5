"""A report becomes a DICOM structured report (PS3.16 TID 1500) about the very instances that it was made from.

Runs in the decoder's process, where the instances are opened. Whose they are is copied from the first of them, element
by element (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), and passes through nothing else. Names and values for which DICOM has no
certain code have codes of the scheme 99MEDSERVE, whose meaning is the report's own word.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from uuid import UUID

import highdicom.sr as hd
import numpy as np
from highdicom import UID
from highdicom.sr import CodedConcept
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from medserve import __version__
from medserve.errors import ImageError, InvalidRequest
from medserve.exports.document import clean, percent, with_unit
from medserve.flags import Flag
from medserve.images import Modality
from medserve.imaging import formats, identity
from medserve.imaging.instance import NO_PICTURE, refusals
from medserve.imaging.material import File, Wanted
from medserve.reports import UNITS, Box, Finding, Report
from medserve.settings import Limits

for _name in ("highdicom", "pydicom"):  # they quote names of patients in warnings
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

SCHEME = "99MEDSERVE"
MANUFACTURER = "medserve"
SERIES_NUMBER = 9999
"""Above what a scanner numbers its series with."""
LONGEST_CODE = 16
"""Characters of a code's value (SH)."""
LONGEST_MEANING = 64
"""Characters of a code's meaning (LO); longer statements are text."""
MOST_SOURCES = 128
"""Instances that each group names as its sources; of more, all are named as evidence only."""
_OWNED = (
    "SpecificCharacterSet PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge PatientSize "
    "PatientWeight OtherPatientIDsSequence PatientIdentityRemoved DeidentificationMethod PatientSpeciesDescription "
    "StudyDate StudyTime AccessionNumber StudyID StudyDescription ReferringPhysicianName"
)
OWNED = tuple(_OWNED.split())
"""What a document has in common with its sources: whose study it is, and which."""
_EMPTY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber StudyID "
    "ReferringPhysicianName"
)
EMPTY = tuple(_EMPTY.split())
"""Of these the standard wants the element, be it empty."""
PROCEDURES = {
    Modality.CT: CodedConcept("25045-6", "LN", "CT unspecified body region"),
    Modality.MR: CodedConcept("25056-3", "LN", "MRI unspecified body region"),
    Modality.XRAY: CodedConcept("43468-8", "LN", "XR unspecified body region"),
}
"""Of context group 100, which the template takes."""
OFFSET = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d")
IMAGING = CodedConcept("363679005", "SCT", "Imaging procedure")
COMMENT = CodedConcept("121106", "DCM", "Comment")
Group = hd.MeasurementsAndQualitativeEvaluations | hd.PlanarROIMeasurementsAndQualitativeEvaluations
UNFINISHED = frozenset(
    {Flag.NOT_ASSESSABLE, Flag.INCOMPLETE, Flag.TRUNCATED, Flag.UNREADABLE, Flag.EMPTY, Flag.INVALID_JSON}
)
"""Flags after which a report does not say all that it was asked for."""


def written(report: File | Path, files: Sequence[File | Path], limits: Limits, wanted: Wanted) -> bytes:
    """The document as a DICOM file. Blocking; `report` is its JSON, `files` the study it is about.

    Raises InvalidRequest where the files are not the report's study, or hold no DICOM.
    """
    assert isinstance(report, File)  # noqa: S101 - it is always sent as bytes
    made = Report.model_validate_json(report.data or b"")
    if formats.read(files, limits, wanted).study.sha256 != made.study.sha256:
        raise InvalidRequest(
            "these are not the pictures that the report is about: their content differs", param="files"
        )
    with refusals():
        headers = list(_headers(formats.instances(files, limits), made))
    if not headers:
        raise ImageError("the files hold no DICOM instance of the report's study", param="files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _document(made, headers)


def _headers(instances: Iterable[bytes], report: Report) -> Iterator[Dataset]:
    """What stands before the pixels of the instances that the report saw, each once.

    Of a volume these are one series; segmentations and other objects without a picture lie beside many.
    """
    facts, seen = report.study.facts, set()
    wanted = {"StudyInstanceUID": facts.get("study"), "SeriesInstanceUID": facts.get("series")}
    if not report.study.slices or "series" not in facts:
        del wanted["SeriesInstanceUID"]
    for data in instances:
        header = dcmread(BytesIO(data), stop_before_pixels=True, force=True)
        same = all(identity.hashed(header.get(name, "")) == value for name, value in wanted.items())
        one = header.get("SOPInstanceUID", "")
        if same and one and one not in seen and header.get("Modality") not in NO_PICTURE:
            seen.add(one)
            yield header


def _document(report: Report, headers: Sequence[Dataset]) -> bytes:
    nameless = [_nameless(header) for header in headers]
    content = hd.MeasurementReport(
        observation_context=_observer(report),
        procedure_reported=PROCEDURES.get(report.study.modality, IMAGING),
        imaging_measurements=list(_groups(report, nameless)),
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.extend(_remarks(report))
    document = hd.ComprehensiveSR(
        evidence=nameless,
        content=content[0],
        series_instance_uid=UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=_uid(report),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=report.provenance.model[:64],
        software_versions=f"medserve {report.provenance.medserve}"[:64],
        device_serial_number="not applicable",
        is_complete=_is_complete(report),
        is_final=False,
        is_verified=False,
        series_description=f"{report.title}, research use"[:64],
        specific_character_set="ISO_IR 192",
    )
    _own(document, headers[0])
    _dated(document, report.created, headers[0])
    document.CodingSchemeIdentificationSequence = [_scheme()]
    out = BytesIO()
    document.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _nameless(header: Dataset) -> Dataset:
    """What a document refers to an instance by, with nothing in place of a person."""
    kept = Dataset()
    kept.Modality = header.get("Modality") or "OT"
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns"):
        if keyword in header:
            kept[keyword] = header[keyword]
    if header.get("NumberOfFrames"):
        kept.NumberOfFrames = header.NumberOfFrames
    for keyword in EMPTY:
        setattr(kept, keyword, "")
    return kept


def _own(document: Dataset, source: Dataset) -> None:
    """Copy from file to file whose study it is; text keeps its meaning in the document's own character set."""
    source.decode()
    for keyword in OWNED:
        if keyword in source and keyword != "SpecificCharacterSet":
            document[keyword] = source[keyword]


def _dated(document: Dataset, created: datetime, source: Dataset) -> None:
    """Say when the report was made, in the time zone that the source's own times are in; else in this machine's.

    An offset would hold for the copied times too, so there is one only if the source has it.
    """
    stated = str(source.get("TimezoneOffsetFromUTC") or "")
    zone = None
    if OFFSET.fullmatch(stated):
        sign = -1 if stated[0] == "-" else 1
        zone = timezone(sign * timedelta(hours=int(stated[1:3]), minutes=int(stated[3:5])))
        document.TimezoneOffsetFromUTC = stated
    local = created.astimezone(zone)
    document.ContentDate, document.ContentTime = local.strftime("%Y%m%d"), local.strftime("%H%M%S")


def _scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Findings of medserve's workflows, named by what the report calls them"
    return scheme


def _uid(report: Report) -> UID:
    """The document's UID, made of the report's identifier: the same report gives the same instance."""
    try:
        return UID(f"2.25.{UUID(report.id).int}")
    except ValueError:
        return UID()


def _is_complete(report: Report) -> bool:
    """Whether everything that was asked for could be read."""
    found = report.conclusion
    return not UNFINISHED & set(report.flags) and all(one.value is not None for one in found.findings)


def _observer(report: Report) -> hd.ObservationContext:
    made = report.provenance
    device = hd.DeviceObserverIdentifyingAttributes(
        uid=_derived(f"{made.model}|{made.engine}|{made.medserve}"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=clean(made.model),
    )
    return hd.ObservationContext(observer_device_context=hd.ObserverContext(codes.DCM.Device, device))


def _derived(text: str) -> UID:
    return UID(f"2.25.{int.from_bytes(sha256(text.encode()).digest()[:16])}")


def _groups(report: Report, sources: Sequence[Dataset]) -> Iterator[Group]:
    """What was measured, what the model said, and each place that is pointed at; at least one group."""
    findings = report.conclusion.findings
    measured = [one for one in findings if one.source == "measured"]
    stated = [*(one for one in findings if one.source == "model"), *_label(report)]
    if measured:
        yield _group("measured", measured, _by_code(report), sources)
    if stated or not measured:
        yield _group("model", stated, _by_model(report), sources)
    if len(sources) == len(report.study.pictures) == 1 and not sources[0].get("NumberOfFrames"):
        for place, box in enumerate(report.conclusion.boxes, start=1):
            by = _by_code(report) if box.source == "measured" else _by_model(report)
            yield _place(place, box, by, sources[0])


def _label(report: Report) -> list[Finding]:
    found = report.conclusion
    if found.label is None:
        return []
    meaning = f"{found.label} ({found.label_meaning})" if found.label_meaning else found.label
    return [Finding(name="Classification", value=meaning, probabilities=found.probabilities)]


def _by_code(report: Report) -> hd.AlgorithmIdentification:
    made = report.provenance
    parameters = [f"workflow {made.workflow}, version {made.workflow_version}"]
    return hd.AlgorithmIdentification(name="medserve measurement", version=made.medserve, parameters=parameters)


def _by_model(report: Report) -> hd.AlgorithmIdentification:
    made = report.provenance
    return hd.AlgorithmIdentification(
        name=f"medserve/{clean(made.model)}",
        version=clean(made.facts.get("weights") or made.medserve),
        parameters=[
            f"medserve {made.medserve}, engine {clean(made.engine)}",
            f"workflow {made.workflow}, version {made.workflow_version}",
        ],
    )


def _group(
    name: str, findings: Sequence[Finding], by: hd.AlgorithmIdentification, sources: Sequence[Dataset]
) -> hd.MeasurementsAndQualitativeEvaluations:
    """Numbers with a unit as measurements, short answers as evaluations, all else as comments."""
    measurements = [_measurement(one) for one in findings if _is_number(one)]
    evaluations = [_evaluation(one) for one in findings if not _is_number(one) and _is_short(one)]
    images = [hd.SourceImageForMeasurementGroup.from_source_image(source) for source in sources[:MOST_SOURCES]]
    group = hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(UID(), name),
        algorithm_id=by,
        measurements=measurements or None,
        qualitative_evaluations=evaluations or None,
        source_images=images if len(sources) <= MOST_SOURCES else None,
    )
    group[0].ContentSequence.extend(_text(words) for one in findings for words in _comments(one))
    return group


def _is_number(finding: Finding) -> bool:
    """Whether it is a number whose unit can be a code."""
    return isinstance(finding.value, float) and bool(np.isfinite(finding.value)) and len(finding.unit) <= LONGEST_CODE


def _is_short(finding: Finding) -> bool:
    return finding.value is not None and 0 < len(with_unit(finding)) <= LONGEST_MEANING


def _measurement(finding: Finding) -> hd.Measurement:
    assert isinstance(finding.value, float)  # noqa: S101 - so it was chosen
    unit = finding.unit or "1"
    meaning = "no units" if unit == "1" else UNITS.get(unit, unit)
    return hd.Measurement(
        name=_coded(finding.name), value=finding.value, unit=CodedConcept(unit, "UCUM", clean(meaning))
    )


def _evaluation(finding: Finding) -> hd.QualitativeEvaluation:
    return hd.QualitativeEvaluation(_coded(finding.name), _coded(with_unit(finding)))


def _coded(words: str) -> CodedConcept:
    """A code of our own for these words: the same words, the same code."""
    value = sha256(words.encode()).hexdigest()[:14].upper()
    return CodedConcept(f"M{value}", SCHEME, clean(words)[:LONGEST_MEANING] or "unnamed")


def _comments(finding: Finding) -> Iterator[str]:
    """What a code cannot hold: long answers, those that could not be read, probabilities and flags."""
    if not _is_number(finding) and not _is_short(finding):
        yield f"{finding.name}: {with_unit(finding)}"
    if finding.probabilities:
        shares = ", ".join(f"{label} {percent(share)}" for label, share in finding.probabilities.items())
        yield f"{finding.name}, the model's probabilities: {shares}"
    for flag in finding.flags:
        yield f"{finding.name}, flag {flag}: {flag.meaning}"


def _place(
    number: int, box: Box, by: hd.AlgorithmIdentification, source: Dataset
) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
    """A box as a closed line in pixels of its source, whose corner is (0, 0) as in DICOM (PS3.3 C.10.5.1.2)."""
    corners = [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]
    region = hd.ImageRegion(
        graphic_type=hd.GraphicTypeValues.POLYLINE,
        graphic_data=np.array([*corners, corners[0]], np.float32),
        source_image=hd.SourceImageForRegion.from_source_image(source),
    )
    return hd.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(UID(), f"place {number}"),
        referenced_region=region,
        algorithm_id=by,
        qualitative_evaluations=[hd.QualitativeEvaluation(_coded("Place of"), _coded(box.label))],
    )


def _remarks(report: Report) -> Iterator[hd.TextContentItem]:
    """The notice, the model's description, and everything that a reader must know."""
    found = report.conclusion
    yield _text(report.notice)
    if report.needs_review:
        yield _text("This report needs review.")
    if found.description:
        yield _text(f"The model's own words: {found.description}")
    for flag in report.flags:
        yield _text(f"Flag {flag}: {flag.meaning}")
    for concern in report.study.concerns:
        yield _text(f"About the files, {concern.name}: {concern.meaning}")
    yield _text(f"Written by medserve {__version__} from report {report.id}")


def _text(words: str) -> hd.TextContentItem:
    return hd.TextContentItem(COMMENT, clean(words), hd.RelationshipTypeValues.CONTAINS)
