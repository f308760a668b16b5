"""A report leaves in every format with the same content, and no word of a model's ever becomes more than a word."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pypdfium2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from medserve import exports
from medserve.errors import InvalidRequest
from medserve.exports import Original, document, markdown, written
from medserve.reports import NOTICE, Check, Domain, Report
from tests.exports.samples import HARM, conclusion, facts, harmful, png, report
from tests.pictures import study

GOLDEN = Path(__file__).parents[1] / "golden" / "exports"
NAMES = ("html", "markdown", "text", "json")


async def golden(name: str) -> bytes:
    """The sample report in a format, without the version of this package."""
    return await written(report(), name)


@pytest.mark.parametrize("name", NAMES)
async def test_the_golden_files(name: str) -> None:
    """Each format is what it was when it was last looked at; written again by: python -m tests.exports.test_formats."""
    kept = GOLDEN / f"report{exports.find(name).suffix}"

    assert kept.read_text(encoding="utf-8") == (await golden(name)).decode()


async def test_the_golden_pages() -> None:
    """The text of the PDF, page by page."""
    assert (GOLDEN / "report.pdf.txt").read_text(encoding="utf-8") == text_of(await written(report(), "pdf"))


def text_of(pdf: bytes) -> str:
    """The text of a PDF as another program reads it, with a line between the pages."""
    pages = [page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(pdf)]
    return "\n---\n".join(page.replace("\r\n", "\n") for page in pages) + "\n"


def test_the_folder_is_the_registry() -> None:
    """Seven files, seven formats, each with a name, a media type and a suffix of its own."""
    formats = exports.formats().values()

    assert ["dicom-sr", "fhir", "html", "json", "markdown", "pdf", "text"] == list(exports.formats())
    assert len(formats) == len({one.media_type for one in formats}) == len({one.suffix for one in formats})


def test_a_format_that_does_not_exist_is_refused_with_those_that_do() -> None:
    """The answer to a typing error is the list."""
    with pytest.raises(InvalidRequest, match="there are: dicom-sr, fhir, html"):
        exports.find("docx")


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/plain", "text"),
        ("text/markdown", "markdown"),
        ("application/pdf;q=0.5, text/html", "html"),
        ("text/html;q=0.5, application/pdf", "pdf"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("application/fhir+json", "fhir"),
        ("application/dicom", "dicom-sr"),
        ("application/json;q=0, */*;q=0.1, text/plain;q=0.2", "text"),
        ("image/png", None),
        ("application/json;q=0", None),
        ("text/html;q=nonsense", None),
    ],
)
def test_the_accept_header_is_weighed(accept: str, name: str | None) -> None:
    """Quality first, then the more specific range; JSON where nobody minds; nothing where nothing fits."""
    found = exports.negotiated(accept)

    assert name == (found.name if found else None)


async def test_json_is_the_report_itself() -> None:
    """Nothing is lost on the way out and back."""
    assert report() == Report.model_validate_json(await written(report(), "json"))


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


async def test_a_reply_with_markup_stays_text_in_html() -> None:
    """No element but the template's own, no handler, no address that is loaded; and the words are all there."""
    plain, harm = Page(await written(report(), "html")), Page(await written(harmful(), "html"))

    assert {tag for tag, _ in plain.elements} == {tag for tag, _ in harm.elements}
    assert not harm.all("script")
    assert not harm.all("a")
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in harm.all("img"))
    assert not [name for _, attributes in harm.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in harm.words
    assert "{{ 7*7 }}" in harm.words


async def test_the_page_forbids_what_it_does_not_need_and_says_what_it_shows() -> None:
    """A content security policy, a language, a heading for each section, an alternative text, scopes of headers."""
    page = Page(await written(report(), "html"))
    policy = next(meta["content"] for meta in page.all("meta") if "Content-Security-Policy" == meta.get("http-equiv"))

    assert (policy or "").startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert [{"lang": "en"}] == page.all("html")
    assert 1 == len(page.all("h1"))
    assert len(page.all("section")) == len(page.all("h2"))
    assert all(image["alt"] for image in page.all("img"))
    assert {"col", "row"} == {header["scope"] for header in page.all("th")}
    assert 2 == page.words.count(NOTICE)


async def test_a_reply_with_markup_stays_text_in_markdown() -> None:
    """A CommonMark parser finds no HTML, link, picture or heading that the plain report does not have."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def kinds(text: str) -> set[str]:
        tokens = [token for one in reader.parse(text) for token in (one, *(one.children or ()))]
        return {token.type for token in tokens}

    harm = (await written(harmful(), "markdown")).decode()
    headings = [token.content for before, token in pairwise(reader.parse(harm)) if before.type == "heading_open"]

    assert not {"html_block", "html_inline", "link_open", "image", "bullet_list_open"} & kinds(harm)
    assert kinds(harm) <= kinds((await written(report(), "markdown")).decode()) | {"s_open", "s_close"}
    assert "Heading" not in headings
    assert "http://" not in harm.split("```")[0]  # what GitHub's dialect would make a link of


@given(st.text(max_size=60))
def test_escaped_markdown_reads_as_it_was_written(text: str) -> None:
    """Whatever a model writes, a parser gives its words back, with white space run together."""
    cleaned = document.clean(text)
    tokens = MarkdownIt("commonmark").parse(markdown.escaped(cleaned))
    shown = [child.content for token in tokens for child in token.children or ()]

    assert {"paragraph_open", "inline", "paragraph_close"} >= {token.type for token in tokens}
    assert " ".join(cleaned.split()) == "".join(shown)


@given(st.text())
def test_cleaned_text_holds_no_control(text: str) -> None:
    """Neither escapes for terminals, nor marks that turn the reading direction, nor halves of characters."""
    cleaned = document.clean(text)

    assert not document.TURNING & set(cleaned)
    assert cleaned == cleaned.encode("utf-8").decode("utf-8")
    assert all(one.isprintable() or one.isspace() or ord(one) > 0x9F for one in cleaned)


async def test_every_page_of_the_pdf_bears_the_notice_and_its_number() -> None:
    """Also of a report of many pages; paper gets separated."""
    rows = tuple(one.model_copy(update={"name": f"{one.name} {n}"}) for n in range(30) for one in conclusion().findings)
    pages = text_of(await written(report(conclusion=conclusion(findings=rows)), "pdf")).split("\n---\n")

    assert len(pages) > 4
    for number, page in enumerate(pages, start=1):
        assert NOTICE[:40] in " ".join(page.split())
        assert f"Page {number} of {len(pages)}" in page


async def test_no_heading_is_parted_from_what_it_heads() -> None:
    """Whatever stands above: no page of the PDF ends with the heading of the table that begins the next."""
    headings = {section.title for section in (await document.illustrated(report(), Original())).sections}
    for count in range(25):
        rows = tuple(conclusion().findings[0].model_copy(update={"name": f"Finding {n}"}) for n in range(count + 1))
        pages = text_of(await written(report(conclusion=conclusion(findings=rows)), "pdf")).split("\n---\n")

        assert not headings & {page.split(NOTICE[:20])[-2].strip().split("\n")[-1] for page in pages}


async def test_what_cannot_be_told_of_a_picture_is_no_doubt_about_it() -> None:
    """Only a check that fails is one, in every format alike."""
    check = Check(name="stated modality", passed=None, detail="the files do not say how the picture was made")
    untold = report(domain=Domain(takes="a CT series", checks=(check,)))
    failed = report(domain=Domain(takes="a CT series", checks=(check.model_copy(update={"passed": False}),)))

    for name, words in {"html": "There is a doubt.", "markdown": "There is a doubt.", "text": "A doubt:"}.items():
        assert words not in (await written(untold, name)).decode()
        assert words in (await written(failed, name)).decode()


async def test_the_pdf_says_nothing_of_who_made_it_where() -> None:
    """Title, producer and the report's own time: no author, no path, no second clock."""
    pdf = await written(report(), "pdf")
    said = pypdfium2.PdfDocument(pdf).get_metadata_dict()

    assert ("Kidney stone report", "D:20260304050607Z") == (said["Title"], said["CreationDate"])
    assert not said["Author"] + said["Subject"] + said["Keywords"] + said["Creator"] + said["ModDate"]
    assert pdf == await written(report(), "pdf")


async def test_the_pdf_shows_german_and_greek_and_says_what_it_cannot_show() -> None:
    """Its fonts come along; what they lack is a mark and a sentence, never a silent gap."""
    known = text_of(await written(report(), "pdf"))
    unknown = text_of(await written(report(conclusion=conclusion(description="腎臓 stone")), "pdf"))

    assert "Größe μ ≥ 3" in known
    assert "these fonts do not have" not in known
    assert "these fonts do not have" in " ".join(unknown.split())


@pytest.mark.parametrize("name", ["html", "pdf"])
async def test_the_studys_pictures_are_shown_where_they_are_at_hand(name: str) -> None:
    """The very pictures that the report is about; others are refused by their content."""
    shown = study(10, 20)
    about = report(study=facts(sha256=shown.sha256))
    with_pictures = await written(about, name, Original(shown))

    assert len(with_pictures) > len(await written(about, name))
    with pytest.raises(InvalidRequest, match="not the pictures that the report is about"):
        await written(about, name, Original(study(30)))


async def test_of_many_pictures_some_are_shown_and_it_is_said() -> None:
    """A series of 85 slices does not make a page of 85 pictures."""
    many = study(*range(85))
    page = Page(await written(report(study=facts(sha256=many.sha256)), "html", Original(many)))

    assert document.MOST_PICTURES + 1 == len(page.all("img"))  # and the figure
    assert "24 of 85 pictures, evenly spaced." in page.words
    assert "Picture 85 of 85" in page.words


async def test_a_figure_that_is_no_png_is_left_out() -> None:
    """A report may come from anywhere; only pixels pass, decoded in the confined process and drawn anew."""
    svg = "PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+"
    figures = tuple(conclusion().figures[0].model_copy(update={"png": one}) for one in (svg, "no base64", png()))
    page = Page(await written(report(conclusion=conclusion(figures=figures)), "html"))

    assert 1 == len(page.all("img"))
    assert 2 == page.words.count("Figure: Overlay, not shown here")


async def test_a_report_without_anything_found_invents_nothing() -> None:
    """No findings, no class, no description: those sections are not there."""
    empty = type(conclusion())()
    page = Page(await written(report(conclusion=empty, domain=None, controls=()), "html"))

    assert "Findings" not in page.words
    assert "Classification" not in page.words
    assert "Description" not in page.words


async def test_harmful_words_pass_through_every_format() -> None:
    """None of them stumbles over what a model says."""
    for name, format_ in exports.formats().items():
        if not format_.needs_files:
            assert await written(harmful(), name)
    assert HARM in json.loads(await written(harmful(), "json"))["conclusion"]["label"]


@pytest.mark.parametrize("name", ["text", "markdown", "html", "fhir"])
async def test_control_characters_leave_as_one_sign_in_every_format(name: str) -> None:
    """None is written out as for a terminal, which would put letters into the words that were never said."""
    made = (await written(harmful(), name)).decode()
    told = json.loads(made) if name == "fhir" else {}
    words = b64decode(told["presentedForm"][0]["data"]).decode() if told else made

    assert document.REPLACEMENT * 2 in words
    assert "x1b" not in words


if __name__ == "__main__":
    import asyncio

    GOLDEN.mkdir(exist_ok=True)
    for each in NAMES:
        (GOLDEN / f"report{exports.find(each).suffix}").write_bytes(asyncio.run(golden(each)))
    (GOLDEN / "report.pdf.txt").write_text(text_of(asyncio.run(written(report(), "pdf"))), encoding="utf-8")
