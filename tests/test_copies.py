"""The promises of copies without identity: what belongs together stays together, and no file stops another."""

from pathlib import Path

import pydicom
import pytest

from medserve import copies
from medserve.errors import ImageTooLarge, InvalidRequest
from medserve.settings import Limits
from tests.hostile import samples
from tests.imaging import phantoms

pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")


def written(folder: Path) -> list[pydicom.Dataset]:
    """The copies, read again."""
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def test_paths_of_one_call_belong_together(tmp_path: Path) -> None:
    """A file and an archive of the same series share the new UIDs of study and series, and no instance's."""
    first, *others = phantoms.series(phantoms.abdomen(4))
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "rest.zip").write_bytes(samples.zipped({f"IM{place}": data for place, data in enumerate(others)}))
    (tmp_path / "copies").mkdir()
    done = copies.write([str(tmp_path / "first"), str(tmp_path / "rest.zip")], tmp_path / "copies", Limits())
    found = written(tmp_path / "copies")

    assert copies.Done(4, (), 0) == done
    assert (1, 1, 4) == tuple(
        len({one[key].value for one in found}) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    assert "1.2.3.4.5.6" not in {one.SeriesInstanceUID for one in found}


def test_a_second_call_replaces_nothing(tmp_path: Path) -> None:
    """Its copies have UIDs, and so names, of their own."""
    (tmp_path / "scan").write_bytes(phantoms.series(phantoms.abdomen(1))[0])
    (tmp_path / "copies").mkdir()
    for _ in range(2):
        copies.write([str(tmp_path / "scan")], tmp_path / "copies", Limits())

    assert 2 == len({one.SOPInstanceUID for one in written(tmp_path / "copies")})


def test_a_refusal_names_the_path_that_was_given_and_no_file_in_it(tmp_path: Path) -> None:
    """A name inside a folder may be a patient's."""
    (tmp_path / "study").mkdir()
    shot = phantoms.dicom(samples.drawing(64, 64), sop_class=phantoms.SCREENSHOT, modality="OT")
    (tmp_path / "study" / "Mustermann.dcm").write_bytes(shot)
    done = copies.write([str(tmp_path / "study")], tmp_path, Limits())

    assert (0, [str(tmp_path / "study")]) == (done.written, [called for called, _ in done.refused])
    assert "Mustermann" not in str(done)


def test_more_than_memory_should_hold_is_refused(tmp_path: Path) -> None:
    """Before anything is written; the message names the setting."""
    (tmp_path / "scan").write_bytes(phantoms.series(phantoms.abdomen(1))[0])
    (tmp_path / "copies").mkdir()
    with pytest.raises(ImageTooLarge, match=r"limits\.body_bytes"):
        copies.write([str(tmp_path / "scan")], tmp_path / "copies", Limits(body_bytes=100))

    assert [] == list((tmp_path / "copies").iterdir())


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With a reason, as InvalidRequest."""
    (tmp_path / "scan").write_bytes(phantoms.series(phantoms.abdomen(1))[0])
    with pytest.raises(InvalidRequest, match="nothing can be written"):
        copies.write([str(tmp_path / "scan")], tmp_path / "none", Limits())
