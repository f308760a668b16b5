"""Whatever was handed over becomes one study, or a refusal: files are told by their content and never by their names.

This runs in the decoder's process (`medserve.imaging.isolation`); everybody else asks `medserve.imaging.intake`.
Each format's module is imported when a file may be its own, because a photograph should not wait for a DICOM library.

In a folder or an archive things lie about that are no pictures: those are left out, and so are previews beside DICOM
files. A file that somebody named is never left out: it is read, or the whole request is refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from medserve.errors import ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Modality, Study
from medserve.imaging import archive, folder, lodging, raster, tiff
from medserve.imaging.isolation import Reading
from medserve.imaging.material import File, Wanted, check_count, is_folder, total_limit
from medserve.settings import Limits

NAMES = "JPEG, PNG, TIFF, WebP, BMP, GIF, DICOM, NIfTI, PDF, a slide (SVS, NDPI, pyramidal TIFF), a folder, zip or tar"

USUAL = 10.0
"""Magnification of a slide's patches where none is asked for: the middle one of MedGemma's training."""


class Format(StrEnum):
    """The families of files that are read, in the order in which one of them is believed to be meant."""

    SLIDE = "slide"
    DICOM = "DICOM"
    NIFTI = "NIfTI"
    PICTURE = "picture"
    PDF = "PDF"


def read(found: Sequence[File | Path], limits: Limits, wanted: Wanted) -> Reading:
    """The study in files and folders. Blocking; raises InvalidRequest, mostly as ImageUnreadable or ImageTooLarge."""
    files = list(_files(found, limits))
    format_, chosen, left_out = _sorted_out(files)
    if format_ is Format.SLIDE:
        reading = _slide(chosen, limits, wanted)
    else:
        reading = Reading(_study(format_, [_content(file, format_, limits) for file in chosen], limits, wanted))
    return _with_left_out(reading) if left_out else reading


def instances(found: Sequence[File | Path], limits: Limits) -> list[bytes]:
    """The DICOM files in all that was handed over, as they are; none where it is of another kind. Blocking."""
    format_, chosen, _others = _sorted_out(list(_files(found, limits)))
    return [file.content(limits.file_bytes, "limits.file_bytes") for file in chosen if _is_dicom(file, format_)]


def _is_dicom(file: File, format_: Format) -> bool:
    return format_ is Format.DICOM or (format_ is Format.SLIDE and file.head[128:132] == b"DICM")


def _files(found: Iterable[File | Path], limits: Limits) -> Iterator[File]:
    """The plain files in all that was handed over, counted and weighed."""
    count = total = 0
    for item in found:
        for file in _opened(item, limits):
            count += 1
            total += len(file.data or b"")
            check_count(count, limits)
            if total > total_limit(limits):
                raise ImageTooLarge(f"the files have more than {total_limit(limits)} bytes together", param="files")
            yield file


def _opened(item: File | Path, limits: Limits) -> Iterable[File]:
    if isinstance(item, Path):
        if is_folder(item):
            return (File.at(path, chosen=False) for path in folder.paths(item, limits))
        item = File.at(item)
    if archive.kind(item.head):
        return archive.files(item.content(limits.body_bytes, "limits.body_bytes"), limits)
    if folder.is_dicomdir(item.head):
        if item.path is None or item.data is not None:
            raise ImageUnreadable("a DICOMDIR only lists files; send a zip of its whole folder", param="files")
        return (File.at(path, chosen=False) for path in folder.listed(item.path, limits))
    return (item,)


def _sorted_out(files: Sequence[File]) -> tuple[Format, list[File], bool]:
    """The format that is meant, its files, and whether others were left out."""
    families: dict[Format, list[File]] = {}
    strangers = 0
    for file in files:
        format_ = _format(file)
        if format_ is None and file.chosen:
            raise _unknown(file)
        if format_ is None:
            strangers += not folder.is_dicomdir(file.head)
        else:
            families.setdefault(format_, []).append(file)
    if not families:
        raise ImageUnreadable(f"there is no file that is read here; send {NAMES}", param="files")
    meant = min(families, key=list(Format).index)
    others = [file for format_, group in families.items() if format_ is not meant for file in group]
    if any(file.chosen for file in others):
        raise ImageUnreadable("the files are of several kinds; send each examination by itself", param="files")
    return meant, families[meant], bool(others or strangers)


def _format(file: File) -> Format | None:
    """Whose file it is. Only the head is looked at, but for slides, whose directories may be anywhere."""
    marked = file.head[128:132] == b"DICM"  # a file may bear two marks, and DICOM leaves room for another in front
    if raster.claims(file.head) and not marked and not tiff.is_tiff(file.head):
        return Format.PICTURE
    from medserve.imaging import slide

    if slide.claims(file.head, file.path):
        return Format.SLIDE
    if raster.claims(file.head) and not marked:
        return Format.PICTURE
    if folder.is_dicomdir(file.head) or archive.kind(file.head):
        return None
    from medserve.imaging import dicom

    if dicom.claims(file.head):
        return Format.DICOM
    return _document(file)


def _document(file: File) -> Format | None:
    """A volume in one file, or a document: what has no mark at its very beginning."""
    if file.head[:2] == b"\x1f\x8b" or len(file.head) >= 352:
        from medserve.imaging import nifti

        if nifti.claims(file.head):
            return Format.NIFTI
    if b"%PDF-" not in file.head:
        return None
    from medserve.imaging import pdf

    return Format.PDF if pdf.claims(file.head) else None


def _unknown(file: File) -> ImageUnreadable:
    if not file.head:
        return ImageUnreadable(f"the file is empty (0 bytes); send {NAMES}", param="files")
    return ImageUnreadable(f"this is not a file that is read here; send {NAMES}", param="files")


def _content(file: File, format_: Format, limits: Limits) -> bytes:
    """A picture or a document is small; a volume in one file is as large as its series."""
    if format_ in {Format.PICTURE, Format.PDF}:
        return file.content(limits.image_bytes, "limits.image_bytes")
    return file.content(limits.file_bytes, "limits.file_bytes")


def _study(format_: Format, contents: list[bytes], limits: Limits, wanted: Wanted) -> Study:
    if format_ is Format.DICOM:
        from medserve.imaging import dicom

        return dicom.study(contents, limits)
    if format_ is Format.NIFTI:
        from medserve.imaging import nifti

        if len(contents) > 1:
            raise ImageUnreadable(f"there are {len(contents)} NIfTI files; send one volume", param="files")
        return nifti.study(contents[0], limits, wanted.modality)
    if format_ is Format.PDF:
        from medserve.imaging import pdf

        if len(contents) > 1:
            raise ImageUnreadable(f"there are {len(contents)} PDF documents; send one", param="files")
        return pdf.study(contents[0], limits, wanted.modality)
    if len(contents) > limits.images:
        raise ImageTooLarge(f"there are {len(contents)} pictures and at most {limits.images} are read", param="files")
    images = tuple(raster.decode(content, limits) for content in contents)
    left_out = any(map(raster.is_part, images))
    return Study(images, wanted.modality or Modality.OTHER, concerns=(Concern.FRAMES_LEFT_OUT,) if left_out else ())


def _slide(files: Sequence[File], limits: Limits, wanted: Wanted) -> Reading:
    from medserve.imaging import slide

    with _slide_paths(files) as where:
        opened = slide.open_slide(where, limits, wanted.mpp or None)
        magnification = wanted.magnification or min(USUAL, opened.magnification or USUAL)
        sample = slide.sample(opened, magnification, wanted.patches, wanted.seed)
    return Reading(sample.study, sample.thumbnail)


@contextmanager
def _slide_paths(files: Sequence[File]) -> Iterator[Path | list[Path]]:
    """Where the one slide lies: its file, or all of its instances; bytes become files for as long as it is read."""
    if len(files) > 1 and any(tiff.is_tiff(file.head) for file in files):
        raise ImageUnreadable(f"there are {len(files)} slides; send one", param="files")
    paths = [file.path for file in files if file.path is not None]
    if len(paths) == len(files):
        yield paths[0] if len(paths) == 1 else paths
        return
    if tiff.is_tiff(files[0].head):
        raise ImageUnreadable(
            "slides of this kind are not read from archives; send the slide's own file", param="files"
        )
    from medserve.imaging import slide

    contents = [file.content(lodging.ROOM) for file in files]
    for content in contents:
        slide.check_whole(content)
    with lodging.lodged(contents) as made:
        yield made


def _with_left_out(reading: Reading) -> Reading:
    return replace(reading, study=reading.study.concerned(Concern.NOT_A_PICTURE_DROPPED))
