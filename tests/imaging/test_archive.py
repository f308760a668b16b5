"""The promises of archives and folders: plain files come out, nothing else happens, and bombs stay small."""

import gzip
import time
from pathlib import Path

import pytest

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.imaging import archive, folder
from medserve.imaging.material import natural
from medserve.settings import Limits
from tests.hostile import crafted, samples

LIMITS = Limits()
FILES = {"b/slice-2.dcm": b"two", "b/slice-10.dcm": b"ten", "a.txt": b"text"}


def pack(kind: str) -> bytes:
    if kind == "zip":
        return samples.zipped(FILES)
    tar = samples.tarred(FILES)
    return gzip.compress(tar, mtime=0) if kind == "tar.gz" else tar


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_its_plain_files_in_natural_order(kind: str) -> None:
    """Whatever packed them, the same files come in the same order, slice 2 before slice 10."""
    data = pack(kind)

    assert kind == archive.kind(data[:4096])
    assert [b"text", b"two", b"ten"] == [file.data for file in archive.files(data, LIMITS)]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.dcm", "a.png"])
def test_what_is_no_archive_is_not_taken_for_one(name: str) -> None:
    """A gzipped volume is not a gzipped tar."""
    data = {"a.nii.gz": gzip.compress(samples.nifti()), "a.dcm": samples.dicom(), "a.png": samples.picture("PNG")}[name]

    assert archive.kind(data[:4096]) is None


REFUSED = {
    ("zip", "encrypted"): "encrypted",
    ("zip", "link"): "no plain files",
    ("zip", "LZMA"): "rare compression",
    ("zip", "compressed by method 99"): "rare compression",
    ("zip", "archive in archive"): "another archive",
    ("zip", "tar in archive"): "another archive",
    ("zip", "empty"): "empty",
    ("zip", "directory past the end"): "damaged",
    ("tar", "link"): "no plain files",
    ("tar", "hard link"): "no plain files",
    ("tar", "device"): "no plain files",
    ("tar", "block device"): "no plain files",
    ("tar", "pipe"): "no plain files",
    ("tar", "sparse file"): "no plain files",
    ("tar", "entry of 8 GB"): "damaged",
    ("tar", "extended header of 8 GB"): "damaged",
    ("tar", "archive in archive"): "another archive",
}
BOMBS = [
    ("zip", "bomb of one file"),
    ("zip", "bomb of many files"),
    ("zip", "100000 entries"),
    ("tar", "bomb"),
    ("tar", "20000 entries"),
    ("tar", "bomb of empty entries"),
]
CONTENT = {(attack.format, attack.name): attack.content for attack in crafted.attacks()}


def attack(format_: str, name: str) -> bytes:
    content = CONTENT[format_, name]
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize(("format_", "name"), REFUSED)
def test_an_archive_with_anything_but_plain_files_is_refused(format_: str, name: str) -> None:
    """Somebody made it that way, so none of it is read."""
    with pytest.raises(ImageUnreadable, match=REFUSED[format_, name]):
        archive.files(attack(format_, name), LIMITS)


@pytest.mark.parametrize(("format_", "name"), BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory_or_time(format_: str, name: str) -> None:
    """Bytes and entries are counted as they come out, whatever the archive says of itself."""
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge, match=r"unpacks to more|entries"):
        archive.files(attack(format_, name), LIMITS)

    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("format_", ["zip", "tar"])
def test_names_are_never_used_as_paths(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that lead elsewhere lead nowhere: the files are read and nothing is written."""
    monkeypatch.chdir(tmp_path)

    assert archive.files(attack(format_, "paths that leave"), LIMITS)
    assert [] == list(tmp_path.iterdir())


def test_a_folder_is_its_plain_files_and_no_link_is_followed(tmp_path: Path) -> None:
    """Links to files, to folders and to the folder itself are passed by."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "10").write_text("x")
    (tmp_path / "in" / "deep" / "9").write_text("x")
    (tmp_path / "outside").write_text("x")
    (tmp_path / "in" / "file").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")

    assert ["deep/9", "deep/10"] == [
        path.relative_to(tmp_path / "in").as_posix() for path in folder.paths(tmp_path / "in", LIMITS)
    ]


def test_a_folder_may_not_be_endlessly_deep_or_full(tmp_path: Path) -> None:
    """Walking ends."""
    deep = tmp_path / Path(*"d" * 20)
    deep.mkdir(parents=True)
    with pytest.raises(ImageTooLarge, match="deep"):
        folder.paths(tmp_path, LIMITS)

    for number in range(5):
        (deep / str(number)).write_text("x")
    with pytest.raises(ImageTooLarge, match="more than 4 files"):
        folder.paths(deep, Limits(image_frames=1))


def dicomdir(name: str, tmp_path: Path) -> Path:
    content = CONTENT["dicomdir", name]
    assert isinstance(content, dict)
    for file, data in content.items():
        link, _arrow, target = file.partition(" -> ")
        if target:
            (tmp_path / link).symlink_to(target)
        else:
            (tmp_path / file).write_bytes(data)
    return tmp_path / "DICOMDIR"


@pytest.mark.parametrize("name", ["sound", "offsets that loop"])
def test_a_dicomdir_is_the_files_that_it_lists_each_once(name: str, tmp_path: Path) -> None:
    """Offsets that point in circles are never followed."""
    assert [tmp_path / "IM1"] == folder.listed(dicomdir(name, tmp_path), LIMITS)


@pytest.mark.parametrize("name", ["a way out", "a way from the root", "a link that leads out"])
def test_a_dicomdir_cannot_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    """Neither by .., nor from the root, nor by a link."""
    with pytest.raises(ImageUnreadable, match="outside its folder"):
        folder.listed(dicomdir(name, tmp_path), LIMITS)


@pytest.mark.parametrize("name", ["nothing", "a file that is not there"])
def test_a_dicomdir_that_lists_nothing_says_so(name: str, tmp_path: Path) -> None:
    """The remedy is in the message."""
    with pytest.raises(ImageUnreadable, match="send the whole folder"):
        folder.listed(dicomdir(name, tmp_path), LIMITS)


def test_names_sort_as_people_count() -> None:
    """Digits count by their value, wherever they stand."""
    names = ["s10", "s2", "s1a", "s01", "", "10s", "9s"]

    assert ["", "9s", "10s", "s01", "s1a", "s2", "s10"] == sorted(names, key=natural)
