"""A whole slide becomes the patches that MedGemma was trained on: tissue, never glass, in the order in which they lie.

The recipe is that of MedGemma 1.5's technical report and pathology notebook: a tissue mask at 5x, patches of 896 x 896
pixels on a grid of the same stride at 5x, 10x or 20x, at most 125 of them drawn at random, kept in reading order.

Magnification means what it means there: 10x is 1 micrometre a pixel (`10 / mpp`), as in Google's EZ-WSI. The
objective's own number is used only where a slide does not give its pixel spacing.

Read are Aperio SVS and other tiled TIFF pyramids, Hamamatsu NDPI, and DICOM whole slides (a multi-frame file, or
several with the instances of one series). Label and macro images show a patient's name and number: they are never
opened. Of a DICOM series only the instances that say VOLUME are shown to the native reader. Colours stay as stored.

Everything here blocks, holds no file open between calls, and can be pickled, so that it may run in another process.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openslide
import PIL.Image
import pydicom
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable, MagnificationUnknown, NoTissue
from medserve.images import Concern, Image, Modality, Overview, Source, Study
from medserve.imaging import tiff, tissue
from medserve.settings import Limits

PATCH = 896
"""Side and stride of a patch in pixels: the size of MedGemma's vision input."""

PATCHES = 125
"""Most patches of one slide, as in the notebook (the report says 126): 32,000 image tokens."""

TRAINED = (5.0, 10.0, 20.0)
"""Magnifications in the training."""

TISSUE = 0.1
"""Least part of a patch that must be tissue: the occupancy threshold of Prov-GigaPath and hi-ml. Biopsies are thin."""

MASK = 5.0
"""Magnification of the tissue mask."""

MASK_PIXELS = 64_000_000
"""Pixels of the mask, 256 square millimetres at 5x; a larger slide's is made at half the magnification, or less."""

READ_PIXELS = 600_000_000
"""Pixels that are decoded for the mask, some 17 s of one core. A slide whose level near 5x has more is looked at in a
smaller level; one that has no smaller level is refused."""

BLOCK = 2048
"""Side in pixels of what is decoded at once for the mask: 16 MB."""

ENLARGED = 8
"""Times a level may be made smaller for a patch, as in Google's server; one patch then takes 400 MB for a moment."""

SAME = 0.05
"""Part by which a level's magnification may miss the wanted one and be used pixel for pixel: scanners differ by it."""

SQUARE = 0.01
"""Part by which a pixel's width and height may differ, as in EZ-WSI."""

SIDE = 1_000_000
"""Pixels a side of a slide: a whole glass (75 mm) at 0.075 micrometres."""

LEVELS = 64
FILES = 64
"""Instances that a folder with a DICOM slide may hold."""

THUMBNAIL = 1024
"""Longest side of the thumbnail in pixels."""

FRAME = (0, 90, 200)
"""Colour of the frames on it, which no common stain has."""

FORMATS = {
    "aperio": "Aperio SVS",
    "dicom": "DICOM",
    "generic-tiff": "TIFF",
    "hamamatsu": "Hamamatsu NDPI",
    "leica": "Leica SCN",
    "philips": "Philips TIFF",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana BIF",
}
"""OpenSlide's names of the formats that are read, all of one file or DICOM. Those of many files (MIRAX, VMS) name other
files to be opened, and a stranger's file must not choose what this machine reads."""

