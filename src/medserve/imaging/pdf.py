"""A PDF's pages are drawn as pictures, as a person would see them, or the document is refused with the reason.

Only what can be seen counts: the text that a PDF holds beside its drawing is not read, because nothing says that the
two agree. Filled form fields and comments are drawn, since they are seen too. No program in a document is run and no
address in it is opened: PDFium comes without JavaScript, and this process may not connect to anybody
(`medserve.workers.confinement`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
from numpy.typing import NDArray

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Image, Modality, Source, Study
from medserve.settings import Limits

MARK = b"%PDF-"
MARKED_WITHIN = 1024
"""Bytes in which the mark may lie (ISO 32000-1, annex H, note 13)."""
LONGEST = 1792
"""Pixels of a page's longer side: twice what the model takes, and 153 dots per inch of A4."""
MOST_PAGES = 16
"""Pages of one document. A page is one picture, and each of them one question at least."""
LOCKED = frozenset({pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY})


def claims(head: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is a PDF."""
    return MARK in head[:MARKED_WITHIN]


def study(data: bytes, limits: Limits, modality: Modality | None = None) -> Study:
    """Every page as a picture, in order. Blocking; raises ImageUnreadable or ImageTooLarge.

    A page mostly has a name on it, so that the study is concerned about burned-in text.
    """
    with _opened(data) as document:
        count = len(document)
        if count > (most := min(MOST_PAGES, limits.images)):
            raise ImageTooLarge(
                f"the document has {count} pages and at most {most} are read; send those that matter", param="files"
            )
        images = tuple(_page(document, place, limits) for place in range(count))
    return Study(images, modality or Modality.OTHER, concerns=(Concern.BURNED_IN_TEXT,))


@contextmanager
def _opened(data: bytes) -> Iterator[pypdfium2.PdfDocument]:
    """The document; whatever PDFium says of it becomes a refusal that quotes nothing."""
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in LOCKED:
            raise ImageUnreadable(
                "the document is protected by a password; save it without one and send that", param="files"
            ) from None
        raise _damaged() from None
    try:
        document.init_forms()  # without it the values in form fields are not drawn
        yield document
    except ImageError:
        raise
    except (pypdfium2.PdfiumError, ValueError, OverflowError):
        raise _damaged() from None
    finally:
        document.close()


def _page(document: pypdfium2.PdfDocument, place: int, limits: Limits) -> Image:
    page = document[place]
    try:
        scale = _scale(page.get_size(), limits)
        bitmap = page.render(scale=scale, rev_byteorder=True, fill_color=(255, 255, 255, 255))
        pixels: NDArray[np.uint8] = np.array(bitmap.to_numpy()[..., :3])
        bitmap.close()
    finally:
        page.close()
    height, width = pixels.shape[:2]
    note = f"page {place + 1} of {len(document)}, drawn at {scale * 72:.0f} dots per inch"
    return Image(pixels, Source("PDF", "RGB", width, height, frames=len(document), notes=(note,)))


def _scale(size: tuple[float, float], limits: Limits) -> float:
    """Pixels a point (1/72 inch) at which the longer side has `LONGEST`; refuses pages that no paper has."""
    width, height = size
    if not (math.isfinite(width) and math.isfinite(height) and min(size) > 0):
        raise _damaged()
    scale = LONGEST / max(size)
    if min(size) * scale < limits.image_min_side:
        raise ImageUnreadable("a page of the document is a strip that shows nothing to read", param="files")
    if math.ceil(width * scale) * math.ceil(height * scale) > limits.image_pixels:
        raise ImageTooLarge(
            f"a page has more than the {limits.image_pixels} pixels of limits.image_pixels when it is drawn",
            param="files",
        )
    return scale


def _damaged() -> ImageUnreadable:
    return ImageUnreadable(
        "the document has no page, is damaged or of a rare kind; print it to a new PDF, or send its page as PNG",
        param="files",
    )
