"""Nothing that tells who a patient is leaves the imaging layer."""

import logging
import pickle
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest

from medserve.errors import ImageError
from medserve.images import Concern, Modality
from medserve.imaging import dicom, identity, instance
from medserve.settings import Limits
from tests.imaging import phantoms

LIMITS = Limits()
PLAIN = np.zeros((16, 16), np.uint8)


def secrets_in(data: bytes | str) -> list[str]:
    """Which planted secrets are found."""
    raw = data if isinstance(data, bytes) else data.encode()
    return [keyword for keyword, secret in phantoms.SECRETS.items() if secret.encode() in raw]


def test_the_phantoms_do_hold_secrets() -> None:
    """Or the other tests would prove nothing."""
    assert list(phantoms.SECRETS) == secrets_in(phantoms.series(phantoms.abdomen(1))[0])


def test_a_study_holds_no_identity() -> None:
    """Neither in what it says of itself nor anywhere in its memory; UIDs are there as hashes only."""
    study = dicom.study(phantoms.series(phantoms.abdomen()), LIMITS)
    raw = pickle.dumps(study)
    assert [] == secrets_in(raw)
    assert b"1.2.3.4.5" not in raw
    assert identity.hashed("1.2.3.4.5") == dict(study.facts)["study"]
    assert 16 == len(identity.hashed("1.2.3.4.5"))


def test_identity_is_not_even_parsed() -> None:
    """The data set that the package works on has none of the identifying elements."""
    parsed = instance.read(phantoms.series(phantoms.abdomen(1))[0], LIMITS).dataset
    assert not set(phantoms.SECRETS) & set(parsed.dir())


def test_logs_and_errors_hold_no_identity(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Broken values in the very elements that are read, and identity in all others."""
    caplog.set_level(logging.DEBUG)
    for tags in (
        {"RescaleSlope": None},
        {"Rows": 60000, "Columns": 60000},
        {"ImageOrientationPatient": [1, 2, 3, 4, 5, 6]},
    ):
        with pytest.raises(ImageError) as caught:
            dicom.study(phantoms.series(phantoms.abdomen(1), **tags), LIMITS)
        assert [] == secrets_in(caught.value.message)
        assert caught.value.__cause__ is None
    out, err = capfd.readouterr()
    assert [] == secrets_in(out + err + caplog.text)


def test_text_in_free_fields_does_not_become_a_fact() -> None:
    """A name in Modality, ImageType or an unregistered UID goes nowhere."""
    file = phantoms.dicom(
        PLAIN, modality="MUSTERMANN^ERIKA", sop_class="1.2.3.19640812", ImageType=["Mustermann^Erika"]
    )
    study = dicom.study([file], LIMITS)
    assert "OT" == dict(study.facts)["modality"]
    assert "MUSTERMANN" not in repr(study).upper()
    assert "19640812" not in repr(study)


@pytest.mark.parametrize("stated", ["MUELLER", "ERIKA", "XY"])
def test_only_dicoms_own_codes_are_a_modality(stated: str) -> None:
    """A name in letters alone looks like a code, and would become a fact."""
    study = dicom.study([phantoms.dicom(PLAIN, sop_class=phantoms.DX, modality=stated)], LIMITS)
    assert ("OT", Modality.OTHER) == (dict(study.facts)["modality"], study.modality)
    assert stated not in repr(study)


@pytest.mark.parametrize(
    ("sop_class", "modality", "stated", "flagged"),
    [
        (phantoms.DX, "DX", None, False),
        (phantoms.DX, "DX", "YES", True),
        (phantoms.ULTRASOUND, "US", None, True),
        (phantoms.ULTRASOUND, "US", "NO", False),
        (phantoms.SCREENSHOT, "OT", None, True),
        (phantoms.SCREENSHOT, "OT", "YES", True),
        (phantoms.SCREENSHOT, "OT", "NO", False),
    ],
)
def test_burned_in_text_is_flagged(sop_class: str, modality: str, stated: str | None, flagged: bool) -> None:
    """By the file's own word, and without one where such pictures usually hold text."""
    tags: dict[str, Any] = {} if stated is None else {"BurnedInAnnotation": stated}
    study = dicom.study([phantoms.dicom(PLAIN, sop_class=sop_class, modality=modality, **tags)], LIMITS)
    assert flagged == (Concern.BURNED_IN_TEXT in study.concerns)


def test_a_copy_follows_the_basic_profile() -> None:
    """No planted secret, also none in nested data sets and private elements; same pixels, other UIDs, and marked so."""
    pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")
    inner = pydicom.Dataset()
    inner.PatientName = phantoms.SECRETS["PatientName"]
    inner.RequestedProcedureDescription = phantoms.SECRETS["StudyDescription"]
    outer = pydicom.dcmread(BytesIO(phantoms.series(phantoms.abdomen(1))[0]))
    outer.SharedFunctionalGroupsSequence = [inner]
    outer.private_block(0x0011, "ACME", create=True).add_new(1, "LO", phantoms.SECRETS["PatientName"])
    file = BytesIO()
    outer.save_as(file)
    (copy,) = identity.deidentified_files([file.getvalue()], LIMITS)
    assert [] == secrets_in(copy)
    read = pydicom.dcmread(BytesIO(copy))
    assert ("YES", identity.METHOD) == (read.PatientIdentityRemoved, read.DeidentificationMethod)
    assert {outer.SOPInstanceUID, outer.StudyInstanceUID, outer.SeriesInstanceUID}.isdisjoint(
        {read.SOPInstanceUID, read.StudyInstanceUID, read.SeriesInstanceUID}
    )
    assert read.file_meta.MediaStorageSOPInstanceUID == read.SOPInstanceUID
    assert dicom.study([file.getvalue()], LIMITS).images == dicom.study([copy], LIMITS).images


def test_copies_of_one_call_stay_a_series() -> None:
    """Study, series and frame of reference are new and common to all copies; another call's have nothing in common."""
    pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")
    files = phantoms.series(phantoms.abdomen(6), FrameOfReferenceUID="1.2.3.4.5.7")
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    copies = identity.deidentified_files(files, LIMITS)
    read = [pydicom.dcmread(BytesIO(copy)) for copy in copies]
    again = pydicom.dcmread(BytesIO(identity.deidentified_files(files, LIMITS)[0]))
    for uid in uids:
        (new,) = {str(one[uid].value) for one in read}
        assert not new.startswith("1.2.3.4")
        assert new != str(again[uid].value)
    assert 6 == len({one.SOPInstanceUID for one in read})
    assert [] == secrets_in(b"".join(copies))
    assert dicom.study(files, LIMITS).images == dicom.study(copies, LIMITS).images


def test_the_mapping_of_uids_does_not_outlive_its_call() -> None:
    """Whoever got hold of it could undo the copies."""
    anonymizer = pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")
    identity.deidentified_files(phantoms.series(phantoms.abdomen(2)), LIMITS)
    assert {} == anonymizer.simpledicomanonymizer.dictionary


def test_no_copy_of_a_picture_that_may_hold_text() -> None:
    """The profile cleans elements, not pixels: such a copy would keep the name that is drawn into it."""
    with pytest.raises(ImageError, match="text may be drawn"):
        identity.deidentified_files([phantoms.dicom(PLAIN, sop_class=phantoms.ULTRASOUND, modality="US")], LIMITS)