_SLIDE_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"
_CLASS_IN_META = re.compile(rb"\x02\x00\x02\x00UI[\x1e\x1f]\x00" + re.escape(_SLIDE_CLASS) + rb"\0?(?![.\d])")
_TAGS = ("SOPClassUID", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames")
_SIZES = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its sides in pixels and how many times smaller it is than the first."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Slide:
    """The facts of a slide; `width` and `height` are pixels of the first level, `mpp` is micrometres of each.

    `mpp` and `objective` are None where the slide does not say them. `files` are the files that hold it; `notes` say
    how it was read.
    """

    files: tuple[Path, ...] = field(repr=False)
    format: str
    width: int
    height: int
    mpp: float | None
    objective: float | None
    levels: tuple[Level, ...]
    concerns: tuple[Concern, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def magnification(self) -> float | None:
        """Of the first level: from the pixels' size, else from the objective, else unknown."""
        return 10 / self.mpp if self.mpp else self.objective


@dataclass(frozen=True)
class Patch:
    """Where a patch lies: corner and side in pixels of the slide's first level, and the part that is tissue."""

    x: int
    y: int
    side: int
    tissue: float


@dataclass(frozen=True, eq=False)
class SlideSample:
    """Patches of a slide and what they were chosen from; picture `i` of `study` is patch `i`, row by row.

    `magnification` is that of the patches; `candidates` counts the patches with enough tissue, chosen or not. `mask` is
    bool [height, width] at the scale of `thumbnail`, on which the chosen patches are drawn with their numbers from 1.
    """

    study: Study
    patches: tuple[Patch, ...]
    thumbnail: Image
    mask: NDArray[np.bool_] = field(repr=False)
    magnification: float
    candidates: int
    seed: int


@dataclass(frozen=True)
class _Scale:
    """A scale at which the slide is looked at: from which level, and pixels of the first level to one."""

    level: int
    downsample: float


@dataclass(frozen=True)
class _Overview:
    """The whole slide, small: the mask (bool), its scale, and an RGB picture `shrink` times smaller than the mask."""

    mask: NDArray[np.bool_]
    downsample: float
    picture: PIL.Image.Image
    shrink: int


def claims(head: bytes, path: Path | None) -> bool:
    """Whether a file is a slide for this module rather than a picture for `raster`. Never raises.

    `head` is how the file begins, a few hundred bytes at least; `path` is where all of it lies, or a folder. A TIFF is
    a slide if it is a tiled pyramid; without `path` that is seen only if its directories come first.
    """
    try:
        if path is not None and path.is_dir():
            return any(claims(_head(file), file) for file in _files(path))
        if _is_dicom_slide(head):
            return True
        if not tiff.is_tiff(head):
            return False
        if path is None:
            return tiff.is_pyramid(BytesIO(head), len(head))
        with path.open("rb") as file:
            return tiff.is_pyramid(file, path.stat().st_size)
    except (OSError, ImageError):
        return False


def open_slide(where: Path | Sequence[Path], limits: Limits, mpp: float | None = None) -> Slide:
    """The facts of the slide in a file, a folder of DICOM instances, or several files of those. Decodes no pixels.

    `mpp`, micrometres a pixel of the first level, replaces what the slide says of it. Raises ImageUnreadable,
    ImageTooLarge, or ImageError for pixels that are not square; nothing else.
    """
    with _refusals():
        if isinstance(where, Path) and not where.is_dir() and not _is_dicom_slide(_head(where)):
            files = _tiff_file(where)
        else:
            files = _dicom_files(_paths(where))
    with _opened(files) as source:
        slide = _facts(source, files, mpp)
    _check(slide, limits)
    return slide


def sample(slide: Slide, magnification: float = 10.0, count: int = PATCHES, seed: int = 0) -> SlideSample:
    """Up to `count` patches with tissue at `magnification`, drawn without replacement by numpy's generator from `seed`.

    They come in reading order. The same slide, numbers and version of numpy give the same patches. Raises NoTissue,
    MagnificationUnknown, ImageUnreadable, ImageTooLarge, and ImageError for a magnification that was not recorded.
    """
    if not 1 <= count <= PATCHES:
        raise ImageError(f"count must lie between 1 and {PATCHES}, not {count!r}", param="count")
    scale = _scale(slide, magnification)
    with _opened(slide.files) as source:
        overview = _overview(source, slide)
        candidates = _candidates(slide, scale, overview)
        chosen = _draw(candidates, count, seed)
        images = tuple(_image(source, slide, scale, column, row) for column, row, _patch in chosen)
    patches = tuple(patch for _column, _row, patch in chosen)
    concerns = slide.concerns + tuple(_concerns(slide, scale, magnification, len(candidates) - len(chosen)))
    return SlideSample(
        study=Study(
            images,
            Modality.HISTOLOGY,
            concerns=concerns,
            facts=tuple(_said(slide, scale, overview)),
            overview=_placed(slide, overview, patches),
        ),
        patches=patches,
        thumbnail=_drawn(slide, overview, patches),
        mask=_small(overview),
        magnification=(slide.magnification or 0) / scale.downsample,
        candidates=len(candidates),
        seed=seed,
    )


# --- files -----------------------------------------------------------------------------------------------------------


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)


def _files(folder: Path) -> list[Path]:
    """The folder's plain files by name; links are not followed out of it."""
    found = sorted(path for path in islice(folder.iterdir(), FILES + 1) if path.is_file() and not path.is_symlink())
    if len(found) > FILES:
        raise ImageTooLarge(f"the folder holds more than {FILES} files; send one slide only", param="image")
    return found


def _paths(where: Path | Sequence[Path]) -> list[Path]:
    if isinstance(where, Path):
        return _files(where) if where.is_dir() else [where]
    if len(where) > FILES:
        raise ImageTooLarge(f"there are more than {FILES} files; send one slide only", param="image")
    return list(where)


def check_whole(data: bytes) -> None:
    """Refuse a DICOM slide without compression whose pixels are fewer than it declares.

    For content whose file goes on behind its end (`lodging`), where the native reader would find black pixels. Of a
    compressed one it finds no frames there, and says so. Raises ImageUnreadable.
    """
    with _refusals():
        file = BytesIO(data)
        facts = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_SIZES))
        if facts.file_meta.TransferSyntaxUID.is_compressed:
            return
        bits = math.prod(int(facts.get(name, 1) or 1) for name in _SIZES)
        if len(data) - file.tell() < bits // 8:
            raise ImageUnreadable("the slide is cut short; export it again from the scanner's software", param="image")


