"""Documents: what a person sees on a page is what the model sees, and whatever else a PDF holds has no effect."""

from collections.abc import Callable

import fpdf
import numpy as np
import pytest
from pypdfium2 import PDFIUM_INFO

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Image, Modality, Study
from medserve.imaging import intake, pdf
from medserve.imaging.intake import Wanted
from medserve.settings import Limits
from tests.hostile import samples

RED, BLUE = (255, 0, 0), (0, 0, 255)


def written(draw: Callable[[fpdf.FPDF], object], *, pages: int = 1, **options: object) -> bytes:
    """A document of A4 pages, or of another `format` or `orientation`, on each of which `draw` draws."""
    document = fpdf.FPDF(unit="pt", **options)  # type: ignore[arg-type]
    for _page in range(pages):
        document.add_page()
        draw(document)
    return bytes(document.output())


def square(document: fpdf.FPDF) -> None:
    """A red square of 100 points, 200 from the left and 300 from the top."""
    document.set_fill_color(*RED)
    document.rect(200, 300, 100, 100, style="F")


async def read(data: bytes, limits: Limits | None = None) -> Study:
    return await intake.read([data], limits or Limits())


def red(image: Image) -> tuple[int, int, int, int]:
    """Rows and columns where red begins and ends."""
    rows, columns = np.nonzero((image.pixels == RED).all(axis=2))
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


async def test_a_page_is_drawn_as_it_looks() -> None:
    """White paper with the square in its place, the longer side of 1792 pixels, and what was done is noted."""
    (image,) = (await read(written(square))).images
    scale = pdf.LONGEST / 841.89

    assert (pdf.LONGEST, 1268) == (image.height, image.width)
    assert (255, 255, 255) == tuple(image.pixels[5, 5])
    assert pytest.approx([300 * scale, 400 * scale, 200 * scale, 300 * scale], abs=1.5) == red(image)
    assert ("PDF", "RGB", 1) == (image.source.format, image.source.mode, image.source.frames)
    assert ("page 1 of 1, drawn at 153 dots per inch",) == image.source.notes


async def test_pages_come_in_their_order() -> None:
    """Each is a picture."""

    def numbered(document: fpdf.FPDF) -> None:
        document.set_fill_color(*RED)
        document.rect(100, 100 * document.page_no(), 50, 50, style="F")

    images = (await read(written(numbered, pages=3))).images
    tops = [red(image)[0] for image in images]

    assert 3 == len(images)
    assert tops == sorted(tops)
    assert "page 2 of 3" in images[1].source.notes[0]


async def test_a_landscape_page_is_wider_than_high() -> None:
    """A page's own size and turn are honoured."""
    (image,) = (await read(written(square, orientation="landscape"))).images

    assert (1268, pdf.LONGEST) == (image.height, image.width)


async def test_the_value_in_a_form_field_is_seen() -> None:
    """A filled field is dark on white where an empty page is not."""
    empty, filled = [(await read(samples.pdf(form=form))).images[0] for form in (False, True)]
    scale = pdf.LONGEST / 842
    field = np.s_[round(322 * scale) : round(342 * scale), round(200 * scale) : round(300 * scale)]

    assert 255 == empty.pixels[field].min()
    assert filled.pixels[field].min() < 128


async def test_two_readings_are_the_same_picture() -> None:
    """Equal bytes give equal pixels, so that a report can be replayed."""
    data = samples.pdf()

    assert (await read(data)).sha256 == (await read(data)).sha256


async def test_a_name_may_stand_on_a_page() -> None:
    """Whoever reads the report is told; the words themselves are nowhere in the study."""
    study = await read(samples.pdf())

    assert Concern.BURNED_IN_TEXT in study.concerns
    assert "PLANTED" not in repr(study)
    assert Modality.OTHER is study.modality


async def test_the_sender_may_say_what_a_document_shows() -> None:
    """As with any file that does not say it."""
    assert Modality.XRAY is (await intake.read([samples.pdf()], Limits(), Wanted(Modality.XRAY))).modality


async def test_a_document_beside_slices_is_left_out() -> None:
    """An export often has a letter in it; what is found in an archive is left out, and what is named is not."""
    study = await read(samples.zipped({"IM1": samples.dicom(), "letter.pdf": samples.pdf()}))

    assert Modality.CT is study.modality
    assert Concern.NOT_A_PICTURE_DROPPED in study.concerns
    with pytest.raises(ImageUnreadable, match="several kinds"):
        await intake.read([samples.dicom(), samples.pdf()], Limits())


async def test_a_document_in_an_archive_is_read() -> None:
    """As any other file."""
    assert 1 == len((await read(samples.zipped({"page.pdf": samples.pdf()}))).images)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (samples.pdf()[:400], "damaged"),
        (b"%PDF-1.7\n", "damaged"),
        (samples.pdf_of([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 0/Kids[]>>"]), "no page"),
    ],
    ids=["cut short", "a mark alone", "no page"],
)
async def test_what_is_no_document_is_refused(data: bytes, words: str) -> None:
    """With the next step, and without a word of the file."""
    with pytest.raises(ImageUnreadable, match=words) as caught:
        await read(data)

    assert "PLANTED" not in caught.value.message


async def test_a_locked_document_is_refused_with_the_reason() -> None:
    """No password is asked for and none is tried."""

    def locked(document: fpdf.FPDF) -> None:
        document.set_encryption(owner_password="owner", user_password="user")
        square(document)

    with pytest.raises(ImageUnreadable, match="password"):
        await read(written(locked))


async def test_too_many_pages_are_refused_before_one_is_drawn() -> None:
    """With the number that is read."""
    assert pdf.MOST_PAGES == len((await read(samples.pdf(pages=pdf.MOST_PAGES))).images)
    with pytest.raises(ImageTooLarge, match="17 pages and at most 16"):
        await read(samples.pdf(pages=17))
    with pytest.raises(ImageTooLarge, match="3 pages and at most 2"):
        await read(samples.pdf(pages=3), Limits(images=2))


async def test_the_limits_on_bytes_and_pixels_hold() -> None:
    """A document is as small as a picture, and its pages are pictures."""
    with pytest.raises(ImageTooLarge, match=r"limits\.image_bytes"):
        await read(samples.pdf(), Limits(image_bytes=100))
    with pytest.raises(ImageTooLarge, match=r"limits\.image_pixels"):
        await read(samples.pdf(), Limits(image_pixels=1000))
    with pytest.raises(ImageUnreadable, match="strip"):
        await read(written(lambda _document: None, format=(10_000, 10)))


async def test_one_document_a_study() -> None:
    """Two are two studies."""
    with pytest.raises(ImageUnreadable, match="2 PDF documents"):
        await intake.read([samples.pdf(), samples.pdf(pages=2)], Limits())


def test_no_program_in_a_document_can_run() -> None:
    """The library is built without JavaScript and without XFA."""
    assert not {"V8", "XFA"} & set(PDFIUM_INFO.flags)
