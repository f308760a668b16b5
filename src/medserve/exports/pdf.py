"""PDF is the report on paper: A4, the notice and a page number on every page, and no word about who made it where.

The fonts come along (DejaVu Sans, reduced to Latin, Greek, Cyrillic and the signs of mathematics). What they cannot
show is replaced by a mark, and the document says so.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, XPos, YPos
from fpdf.fonts import FontFace, TTFFont

from medserve import __version__
from medserve.exports import Format, Original
from medserve.exports.document import REPLACEMENT, Document, Grid, Shown, Words, illustrated
from medserve.reports import Report
from medserve.threads import in_thread

FONTS = Path(__file__).parent / "fonts"
FAMILY = "DejaVu"
MARGIN, FOOT = 16.0, 24.0
"""Millimetres beside and below the text."""
LINE, HEADING = 5.0, 10.0
FEW, ABREAST, GAP = 3, 3, 3.0
"""From so many pictures on, so many stand side by side, so many millimetres apart."""
MOST_WIDTH, MOST_HEIGHT = 120.0, 150.0
"""Millimetres that a picture takes at most."""
UNSHOWN = f"Characters that these fonts do not have are shown as {REPLACEMENT}; the JSON report has them."


async def write(report: Report, original: Original) -> bytes:
    """The file's bytes; made in a thread."""
    return await in_thread(_written, await illustrated(report, original), report.created)


def _written(made: Document, created: datetime) -> bytes:
    page = _Pages(made)
    page.set_creation_date(created)
    page.add_page()
    _heading(page, made)
    for section in made.sections:
        pictures = [block for block in section.blocks if isinstance(block, Shown)]
        blocks = [block for block in section.blocks if not isinstance(block, Shown)]
        rows = list(batched(pictures, 1 if len(pictures) < FEW else ABREAST))
        page.section(section.title, HEADING + (_least(blocks[0]) if blocks else _height(page, rows[0])))
        for block in blocks:
            _block(page, block)
        for row in rows:
            _pictures(page, row)
    if page.replaced:
        page.words(UNSHOWN, style="B")
    return bytes(page.output())