def _is_dicom_slide(head: bytes) -> bool:
    return head[128:132] == b"DICM" and _CLASS_IN_META.search(head) is not None


def _tiff_file(path: Path) -> tuple[Path, ...]:
    with path.open("rb") as file:
        tiff.check(file, path.stat().st_size)
    return (path,)


def _dicom_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files of the one slide that are levels of its pyramid; not its label, its overview or its thumbnail."""
    found = [(file, _dicom_facts(file)) for file in paths if _is_dicom_slide(_head(file))]
    levels = [(file, facts) for file, facts in found if "VOLUME" in (facts.get("ImageType") or ())]
    if not levels:
        raise ImageUnreadable(
            "there is no level of a slide here (ImageType VOLUME), only other pictures or none; send all instances",
            param="image",
        )
    if len({str(facts.get("SeriesInstanceUID")) for _file, facts in levels}) > 1:
        raise ImageUnreadable("the files are of several slides; send one", param="image")
    return tuple(file for file, _facts in levels)


def _dicom_facts(path: Path) -> pydicom.Dataset:
    """A few elements that say nothing about a person, held against the limits."""
    facts = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    rows, columns = int(facts.get("Rows") or 0), int(facts.get("Columns") or 0)
    if max(rows, columns) > tiff.TILE_SIDE:
        raise ImageTooLarge(
            f"the slide has tiles of {columns} x {rows} pixels, at most {tiff.TILE_SIDE} a side are read", param="image"
        )
    if min(rows, columns) < 1:
        raise ImageUnreadable("the slide has tiles without pixels", param="image")
    if int(facts.get("NumberOfFrames") or 1) > tiff.TILES:
        raise ImageTooLarge(f"the slide has more than {tiff.TILES} tiles in one level", param="image")
    return facts


@contextmanager
def _opened(files: tuple[Path, ...]) -> Iterator[openslide.OpenSlide]:
    """The slide, open for reading. Errors of the native reader, which quote names of files, become our own."""
    with _refusals(), TemporaryDirectory(prefix="medserve-slide-") as folder:
        path = files[0]
        if not tiff.is_tiff(_head(path)):
            # The native reader looks through the file's folder for more of the series: there it finds what was checked.
            for number, file in enumerate(files):
                (Path(folder) / f"{number}.dcm").symlink_to(file.absolute())
            path = Path(folder) / "0.dcm"
        with openslide.OpenSlide(path) as source:
            yield source


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageTooLarge("there is not enough memory to read the slide", param="image") from None
    except FileNotFoundError:
        raise ImageUnreadable("the slide's file does not exist", param="image") from None
    except Exception:  # three readers have no common error; what they say may quote the file
        raise ImageUnreadable(
            "the slide is damaged, cut short or of a kind that is not read here; "
            "send SVS, a tiled pyramidal TIFF, NDPI or DICOM",
            param="image",
        ) from None


# --- facts -----------------------------------------------------------------------------------------------------------


def _facts(source: openslide.OpenSlide, files: tuple[Path, ...], mpp: float | None) -> Slide:
    vendor = source.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
    if vendor not in FORMATS:
        raise ImageUnreadable(
            f"this kind of slide is not read here; send one of {', '.join(FORMATS.values())}", param="image"
        )
    if source.level_count > LEVELS:
        raise ImageTooLarge(f"the slide has {source.level_count} levels, at most {LEVELS} are read", param="image")
    sizes = zip(source.level_dimensions, source.level_downsamples, strict=True)
    levels = tuple(Level(width, height, downsample) for (width, height), downsample in sizes)
    concerns, notes = list[Concern](), list[str]()
    spacing, objective = _spacing(source, mpp), _number(source, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    if mpp is not None:
        notes.append("pixel size given by the caller")
    if objective and (spacing is None or not 2 / 3 < 10 / spacing / objective < 3 / 2):
        concerns.append(Concern.MAGNIFICATION_UNCERTAIN)
    if "openslide.icc-size" in source.properties:
        notes.append("colour profile not applied")
    width, height = levels[0].width, levels[0].height
    return Slide(files, FORMATS[vendor], width, height, spacing, objective, levels, tuple(concerns), tuple(notes))


def _said(slide: Slide, scale: _Scale, overview: _Overview) -> Iterator[tuple[str, str]]:
    """What the slide says about itself and at which scales it was looked at; nothing about a person."""
    magnification = slide.magnification or 0
    yield "format", slide.format
    yield "size", f"{slide.width} x {slide.height} pixels"
    yield "levels", ", ".join(f"{magnification / level.downsample:.3g}x" for level in slide.levels)
    if slide.mpp:
        yield "pixel size", f"{slide.mpp:.4g} micrometres"
    if slide.objective:
        yield "objective", f"{slide.objective:g}x"
    yield "patches at", f"{magnification / scale.downsample:.3g}x"
    yield "tissue found at", f"{magnification / overview.downsample:.3g}x"
    yield "tissue", f"{overview.mask.mean():.1%} of the slide"


def _concerns(slide: Slide, scale: _Scale, magnification: float, left_out: int) -> Iterator[Concern]:
    if magnification not in TRAINED:
        yield Concern.UNUSUAL_MAGNIFICATION
    if left_out:
        yield Concern.PATCHES_LEFT_OUT
    if min(_size(slide, scale)) < PATCH:
        yield Concern.SMALLER_THAN_PATCH


def _spacing(source: openslide.OpenSlide, given: float | None) -> float | None:
    """Micrometres a pixel: as given by the caller, else as the slide says, else None."""
    if given is not None:
        if not 0.01 <= given <= 1000:
            raise ImageError(f"mpp must lie between 0.01 and 1000 micrometres, not {given!r}", param="mpp")
        return given
    across, down = _number(source, openslide.PROPERTY_NAME_MPP_X), _number(source, openslide.PROPERTY_NAME_MPP_Y)
    if across is None or down is None:
        return None
    if not math.isclose(across, down, rel_tol=SQUARE):
        raise ImageError(f"the slide's pixels are not square ({across:g} x {down:g} micrometres)", param="image")
    return (across + down) / 2


def _number(source: openslide.OpenSlide, name: str) -> float | None:
    """A property as a number between 0.01 and 1000; anything else is taken as not said."""
    try:
        number = float(source.properties.get(name, "nan"))
    except ValueError:
        return None
    return number if 0.01 <= number <= 1000 else None


def _check(slide: Slide, limits: Limits) -> None:
    for level in slide.levels:
        if max(level.width, level.height) > SIDE:
            raise ImageTooLarge(
                f"the slide has {level.width} x {level.height} pixels and at most {SIDE} a side are read", param="image"
            )
        if min(level.width, level.height) < 1 or not math.isfinite(level.downsample) or level.downsample < 1:
            raise ImageUnreadable("the slide's levels contradict one another; export it again", param="image")
    if min(slide.width, slide.height) < limits.image_min_side:
        raise ImageUnreadable(f"the slide has only {slide.width} x {slide.height} pixels", param="image")


# --- scales and pixels -----------------------------------------------------------------------------------------------


def _scale(slide: Slide, magnification: float) -> _Scale:
    """The level that shows `magnification` as it is, else the next finer one, to be made smaller."""
    if not 0 < magnification <= 100:
        raise ImageError(f"magnification must lie between 0 and 100, not {magnification!r}", param="magnification")
    if slide.magnification is None:
        raise MagnificationUnknown(
            "the slide says neither the size of its pixels nor its objective; give its micrometres a pixel as mpp",
            param="mpp",
        )
    wanted = slide.magnification / magnification
    if wanted < 1 - SAME:
        raise ImageError(
            f"the slide is recorded at {slide.magnification:.3g}x and cannot show {magnification:g}x; ask for less",
            param="magnification",
        )
    nearest = min(range(len(slide.levels)), key=lambda level: abs(slide.levels[level].downsample / wanted - 1))
    if abs(slide.levels[nearest].downsample / wanted - 1) <= SAME:
        return _Scale(nearest, slide.levels[nearest].downsample)
    level = _finer(slide, wanted)
    if wanted / slide.levels[level].downsample > ENLARGED:
        raise ImageTooLarge(
            f"no level of the slide is near {magnification:g}x: the next one is {slide.magnification:.3g}x; "
            "ask for a higher magnification or send the slide as a pyramid",
            param="magnification",
        )
    return _Scale(level, wanted)


def _finer(slide: Slide, downsample: float) -> int:
    """The smallest level that is not smaller than wanted."""
    fitting = [level for level in range(len(slide.levels)) if slide.levels[level].downsample <= downsample * (1 + 1e-6)]
    return max(fitting, key=lambda level: slide.levels[level].downsample, default=0)


def _size(slide: Slide, scale: _Scale) -> tuple[int, int]:
    """Width and height of the whole slide at a scale; parts of pixels at the right and below are left away."""
    level = slide.levels[scale.level]
    if scale.downsample == level.downsample:
        return level.width, level.height
    ratio = scale.downsample / level.downsample
    return max(1, int(level.width / ratio + 1e-6)), max(1, int(level.height / ratio + 1e-6))


def _region(
    source: openslide.OpenSlide,
    slide: Slide,
    scale: _Scale,
    box: tuple[int, int, int, int],
    kernel: PIL.Image.Resampling,
) -> PIL.Image.Image:
    """The RGB pixels of `box` (left, top, right, bottom) at a scale: equal to a cut from the whole slide at that scale.

    So the pixels around the box are read too, as far as the kernel reaches. The box must lie within the slide.
    """
    level = slide.levels[scale.level]
    left, top, right, bottom = box
    if scale.downsample == level.downsample:
        return _read(source, level, scale.level, left, top, right, bottom)
    ratio = scale.downsample / level.downsample
    reach = math.ceil(ratio)
    x0, y0 = max(0, math.floor(left * ratio) - reach), max(0, math.floor(top * ratio) - reach)
    x1 = min(level.width, math.ceil(right * ratio) + reach)
    y1 = min(level.height, math.ceil(bottom * ratio) + reach)
    part = (left * ratio - x0, top * ratio - y0, min(right * ratio, x1) - x0, min(bottom * ratio, y1) - y0)
    picture = _read(source, level, scale.level, x0, y0, x1, y1)
    return picture.resize((right - left, bottom - top), kernel, part)


def _read(
    source: openslide.OpenSlide, level: Level, number: int, left: int, top: int, right: int, bottom: int
) -> PIL.Image.Image:
    """Pixels of a level as RGB; what the scanner left out is white, as glass is."""
    corner = round(left * level.downsample), round(top * level.downsample)
    pixels = source.read_region(corner, number, (right - left, bottom - top))
    if pixels.getchannel("A").getextrema() == (255, 255):
        return pixels.convert("RGB")
    page = PIL.Image.new("RGBA", pixels.size, "white")
    page.alpha_composite(pixels)
    return page.convert("RGB")


# --- tissue ----------------------------------------------------------------------------------------------------------


def _overview(source: openslide.OpenSlide, slide: Slide) -> _Overview:
    """Mask and small picture of the whole slide, made a block at a time."""
    scale = _mask_scale(slide)
    width, height = _size(slide, scale)
    shrink = math.ceil(max(width, height) / THUMBNAIL)
    mask = np.zeros((height, width), np.bool_)
    picture = PIL.Image.new("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)), "white")
    ratio = scale.downsample / slide.levels[scale.level].downsample
    step = shrink * max(1, int(BLOCK / ratio / shrink))
    for top in range(0, height, step):
        for left in range(0, width, step):
            box = left, top, min(left + step, width), min(top + step, height)
            block = _region(source, slide, scale, box, PIL.Image.Resampling.BOX)
            mask[box[1] : box[3], box[0] : box[2]] = tissue.coloured(np.asarray(block))
            # A block is a whole number of the picture's pixels, so the picture has no seams.
            picture.paste(block.reduce(shrink), (left // shrink, top // shrink))
    return _Overview(tissue.median(mask), scale.downsample, picture, shrink)


def _mask_scale(slide: Slide) -> _Scale:
    """As near to 5x as the slide has it, and smaller where mask or work would grow too large."""
    wanted = max(1.0, (slide.magnification or MASK) / MASK)
    smallest = slide.levels[_finer(slide, math.inf)]
    if smallest.width * smallest.height > READ_PIXELS:
        raise ImageTooLarge(
            "the slide has no small level from which its tissue could be found; send it as a pyramid", param="image"
        )
    while slide.width / wanted * (slide.height / wanted) > MASK_PIXELS or _work(slide, wanted) > READ_PIXELS:
        wanted *= 2
    nearest = min(slide.levels, key=lambda level: abs(level.downsample / wanted - 1))
    if abs(nearest.downsample / wanted - 1) <= SAME:
        wanted = nearest.downsample
    return _Scale(_finer(slide, wanted), wanted)


def _work(slide: Slide, downsample: float) -> int:
    level = slide.levels[_finer(slide, downsample)]
    return level.width * level.height


def _candidates(slide: Slide, scale: _Scale, overview: _Overview) -> list[tuple[int, int, Patch]]:
    """Column, row and patch of each place on the grid with enough tissue, row by row. Raises NoTissue.

    Only whole patches count, as in EZ-WSI; a slide that is smaller than a patch is one patch, filled up with white.
    """
    width, height = _size(slide, scale)
    side, found = PATCH * scale.downsample, []
    for row in range(max(1, height // PATCH)):
        for column in range(max(1, width // PATCH)):
            corners = (column * side, row * side, (column + 1) * side, (row + 1) * side)
            part = tissue.share(overview.mask, *(corner / overview.downsample for corner in corners))
            if part >= TISSUE:
                found.append((column, row, Patch(round(corners[0]), round(corners[1]), round(side), part)))
    if not found:
        raise NoTissue(
            f"the slide is empty: no patch has {TISSUE:.0%} of tissue ({overview.mask.mean():.2%} of the slide is "
            "coloured); check that the right slide was sent and that it is stained",
            param="image",
        )
    return found


def _draw(candidates: list[tuple[int, int, Patch]], count: int, seed: int) -> list[tuple[int, int, Patch]]:
    """At most `count` of the candidates, in their own order."""
    chosen = np.random.default_rng(seed).choice(len(candidates), min(count, len(candidates)), replace=False)
    return [candidates[place] for place in sorted(chosen)]


def _image(source: openslide.OpenSlide, slide: Slide, scale: _Scale, column: int, row: int) -> Image:
    """One patch, uint8 [896, 896, 3]."""
    width, height = _size(slide, scale)
    left, top = column * PATCH, row * PATCH
    box = left, top, min(left + PATCH, width), min(top + PATCH, height)
    pixels = np.full((PATCH, PATCH, 3), 255, np.uint8)
    # Hamming is Pillow's filter for making smaller that neither blurs (bilinear) nor moves edges (box).
    region = _region(source, slide, scale, box, PIL.Image.Resampling.HAMMING)
    pixels[: region.height, : region.width] = np.asarray(region)
    return Image(pixels, Source(slide.format, "RGB", slide.width, slide.height, notes=slide.notes))


def _small(overview: _Overview) -> NDArray[np.bool_]:
    """The mask at the thumbnail's scale: where at least half is tissue."""
    grey = PIL.Image.fromarray(overview.mask.astype(np.uint8) * 255)
    return np.asarray(grey.reduce(overview.shrink)) >= 128


