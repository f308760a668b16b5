"""Who a patient is stays in the file: a study carries hashes and geometry, and copies leave without identity.

`hashed` tells equal from different without telling which. `deidentified_files` writes copies by the Basic Application
Level Confidentiality Profile (PS3.15 E.1), of whose table `dicom-anonymizer` (Kitware, BSD-3) ships the 2026c edition.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from threading import Lock
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from medserve.errors import ImageError, InvalidRequest
from medserve.imaging.instance import Instance, read, refusals, syntax_name
from medserve.settings import Limits

METHOD = "DICOM PS3.15 2026c basic profile"
"""What DeidentificationMethod of a copy says."""

TEXT_IS_COMMON = frozenset(("US", "XA", "RF", "ES", "IVUS", "OP", "OPT", "DOC"))
"""Modalities whose devices usually draw text, often a name, into the picture."""


def hashed(uid: object) -> str:
    """The first 16 hexadecimal digits of a UID's SHA-256: the same UID, the same digits, and no way back by itself.

    Whoever holds the UID can recognise it; it is a pseudonym, not an encryption.
    """
    return sha256(str(uid).encode()).hexdigest()[:16]


def may_hold_text(instance: Instance) -> bool:
    """Whether text that identifies a person may be drawn into the pixels (BurnedInAnnotation, PS3.3 C.7.6.1).

    The file's own YES or NO decides; without one, secondary captures and devices that usually draw text may.
    """
    stated = str(instance.dataset.get("BurnedInAnnotation") or "").strip().upper()
    if stated in ("YES", "NO"):
        return stated == "YES"
    return instance.is_secondary or instance.modality in TEXT_IS_COMMON


def facts(instance: Instance) -> tuple[tuple[str, str], ...]:
    """What a DICOM file says about itself and not about a person: names that DICOM registers, numbers and hashes."""
    kind = instance.dataset.get("SOPClassUID")
    named = {
        "modality": instance.modality,  # one of DICOM's codes
        "sop_class": kind.name if kind and kind.name != str(kind) else "unknown",
        "transfer_syntax": syntax_name(instance.syntax),
        "photometric_interpretation": instance.photometric,
        "size": f"{instance.columns} x {instance.rows}",
        "frames": str(instance.frames),
        "bits": str(instance.bits),
    }
    uids = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
    hashes = {name: hashed(uid) for name, key in uids.items() if (uid := instance.dataset.get(key))}
    return tuple((named | hashes).items())


def deidentified_files(files: Sequence[bytes], limits: Limits) -> list[bytes]:
    """Copies of DICOM files by PS3.15's basic profile, new UIDs and no private elements, in the files' order.

    Equal UIDs become equal ones in all copies of a call, so that a series, its frame of reference and what refers to it
    stay together; they are drawn at random for each call, and kept nowhere. Nested data sets are cleaned like the outer
    one. Refused (ImageError) where text may be drawn into the pixels of any file: this profile does not touch them.
    Raises InvalidRequest where the extra `deidentify` is not installed.
    """
    if any(may_hold_text(read(data, limits)) for data in files):
        raise ImageError(
            "text may be drawn into this picture, and the copy would keep it; clean the pixels first", param="image"
        )
    profile = _profile()
    # The library keeps one dictionary of old and new UIDs for the process; it must not outlive the copies.
    with _ONE_AT_A_TIME:
        profile.dictionary.clear()
        try:
            return [_copy(data, profile) for data in files]
        finally:
            profile.dictionary.clear()


def _profile() -> Any:
    try:
        from dicomanonymizer import simpledicomanonymizer
    except ImportError:
        raise InvalidRequest("copies without identity need an extra: pip install 'medserve[deidentify]'") from None
    return simpledicomanonymizer


def _copy(data: bytes, profile: Any) -> bytes:
    with refusals():
        dataset = dcmread(BytesIO(data), force=True)
        _clean(dataset, profile)
        out = BytesIO()
        dataset.preamble = b"\0" * 128
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()


def _clean(dataset: Dataset, profile: Any) -> None:
    for part in list(_parts(dataset)):
        profile.anonymize_dataset(part, base_rules_gen=_rules)
    meta = dataset.file_meta
    uid = dataset.get("SOPInstanceUID") or generate_uid()
    for keyword in [element.keyword for element in meta if element.keyword not in _META]:
        delattr(meta, keyword)
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD


_META = frozenset(
    ("FileMetaInformationVersion", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
)

_ONE_AT_A_TIME = Lock()


def _rules() -> Any:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return initialize_actions("dicomfields_2026c")


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and all data sets nested in it, innermost first."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _parts(item)
    yield dataset
