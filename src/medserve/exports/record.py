"""JSON is the report itself: every other format can be made from it later, and it can be replayed."""

from medserve.exports import Format, Original
from medserve.reports import Report


async def write(report: Report, _original: Original) -> bytes:
    """The whole report, steps and all."""
    return (report.model_dump_json(indent=2) + "\n").encode()


format = Format("json", "application/json", ".json", "the whole report, which can be replayed", write)  # noqa: A001