class _Pages(FPDF):
    """Pages that end with the notice; text goes through `known`, which notes what the fonts lack."""

    def __init__(self, made: Document) -> None:
        super().__init__(format="A4")
        self.replaced = False
        self._foot = made.notice
        self.set_margins(MARGIN, MARGIN)
        self.set_auto_page_break(True, FOOT)
        self.add_font(FAMILY, "", FONTS / "DejaVuSans.ttf")
        self.add_font(FAMILY, "B", FONTS / "DejaVuSans-Bold.ttf")
        fonts = (font for font in self.fonts.values() if isinstance(font, TTFFont))
        self._drawn = frozenset.intersection(*(frozenset(font.cmap) for font in fonts))
        self.set_title(self.known(made.title))
        self.set_lang("en")
        self.set_producer(f"medserve {__version__}")

    def known(self, text: str) -> str:
        """The text with a mark for every character that the fonts cannot show."""
        shown = "".join(one if one in "\n" or ord(one) in self._drawn else REPLACEMENT for one in text)
        self.replaced = self.replaced or shown != text
        return shown.replace("\t", " ")

    def footer(self) -> None:
        self.set_y(-FOOT + 4)
        self.set_font(FAMILY, "", 6.5)
        self.multi_cell(0, 3, self.known(self._foot), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")
        self.set_y(-8)
        self.cell(0, 4, f"Page {self.page_no()} of {{nb}}", align="R")

    def section(self, title: str, room: float) -> None:
        """A heading, on the next page where there is not this much room for it and what comes first below it."""
        self.ln(3)
        if self.will_page_break(room):
            self.add_page()
        self.start_section(title, level=0)
        self.words(title, style="B", size=12)

    def words(self, text: str, *, style: str = "", size: float = 9.5, indent: float = 0) -> None:
        """A paragraph, broken anywhere where no space allows it."""
        self.set_font(FAMILY, style, size)
        self.set_x(MARGIN + indent)
        self.multi_cell(
            self.epw - indent, size * 0.5, self.known(text) or " ", new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L"
        )
        self.ln(1)


def _heading(page: _Pages, made: Document) -> None:
    page.words(made.title, style="B", size=16)
    page.words(f"State: {made.state}", style="B")
    page.set_font(FAMILY, "B", 9)
    page.multi_cell(
        0, 4.5, page.known(made.notice), border=1, padding=2, new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L"
    )


def _block(page: _Pages, block: Words | Grid) -> None:
    match block:
        case Words(text, tone):
            page.words(text, style="B" if tone == "warning" else "", indent=6 if tone in ("quoted", "code") else 0)
        case Grid():
            _grid(page, block)


def _least(block: Words | Grid) -> float:
    """Millimetres below which a paragraph or a table is not begun on a page."""
    return 6 * LINE if isinstance(block, Grid) else 2 * LINE


def _grid(page: _Pages, grid: Grid) -> None:
    if page.will_page_break(_least(grid)):
        page.add_page()
    if grid.title:
        page.words(grid.title, style="B")
    page.set_font(FAMILY, "", 8)
    with page.table(
        borders_layout=TableBordersLayout.ALL,
        headings_style=FontFace(emphasis="BOLD", fill_color=(238, 241, 244)),
        line_height=4.2,
        text_align="LEFT",
        padding=0.8,
        col_widths=_widths(grid),
    ) as table:
        for cells in (grid.columns, *grid.rows):
            row = table.row()
            for cell in cells:
                row.cell(page.known(cell))
    page.ln(2)


def _widths(grid: Grid) -> tuple[int, ...]:
    """Shares of the width, by the longest text of each column within bounds."""
    return tuple(
        min(60, max(8, *(len(cell) for cell in column))) for column in zip(grid.columns, *grid.rows, strict=True)
    )


def _pictures(page: _Pages, row: Sequence[Shown]) -> None:
    """Pictures side by side, each with its caption below."""
    room = _room(page, row)
    sizes = [_size(shown, room) for shown in row]
    if page.will_page_break(_height(page, row)):
        page.add_page()
    top, bottom = page.get_y(), 0.0
    for place, (shown, (width, height)) in enumerate(zip(row, sizes, strict=True)):
        left = MARGIN + place * (room + GAP)
        alternative = page.known(shown.alternative)
        page.image(BytesIO(shown.png), x=left, y=top, w=width, h=height, alt_text=alternative)
        page.set_xy(left, top + height + 1)
        page.set_font(FAMILY, "", 8)
        page.multi_cell(room, 4, page.known(shown.caption) or " ", align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        bottom = max(bottom, page.get_y())
    page.set_y(bottom + 2)


def _room(page: _Pages, row: Sequence[Shown]) -> float:
    """Millimetres of width for each picture of a row."""
    return page.epw / ABREAST - GAP if len(row) > 1 else MOST_WIDTH


def _height(page: _Pages, row: Sequence[Shown]) -> float:
    """Millimetres that a row of pictures takes with its captions."""
    return max(_size(shown, _room(page, row))[1] for shown in row) + 3 * LINE


def _size(shown: Shown, room: float) -> tuple[float, float]:
    """Width and height in millimetres: as wide as there is room, and no higher than half a page."""
    width = min(room, MOST_HEIGHT * shown.width / shown.height)
    return width, width * shown.height / shown.width


def batched(shown: Sequence[Shown], count: int) -> Iterator[Sequence[Shown]]:
    """The pictures in rows of at most `count`."""
    return (shown[start : start + count] for start in range(0, len(shown), count))


format = Format("pdf", "application/pdf", ".pdf", "pages of A4 with pictures and the notice on each", write)  # noqa: A001
