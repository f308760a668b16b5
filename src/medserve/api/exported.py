"""A report is answered in the format that the Accept header likes best, or refused before any work is done."""

from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from medserve import exports
from medserve.exports import Format, Original
from medserve.reports import Report

PAGE = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
}
"""For reports that a browser shows: what a model wrote runs nothing and reaches nothing."""


def accepted(request: Request) -> Format:
    """The format that is asked for; raises 406 with those that there are."""
    found = exports.negotiated(",".join(request.headers.getlist("accept")))
    if found is None:
        known = ", ".join(format_.media_type for format_ in exports.formats().values())
        raise HTTPException(406, f"a report is none of what the Accept header takes; there are: {known}")
    return found


async def answer(report: Report, format_: Format, original: Original) -> Response:
    """The report as an HTTP answer."""
    content = await exports.written(report, format_.name, original)
    headers = PAGE | {"Vary": "Accept"}
    if format_.name in ("pdf", "dicom-sr", "fhir"):
        headers["Content-Disposition"] = f'attachment; filename="report{format_.suffix}"'
    return Response(content, media_type=format_.content_type, headers=headers)


def documented() -> dict[str, Any]:
    """The other formats as an OpenAPI document knows them."""
    others = (format_ for format_ in exports.formats().values() if format_.name != "json")
    return {
        "content": {
            format_.media_type: {"schema": {"type": "string"} | ({} if _is_text(format_) else {"format": "binary"})}
            for format_ in others
        }
    }


def _is_text(format_: Format) -> bool:
    return format_.media_type.startswith("text/") or format_.media_type.endswith("json")
