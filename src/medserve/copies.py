"""Copies of DICOM files leave without identity: all files of one call together, under names made of their new UIDs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from medserve.errors import ImageError, ImageTooLarge, InvalidRequest
from medserve.imaging import archive, folder, identity, instance
from medserve.imaging.material import File, check_count, is_folder, total_limit
from medserve.settings import Limits


@dataclass(frozen=True)
class Done:
    """What became of the files: copies written, (path, reason) of those refused, and others that are no DICOM."""

    written: int
    refused: tuple[tuple[str, str], ...]
    others: int


def write(paths: Sequence[str], target: Path, limits: Limits) -> Done:
    """Write a copy without identity of every DICOM file in `paths` (files, folders, archives) to `target`. Blocking.

    A file that cannot be copied without risk stops no other. No file is ever replaced. Raises InvalidRequest when the
    extra `deidentify` is not installed, a path cannot be read, or `target` cannot be written to.
    """
    taken: list[bytes] = []
    refused: list[tuple[str, str]] = []
    others = total = 0
    for called, file in _files(paths, limits):
        if not _may_be_copied(file):
            others += 1
            continue
        try:
            data = file.content(limits.file_bytes, "limits.file_bytes")
            _check(data, limits)
        except ImageError as error:
            refused.append((called, error.message))
            continue
        total += len(data)
        if total > total_limit(limits):
            raise ImageTooLarge(
                f"the files have more than {total_limit(limits)} bytes together (four times limits.body_bytes)",
                param="files",
            )
        taken.append(data)
    copies = identity.deidentified_files(taken, limits) if taken else []
    try:
        for copy in copies:
            with (target / _name(copy)).open("xb") as out:
                out.write(copy)
    except OSError as error:
        raise InvalidRequest(f"nothing can be written to {target}: {error.strerror}", param="out") from None
    return Done(len(copies), tuple(refused), others)


def _files(paths: Iterable[str], limits: Limits) -> Iterator[tuple[str, File]]:
    """Every file with the path by which somebody gave it: a path inside a folder may hold a patient's name."""
    count = 0
    for called in paths:
        if not called:  # as a path it would be the folder that the command was started in
            raise InvalidRequest("a path is empty; name a file, a folder or an archive", param="files")
        for file in _opened(Path(called), limits):
            count += 1
            check_count(count, limits)
            yield called, file


def _opened(path: Path, limits: Limits) -> Iterable[File]:
    if is_folder(path):
        return (File.at(each, chosen=False) for each in folder.paths(path, limits))
    file = File.at(path)
    if archive.kind(file.head):
        return archive.files(file.content(limits.body_bytes, "limits.body_bytes"), limits)
    return (file,)


def _may_be_copied(file: File) -> bool:
    """A file that somebody named is tried whatever it is; a DICOMDIR lists names of patients and of files."""
    return file.chosen or (file.head[128:132] == b"DICM" and not folder.is_dicomdir(file.head))


def _check(data: bytes, limits: Limits) -> None:
    """Refuse by itself what `deidentified_files` would refuse the whole call for."""
    if identity.may_hold_text(instance.read(data, limits)):
        raise ImageError("text may be drawn into this picture, and a copy would keep it; clean the pixels first")


def _name(copy: bytes) -> str:
    """Files of one series stand together in a listing."""
    dataset = dcmread(BytesIO(copy), specific_tags=["SeriesInstanceUID", "SOPInstanceUID"], stop_before_pixels=True)
    series, one = (identity.hashed(dataset.get(key, "")) for key in ("SeriesInstanceUID", "SOPInstanceUID"))
    return f"{series}-{one}.dcm"
