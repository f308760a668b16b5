"""HTML is one page that carries its pictures, loads nothing, runs nothing, and prints on A4.

The model's words are escaped by the template, and the page forbids scripts, connections and foreign pictures itself.
"""

import base64
from functools import cache

from jinja2 import Template

from medserve.exports import Format, Original
from medserve.exports.document import Document, Grid, Shown, Words, illustrated
from medserve.layout import environment
from medserve.reports import Report


async def write(report: Report, original: Original) -> bytes:
    """The page in UTF-8."""
    return as_html(await illustrated(report, original)).encode(errors="replace")


def as_html(made: Document) -> str:
    """The document as a page."""
    return _template().render(title=made.title, notice=made.notice, document=made) + "\n"


@cache
def _template() -> Template:
    pages = environment("medserve.exports")
    pages.filters["inline"] = _inline
    pages.tests |= {
        "words": lambda block: isinstance(block, Words),
        "grid": lambda block: isinstance(block, Grid),
        "shown": lambda block: isinstance(block, Shown),
    }
    return pages.get_template("page.html")


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


format = Format("html", "text/html", ".html", "one page with its pictures, which prints on A4", write)  # noqa: A001
