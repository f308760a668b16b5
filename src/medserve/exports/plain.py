"""Plain text is the report for a terminal or a letter, in lines of at most 100 characters."""

from medserve.exports import Format, Original
from medserve.exports.document import clean
from medserve.reports import Report, as_text


async def write(report: Report, _original: Original) -> bytes:
    """The report's text, in UTF-8."""
    return (clean(as_text(report)) + "\n").encode(errors="replace")


format = Format("text", "text/plain", ".txt", "plain text for a terminal or a letter", write)  # noqa: A001
