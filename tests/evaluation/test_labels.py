"""The table of labels is read as people write it, and every row that is not used is counted."""

from pathlib import Path

import pytest

from medserve.errors import InvalidRequest
from medserve.evaluation.labels import OTHER, Labelled, csv_of, read
from medserve.workflows.dermoscopy import CLASSES


def labelled(folder: Path, table: str, files: tuple[str, ...], **chosen: object) -> Labelled:
    """What is read of a folder with these files and this table."""
    for name in files:
        (folder / name).write_bytes(b"")
    (folder / "labels.csv").write_text(table)
    return read(folder, csv_of(folder), CLASSES, **chosen)  # type: ignore[arg-type]


def test_weakness_000_2_the_table_of_system_000_is_read_at_last(tmp_path: Path) -> None:
    """Its columns begin with a space, one picture comes twice, codes are small, endings are missing.

    System 000 had this very table and no test of it read the column of the diagnosis.
    """
    table = "Image,Dx, Lesion attributes\nISIC_1, nv, globules\nISIC_1,nv,globules\nISIC_2,mel ,\nISIC_3,akiec,scales\n"

    found = labelled(tmp_path, table, ("ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg"))

    assert ["NV", "MEL", OTHER] == [case.truth for case in found.cases]
    assert ["nv", "mel", "akiec"] == [case.stated for case in found.cases]
    assert (4, 1, 0) == (found.counts.rows, found.counts.duplicates, found.counts.conflicts)
    assert {"lesion attributes": "globules"} == found.cases[0].further


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    """Rows without a file, without a label and with a contradiction, and files without a row."""
    table = "file,label\na.png,MEL\na.png,NV\nb.png,\ngone.png,NV\n"

    counts = labelled(tmp_path, table, ("a.png", "b.png", "c.png")).counts

    assert (4, 1, 1, 1, 1, 2) == (
        counts.rows,
        counts.duplicates,
        counts.conflicts,
        counts.unlabelled,
        counts.missing,
        counts.unlisted,
    )


@pytest.mark.parametrize("stated", ["MEL", "mel", " Melanoma ", "MELANOMA"])
def test_a_label_may_be_a_code_or_what_it_means(tmp_path: Path, stated: str) -> None:
    """However it is spelled."""
    assert "MEL" == labelled(tmp_path, f"image,label\na,{stated}\n", ("a.png",)).cases[0].truth


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "link.png"])
def test_no_row_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """A path, and a link that somebody laid there, name no picture of the folder."""
    (tmp_path / "secret.png").write_bytes(b"")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")

    found = labelled(folder, f"image,label\na.png,NV\n{name},MEL\n", ("a.png",))

    assert (["NV"], 1) == ([case.truth for case in found.cases], found.counts.missing)


def test_a_folder_is_one_study(tmp_path: Path) -> None:
    """Such as the files of a series."""
    (tmp_path / "series-1").mkdir()

    (case,) = labelled(tmp_path, "study;dx\nseries-1;NV\n", ()).cases

    assert case.path == (tmp_path / "series-1").resolve()


def test_a_limit_draws_the_same_cases_of_a_sorted_table(tmp_path: Path) -> None:
    """The first ten of a table that is sorted by label would be of one label."""
    names = [f"{number:03}.png" for number in range(100)]
    rows = "".join(f"{name},{'MEL' if name < '050' else 'NV'}\n" for name in names)

    one, two = (labelled(tmp_path, f"image,label\n{rows}", tuple(names), limit=20) for _ in range(2))

    assert one == two
    assert {"MEL", "NV"} == {case.truth for case in one.cases}
    assert (20, 80) == (len(one.cases), one.counts.left_out)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "column with the picture"),
        ("picture,colour\na,red\n", "column with the label"),
        ("image,label,Label\na,NV,NV\n", "same name"),
        ("image,label\nother,NV\n", "no row"),
        ('image,label\na,"NV', "no CSV"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, table: str, words: str) -> None:
    """With what to do about it, and without a word of what stands in it."""
    with pytest.raises(InvalidRequest, match=words):
        labelled(tmp_path, table, ("a.png",))


def test_columns_of_other_names_can_be_named(tmp_path: Path) -> None:
    """And are asked for by name where they are not known."""
    found = labelled(tmp_path, "Foto,Befund\na,NV\n", ("a.png",), picture="Foto", label="Befund")

    assert ["NV"] == [case.truth for case in found.cases]


def test_without_a_table_one_is_asked_for(tmp_path: Path) -> None:
    """Two CSV files leave it to chance which is meant."""
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image,label\n")

    with pytest.raises(InvalidRequest, match="--labels"):
        csv_of(tmp_path)
