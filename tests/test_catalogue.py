"""A catalogue names and opens the pictures of its own folder and nothing else, and tells what is known of them."""

import os
from pathlib import Path

import pytest

from medserve.catalogue import Catalogue, Known, media_type, parsed
from medserve.errors import ImageTooLarge, UnknownPicture
from tests.hostile import samples

CSV = """Image,Dx, Lesion attributes
ISIC_2,mel, "network, veil"
ISIC_10,nv, dots
ISIC_2,nv, second row
ISIC_77,bkl, no such file
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with rows, one without, a CSV file, a text, a page, a link, a hidden file and a subfolder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("ISIC_10.jpg", "ISIC_2.jpg", ".hidden.jpg"):
        (folder / name).write_bytes(samples.picture("JPEG"))
    (folder / "extra.png").write_bytes(samples.picture("PNG"))
    (folder / "labels.csv").write_text(CSV)
    (folder / "notes.jpg").write_text("not a picture")
    (folder / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    (tmp_path / "secret.jpg").write_bytes(samples.picture("JPEG"))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "below.jpg").write_bytes(samples.picture("JPEG"))
    os.mkfifo(folder / "pipe.jpg")
    return folder


def test_the_names_are_of_pictures_that_are_there(folder: Path) -> None:
    """In the order that people mean, told by content; the CSV file's own word for a file is not enough."""
    assert ["ISIC_2.jpg", "ISIC_10.jpg", "extra.png"] == Catalogue(folder).names()


def test_a_name_that_is_no_unicode_spoils_no_list(folder: Path) -> None:
    """JSON cannot tell it, and nobody could ask for it."""
    before = Catalogue(folder).names()
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(samples.picture("JPEG"))

    assert before == Catalogue(folder).names()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "..",
        "",
        ".",
        "deeper/below.jpg",
        "deeper",
        "/etc/passwd",
        "..\\secret.jpg",
        "link.jpg",
        "pipe.jpg",
        ".hidden.jpg",
        "labels.csv",
        "notes.jpg",
        "page.svg",
        "ISIC_2.jpg\0.png",
        "ISIC_2.jpg/",
        "\ud800.jpg",
        "x" * 5000,
        "absent.jpg",
    ],
)
def test_defect_000_11_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    """System 000 joined whatever came to its folder's path."""
    with pytest.raises(UnknownPicture) as caught:
        Catalogue(folder).picture(name, 10**6)

    assert "secret" not in caught.value.message


def test_a_picture_is_given_as_it_lies_there(folder: Path) -> None:
    """With the media type of its content, up to the limit."""
    data = (folder / "extra.png").read_bytes()

    assert (data, "image/png") == Catalogue(folder).picture("extra.png", len(data))
    with pytest.raises(ImageTooLarge):
        Catalogue(folder).picture("extra.png", len(data) - 1)


@pytest.mark.parametrize(
    ("format_", "kind"),
    [("JPEG", "jpeg"), ("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff"), ("WEBP", "webp")],
)
def test_every_picture_format_has_its_media_type(format_: str, kind: str) -> None:
    """Those that are read, and none that a browser would run."""
    assert f"image/{kind}" == media_type(samples.picture(format_))
    assert media_type(b"<html>") is None


def test_defect_000_10_a_row_that_comes_again_is_counted_and_the_first_kept(folder: Path) -> None:
    """System 000's own table counted its one double row as a picture."""
    labels = Catalogue(folder).labels()

    assert (4, 1) == (labels.read, labels.duplicates)
    assert Known("MEL", "network, veil") == labels.of("ISIC_2.jpg")
    assert Known("NV", "dots") == labels.of("ISIC_10.jpg")


def test_nothing_is_known_of_a_picture_without_a_row(folder: Path) -> None:
    """UNK is no diagnosis."""
    assert Known("UNK", "") == Catalogue(folder).labels().of("extra.png")


def test_columns_are_found_with_and_without_white_space_and_in_any_order() -> None:
    """As exports write them, a byte-order mark aside."""
    labels = parsed(" Lesion attributes , DX,image \n words, nv ,a.png\n,,\nshort")

    assert Known("NV", "words") == labels.of("a.png")
    assert (1, 0) == (labels.read, labels.duplicates)


@pytest.mark.parametrize(("text", "problem"), [("", "no column"), ("a,b\n1,2", "no column"), ('Image\n"a', "broken")])
def test_a_csv_file_that_tells_nothing_says_why(text: str, problem: str) -> None:
    """The pictures are there all the same."""
    assert problem in parsed(text).problem


def test_the_first_csv_file_with_names_of_pictures_counts(folder: Path) -> None:
    """Others that lie about are left alone, binary ones too."""
    (folder / "a.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "b.csv").write_text("x,y\n1,2\n")

    assert "MEL" == Catalogue(folder).labels().of("ISIC_2.jpg").code


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """And no path is quoted."""
    with pytest.raises(UnknownPicture, match="cannot be read") as caught:
        Catalogue(tmp_path / "gone").names()

    assert "gone" not in caught.value.message
