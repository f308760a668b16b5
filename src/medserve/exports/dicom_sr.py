"""A DICOM structured report (TID 1500) for the archive that the pictures came from: who it is about goes file to file.

A report holds no identity. What says whose the study is stands in the source's own instances, and is copied from them
into the document in the decoder's process, which is the only place where those files are opened; it is never logged and
never part of a report. Measurements are measurements with units of UCUM, the model's statements are qualitative
evaluations or text, and each says which algorithm made it. The document is preliminary and unverified.
"""

from medserve.errors import InvalidRequest
from medserve.exports import Format, Original
from medserve.imaging import isolation
from medserve.reports import Report


async def write(report: Report, original: Original) -> bytes:
    """The document as a DICOM file; raises InvalidRequest where the input was not DICOM or the files are others."""
    if "study" not in report.study.facts:
        raise InvalidRequest(
            "the report's pictures did not come from DICOM files, or are patches of a slide, so there is no instance "
            "that a structured report could be about; choose another format, such as fhir",
            param="format",
        )
    slim = report.model_copy(update={"steps": (), "controls": ()})
    slim = slim.model_copy(update={"conclusion": slim.conclusion.model_copy(update={"figures": ()})})
    return await isolation.document(
        slim.model_dump_json().encode(), original.materials, original.limits, original.wanted
    )


format = Format(  # noqa: A001
    "dicom-sr",
    "application/dicom",
    ".dcm",
    "a DICOM structured report (TID 1500); needs the study's own DICOM files",
    write,
    needs_files=True,
)
