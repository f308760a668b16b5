"""Markdown is the report for notes and issues: CommonMark with tables, in which the model's words stay words.

Pictures are left out, because Markdown can only point at them; the other documents carry them.
"""

import re
from collections.abc import Iterator

from medserve.exports import Format, Original
from medserve.exports.document import Block, Document, Grid, Shown, Words, document
from medserve.reports import Report
from medserve.threads import in_thread

MEANT = re.compile(r"([\\`*_\[\]<>#|~&!$^{}@])")
"""Characters that mean something wherever they stand."""
SIGN_FIRST = re.compile(r"^([-+=])(?=\s|$|[-=])")
NUMBER_FIRST = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
LINK = re.compile(r"(?i)(https?|ftp|mailto|xmpp)(:)|(www)(\.)")
"""What GitHub's dialect makes a link of, without any mark."""


async def write(report: Report, _original: Original) -> bytes:
    """The report as CommonMark with GitHub's tables, in UTF-8."""
    made = await in_thread(document, report)
    return as_markdown(made).encode(errors="replace")


def as_markdown(made: Document) -> str:
    """The document as Markdown."""
    return "\n".join(_lines(made)).rstrip("\n") + "\n"


def _lines(made: Document) -> Iterator[str]:
    yield from (f"# {escaped(made.title)}", "", f"> **{escaped(made.notice)}**", "", f"State: {made.state}", "")
    for section in made.sections:
        yield from (f"## {section.title}", "")
        for block in section.blocks:
            yield from _block(block)
            yield ""


def _block(block: Block) -> Iterator[str]:
    match block:
        case Words(text, "code"):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            yield from (f"{fence}json", text, fence)
        case Words(text, tone):
            words = escaped(text)
            yield {"quoted": f"> {words}", "warning": f"**{words}**"}.get(tone, words)
        case Grid(title, columns, rows):
            if title:
                yield from (f"{escaped(title)}:", "")
            for cells in (columns, ("---",) * len(columns), *rows):
                yield f"| {' | '.join(cell if cell == '---' else held(cell) for cell in cells)} |"
        case Shown(caption=caption):
            yield f"(Picture, not part of this format: {held(caption)})"


def escaped(text: str) -> str:
    """The text as one line that is a paragraph, and nothing but text."""
    return NUMBER_FIRST.sub(r"\1\\\2", SIGN_FIRST.sub(r"\\\1", held(text)))


def held(text: str) -> str:
    """The text as part of a line, such as a cell of a table."""
    return LINK.sub(r"\1\3\\\2\4", MEANT.sub(r"\\\1", " ".join(text.split())))


format = Format("markdown", "text/markdown", ".md", "Markdown with tables, without pictures", write)  # noqa: A001