def _placed(slide: Slide, overview: _Overview, patches: tuple[Patch, ...]) -> Overview:
    """The small picture and the places of the chosen patches in it."""
    pixel = overview.downsample * overview.shrink
    places = tuple(
        (one.x / pixel, one.y / pixel, (one.x + one.side) / pixel, (one.y + one.side) / pixel) for one in patches
    )
    source = Source(slide.format, "RGB", slide.width, slide.height)
    return Overview(Image(np.array(overview.picture), source), places)


def _drawn(slide: Slide, overview: _Overview, patches: tuple[Patch, ...]) -> Image:
    """The thumbnail with a numbered frame around each chosen patch."""
    picture = overview.picture.copy()
    pen, pixel = ImageDraw.Draw(picture), overview.downsample * overview.shrink
    for number, patch in enumerate(patches, 1):
        x0, y0, x1, y1 = (
            round(edge / pixel) for edge in (patch.x, patch.y, patch.x + patch.side, patch.y + patch.side)
        )
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=FRAME, width=2)
        font = ImageFont.load_default(min(20.0, max(8.0, (x1 - x0) / 3)))
        # On a page of its own, since stained tissue has every darkness.
        pen.rectangle(pen.textbbox((x0 + 4, y0 + 2), str(number), font), fill="white")
        pen.text((x0 + 4, y0 + 2), str(number), fill=FRAME, font=font)
    return Image(np.array(picture), Source(slide.format, "RGB", slide.width, slide.height))
