"""A slide gives patches of its tissue, pixel for pixel, in the order in which they lie, or a reason why it cannot."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
from pydicom.uid import generate_uid

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable, MagnificationUnknown, NoTissue
from medserve.images import Concern, Image, Modality
from medserve.imaging import slide as slides
from medserve.imaging import tissue, wire
from medserve.imaging.isolation import Reading
from medserve.imaging.slide import claims, open_slide, sample
from medserve.settings import Limits
from tests.imaging.pyramids import APERIO, Page, Pixels, aperio, dicom, glass, halved, section, write

LIMITS = Limits()
REGION = Path(__file__).parents[1] / "data" / "slides" / "CMU-1-Small-Region.svs"
SHARED = Path(__file__).parents[3] / "shared" / "data"
CAMELYON = SHARED / "wsi" / "multiframe_camelyon_challenge_image.dcm"


def head(path: Path) -> bytes:
    return path.read_bytes()[:1024]


def one_tile(path: Path, lies: dict[int, int], pixels: Pixels | None = None) -> Path:
    """An SVS of one level whose directory tells `lies`: tag -> value."""
    text = APERIO.format(mpp=0.5, power=20)
    return write(path, [Page(section(256, 256) if pixels is None else pixels, description=text, lies=lies)])


# --- what is a slide -------------------------------------------------------------------------------------------------


def test_an_svs_and_a_pyramid_are_claimed(tmp_path: Path) -> None:
    """Aperio's files are slides even with one level; a TIFF is one if it has tiles at two sizes."""
    level = section(600, 600)
    pyramid = write(tmp_path / "pyramid.tif", [Page(level), Page(halved(level, 2))])
    assert claims(head(REGION), REGION)
    assert claims(head(pyramid), pyramid)


@pytest.mark.parametrize("tile", [0, 256], ids=["strips", "tiles"])
def test_an_ordinary_tiff_is_left_to_raster(tmp_path: Path, tile: int) -> None:
    """One picture is an ordinary picture, whether it is kept in strips or in tiles."""
    file = write(tmp_path / "picture.tif", [Page(section(300, 300), tile=tile)])
    assert not claims(head(file), file)


def test_a_tiff_of_many_pages_in_strips_is_not_a_slide(tmp_path: Path) -> None:
    """A scanned document has several directories and no tiles."""
    file = write(tmp_path / "pages.tif", [Page(section(40, 40), tile=0)] * 3)
    assert not claims(head(file), file)


def test_dicom_slides_are_claimed_by_their_class(tmp_path: Path) -> None:
    """The class stands in the first bytes, so that neither the whole file nor a path is needed."""
    file = dicom(tmp_path / "a.dcm", section(256, 256), 0.5, generate_uid())
    other = head(file).replace(b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.77.1.4")
    assert claims(head(file), None)
    assert claims(b"", tmp_path)
    assert not claims(other, None)


@pytest.mark.parametrize(
    "data", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n", b"MM\0+" + b"\xff" * 40]
)
def test_claiming_never_fails(tmp_path: Path, data: bytes) -> None:
    """Anything at all may be asked about."""
    file = tmp_path / "file"
    file.write_bytes(data)
    assert not claims(data, file)
    assert not claims(data, None)
    assert not claims(data, tmp_path / "missing")


# --- facts -----------------------------------------------------------------------------------------------------------


def test_the_facts_of_a_real_slide_are_read() -> None:
    """Size, pixel size and objective of OpenSlide's CMU region, as its makers publish them."""
    slide = open_slide(REGION, LIMITS)
    assert (2220, 2967) == (slide.width, slide.height)
    assert (0.499, 20.0) == (slide.mpp, slide.objective)
    assert slide.magnification == pytest.approx(20.04, abs=0.01)


def test_levels_are_read_from_a_pyramid(tmp_path: Path) -> None:
    """Each level has its size and how many times smaller it is."""
    first = section(4096, 2048)
    slide = open_slide(aperio(tmp_path / "a.svs", [first, halved(first, 4)]), LIMITS)
    assert [(4096, 2048, 1.0), (1024, 512, 4.0)] == [(one.width, one.height, one.downsample) for one in slide.levels]


def test_a_dicom_folder_is_one_slide(tmp_path: Path) -> None:
    """Instances of one series are levels of one pyramid."""
    first, series = section(2000, 1000), generate_uid()
    dicom(tmp_path / "a.dcm", first, 0.5, series)
    dicom(tmp_path / "b.dcm", halved(first, 4), 2.0, series)
    slide = open_slide(tmp_path, LIMITS)
    assert ("DICOM", 2000, 1000, 0.5) == (slide.format, slide.width, slide.height, slide.mpp)
    assert [1.0, 4.0] == [level.downsample for level in slide.levels]


def test_two_dicom_slides_in_a_folder_are_refused(tmp_path: Path) -> None:
    """Two series might be two patients."""
    for name in ("a.dcm", "b.dcm"):
        dicom(tmp_path / name, section(256, 256), 0.5, generate_uid())
    with pytest.raises(ImageUnreadable, match="several slides"):
        open_slide(tmp_path, LIMITS)


def test_the_real_dicom_slide_is_read() -> None:
    """One multi-frame file of CAMELYON16, recorded at a third of a magnification: an overview that cannot show 5x."""
    if not CAMELYON.exists():
        pytest.skip("the CAMELYON16 file is not beside the repository (it may not be shipped)")
    slide = open_slide(CAMELYON, LIMITS)
    assert (1152, 700) == (slide.width, slide.height)
    with pytest.raises(ImageError, match=r"recorded at 0\.345x and cannot show 5x"):
        sample(slide, 5)
    assert sample(slide, 0.345).patches[0].tissue == pytest.approx(0.26, abs=0.02)


def test_without_pixel_size_the_objective_counts_and_is_flagged(tmp_path: Path) -> None:
    """An objective says less than a pixel's size, so the report has to say so."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(1000, 1000)], mpp="", power=20), LIMITS)
    assert (None, 20.0) == (slide.mpp, slide.magnification)
    assert Concern.MAGNIFICATION_UNCERTAIN in sample(slide, 20).study.concerns


def test_pixel_size_wins_over_the_objective_and_is_flagged(tmp_path: Path) -> None:
    """A scanner that says 40x at 0.5 micrometres a pixel shows what others call 20x."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(300, 300)], mpp=0.5, power=40), LIMITS)
    assert slide.magnification == 20
    assert (Concern.MAGNIFICATION_UNCERTAIN,) == slide.concerns


def test_unknown_magnification_is_an_error_that_a_caller_can_mend(tmp_path: Path) -> None:
    """Nothing is assumed: the caller gives the pixel size, and the slide's notes say that he did."""
    file = aperio(tmp_path / "a.svs", [section(1000, 1000)], mpp="", power="")
    with pytest.raises(MagnificationUnknown, match="give its micrometres a pixel as mpp"):
        sample(open_slide(file, LIMITS), 10)
    slide = open_slide(file, LIMITS, mpp=0.5)
    assert slide.magnification == 20
    assert ("pixel size given by the caller",) == sample(slide, 20).study.images[0].source.notes


@pytest.mark.parametrize("mpp", ["nan", "inf", "-0.5", "0", "1e9", "half"])
def test_an_impossible_pixel_size_is_not_believed(tmp_path: Path, mpp: str) -> None:
    """A number that no microscope has counts as not said."""
    assert open_slide(aperio(tmp_path / "a.svs", [section(300, 300)], mpp=mpp), LIMITS).mpp is None


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_patches_of_the_real_slide_equal_an_independent_decoder() -> None:
    """Pillow, through libtiff, decodes the same file: every sample of every patch is the same."""
    with PIL.Image.open(REGION) as file:
        whole = np.asarray(file.convert("RGB"))
    taken = sample(open_slide(REGION, LIMITS), 20)
    assert len(taken.patches) == 4
    for image, patch in zip(taken.study.images, taken.patches, strict=True):
        np.testing.assert_array_equal(whole[patch.y : patch.y + 896, patch.x : patch.x + 896], image.pixels)


def test_a_level_at_the_wanted_magnification_is_used_as_it_is(tmp_path: Path) -> None:
    """At 5x the second level of this slide is cut into patches; nothing is resampled."""
    first = section(7168, 3584)
    second = halved(first, 4)
    taken = sample(open_slide(aperio(tmp_path / "a.svs", [first, second]), LIMITS), 5)
    assert [(0, 0, 3584), (3584, 0, 3584)] == [(patch.x, patch.y, patch.side) for patch in taken.patches]
    np.testing.assert_array_equal(second[:896, 896:1792], taken.study.images[1].pixels)


def test_between_levels_patches_equal_the_whole_slide_made_smaller(tmp_path: Path) -> None:
    """A patch has no seams: it is a cut from Pillow's resize of all of the slide, which is never made."""
    first = section(4096, 2048)
    taken = sample(open_slide(aperio(tmp_path / "a.svs", [first]), LIMITS), 10)
    whole = np.asarray(PIL.Image.fromarray(first).resize((2048, 1024), PIL.Image.Resampling.HAMMING))
    assert len(taken.patches) == 2
    for image, patch in zip(taken.study.images, taken.patches, strict=True):
        x, y = patch.x // 2, patch.y // 2
        np.testing.assert_array_equal(whole[y : y + 896, x : x + 896], image.pixels)


def test_patches_of_a_dicom_slide_are_its_pixels(tmp_path: Path) -> None:
    """Frames are put together without a shift."""
    first = section(2000, 1000)
    taken = sample(open_slide(dicom(tmp_path / "a.dcm", first, 0.5, generate_uid()), LIMITS), 20)
    for image, patch in zip(taken.study.images, taken.patches, strict=True):
        np.testing.assert_array_equal(first[patch.y : patch.y + 896, patch.x : patch.x + 896], image.pixels)


def test_a_slide_smaller_than_a_patch_is_filled_up_with_white_and_flagged(tmp_path: Path) -> None:
    """A small biopsy at low magnification is still seen, at its true scale."""
    first = section(600, 500)
    taken = sample(open_slide(aperio(tmp_path / "a.svs", [first]), LIMITS), 20)
    pixels = taken.study.images[0].pixels
    np.testing.assert_array_equal(first, pixels[:500, :600])
    assert (pixels[500:] == 255).all()
    assert (pixels[:, 600:] == 255).all()
    assert Concern.SMALLER_THAN_PATCH in taken.study.concerns


def test_a_magnification_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    """Enlarging would show the model detail that does not exist."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(300, 300)], mpp=1.0, power=10), LIMITS)
    with pytest.raises(ImageError, match="cannot show 20x"):
        sample(slide, 20)


def test_one_huge_level_is_not_shrunk_without_end(tmp_path: Path) -> None:
    """More than eight times smaller would hold a large part of the slide in memory for one patch."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(3000, 3000)], mpp=0.1, power=100), LIMITS)
    with pytest.raises(ImageTooLarge, match="no level of the slide is near 5x"):
        sample(slide, 5)


def test_an_unusual_magnification_is_flagged(tmp_path: Path) -> None:
    """The model was trained at 5x, 10x and 20x."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(1200, 1200)]), LIMITS)
    assert Concern.UNUSUAL_MAGNIFICATION in sample(slide, 15).study.concerns
    assert () == sample(slide, 20).study.concerns


# --- choice ----------------------------------------------------------------------------------------------------------


def test_chosen_patches_keep_reading_order(tmp_path: Path) -> None:
    """Row by row and from left to right, as the model was trained, however they were drawn."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(896 * 4, 896 * 4)]), LIMITS)
    taken = sample(slide, 20, count=7, seed=3)
    places = [(patch.y, patch.x) for patch in taken.patches]
    assert sorted(set(places)) == places
    assert (7, 16) == (len(places), taken.candidates)
    assert Concern.PATCHES_LEFT_OUT in taken.study.concerns


def test_a_seed_decides_the_choice(tmp_path: Path) -> None:
    """The same seed gives the same study, another one another."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(896 * 4, 896 * 4)]), LIMITS)
    first, again, other = (sample(slide, 20, count=5, seed=seed) for seed in (1, 1, 2))
    assert (first.patches, first.study.sha256) == (again.patches, again.study.sha256)
    assert first.patches != other.patches


@pytest.mark.parametrize("count", [0, 126])
def test_a_count_beyond_the_recipe_is_refused(tmp_path: Path, count: int) -> None:
    """At most 125 patches, at least one."""
    slide = open_slide(aperio(tmp_path / "a.svs", [section(300, 300)]), LIMITS)
    with pytest.raises(ImageError, match="between 1 and 125"):
        sample(slide, 20, count=count)


def test_only_patches_with_tissue_are_chosen(tmp_path: Path) -> None:
    """Of six places on the grid one is tissue all over and one to a fifth; glass and a twentieth are left out."""
    first = glass(896 * 3, 896 * 2)
    first[:896, 896 : 896 * 2] = section(896, 896)
    first[896 : 896 + 179, :896] = section(896, 179)
    first[896 : 896 + 45, 896 * 2 :] = section(896, 45)
    taken = sample(open_slide(aperio(tmp_path / "a.svs", [first]), LIMITS), 20)
    assert [(896, 0), (0, 896)] == [(patch.x, patch.y) for patch in taken.patches]
    assert [1.0, 0.2] == [round(patch.tissue, 1) for patch in taken.patches]


@pytest.mark.parametrize("shade", [243, 255, 128, 0], ids=["glass", "white", "grey", "missing"])
def test_an_empty_slide_is_an_error_and_never_patches_of_glass(tmp_path: Path, shade: int) -> None:
    """Grey, white and black are not tissue, and the message says what to check."""
    slide = open_slide(aperio(tmp_path / "a.svs", [np.full((1000, 1000, 3), shade, np.uint8)]), LIMITS)
    with pytest.raises(NoTissue, match="the slide is empty") as caught:
        sample(slide, 20)
    assert caught.value.code == "no_tissue"


def test_dust_is_not_tissue() -> None:
    """Coloured specks narrower than half the window vanish; a stain as wide as the window stays."""
    pixels = glass(100, 100)
    pixels[10:13, 10:13] = (200, 90, 160)
    pixels[50:70, 50:70] = (200, 90, 160)
    mask = tissue.median(tissue.coloured(pixels))
    assert not mask[:30, :30].any()
    assert mask[55:65, 55:65].all()


def test_faint_fat_and_glass_lie_on_both_sides_of_the_threshold() -> None:
    """Saturation 15 of 255: the grey glass of a scanner (5 to 8) is below, pale eosin above."""
    colours = np.array([[(228, 225, 230), (243, 243, 244), (235, 215, 230), (160, 60, 140), (10, 2, 8)]], np.uint8)
    assert [[False, False, True, True, False]] == tissue.coloured(colours).tolist()


def test_the_mask_of_the_real_slide_follows_the_section() -> None:
    """Some 36 % of the region is tissue; the empty right upper corner has none."""
    taken = sample(open_slide(REGION, LIMITS), 20)
    assert taken.mask.mean() == pytest.approx(0.36, abs=0.02)
    assert not taken.mask[:60, 480:].any()
    assert dict(taken.study.facts)["tissue found at"] == "5x"


def test_the_thumbnail_shows_the_whole_slide_and_the_chosen_patches() -> None:
    """Frames are drawn where the patches lie, and at their size."""
    taken = sample(open_slide(REGION, LIMITS), 20)
    assert isinstance(taken.thumbnail, Image)
    assert taken.mask.shape == taken.thumbnail.pixels.shape[:2]
    scale = 2220 / taken.thumbnail.width
    blue = (taken.thumbnail.pixels == (0, 90, 200)).all(axis=2)
    for patch in taken.patches:
        x, y, side = (round(number / scale) for number in (patch.x, patch.y, patch.side))
        assert blue[y : y + side, x : x + 3].any(axis=1).mean() > 0.98


def test_the_overview_of_the_study_is_without_frames_and_knows_where_patches_lie() -> None:
    """Of the real slide: the same picture as the thumbnail but for the frames, and a place for each patch."""
    taken = sample(open_slide(REGION, LIMITS), 20)
    overview = taken.study.overview
    assert overview is not None
    assert (overview.picture.width, overview.picture.height) == (taken.thumbnail.width, taken.thumbnail.height)
    pixel = 2220 / overview.picture.width
    for patch, (left, top, right, bottom) in zip(taken.patches, overview.places, strict=True):
        there = pytest.approx((patch.x, patch.y, patch.x + patch.side, patch.y + patch.side), rel=0.01)
        assert [edge * pixel for edge in (left, top, right, bottom)] == there
    framed = (np.asarray(taken.thumbnail.pixels) == (0, 90, 200)).all(axis=2)
    assert framed.any()
    assert not (np.asarray(overview.picture.pixels) == (0, 90, 200)).all(axis=2).any()


def test_the_study_is_histology_without_labels() -> None:
    """Patches carry no text between them, as in the notebook."""
    study = sample(open_slide(REGION, LIMITS), 20).study
    assert (Modality.HISTOLOGY, ()) == (study.modality, study.labels)
    assert {(896, 896)} == {(image.width, image.height) for image in study.images}


# --- privacy ---------------------------------------------------------------------------------------------------------


def test_label_and_macro_are_never_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real slide has both; neither its names nor its pixels are asked for."""
    assert {"label", "macro"} <= set(openslide.OpenSlide(REGION).associated_images)

    def forbidden(*_arguments: object) -> None:
        raise AssertionError("an associated image was touched")

    for name in ("get_associated_image_names", "get_associated_image_dimensions", "read_associated_image"):
        monkeypatch.setattr(openslide.lowlevel, name, forbidden)
    assert sample(open_slide(REGION, LIMITS), 20).patches


def test_the_label_of_a_dicom_slide_is_not_shown_to_the_native_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder only the levels are linked into the folder that OpenSlide looks through."""
    series, seen = generate_uid(), list[set[bytes]]()
    level = dicom(tmp_path / "level.dcm", section(300, 300), 0.5, series)
    dicom(tmp_path / "label.dcm", section(256, 256, seed=1), 0.5, series, kind="LABEL")
    real = openslide.OpenSlide

    def watched(path: Path) -> openslide.OpenSlide:
        seen.append({file.read_bytes() for file in path.parent.iterdir()})
        return real(path)

    monkeypatch.setattr(openslide, "OpenSlide", watched)
    assert sample(open_slide(tmp_path, LIMITS), 20).patches
    assert [{level.read_bytes()}] * 2 == seen


def test_a_label_alone_is_refused(tmp_path: Path) -> None:
    """A picture of a name is not a slide."""
    dicom(tmp_path / "label.dcm", section(256, 256), 0.5, generate_uid(), kind="LABEL")
    with pytest.raises(ImageUnreadable, match="no level of a slide"):
        open_slide(tmp_path, LIMITS)


def test_nothing_of_a_person_is_kept(tmp_path: Path) -> None:
    """Neither name nor number of the patient, nor the file's name, is in what is handed on or printed."""
    file = dicom(tmp_path / "Doe-Jane.dcm", section(1000, 1000), 0.5, generate_uid())
    slide = open_slide(file, LIMITS)
    taken = sample(slide, 20)
    said = repr(slide) + repr(taken)
    assert not any(word in said for word in ("Doe", "Jane", "4711"))
    assert b"Doe" not in pickle.dumps(taken)


def test_an_error_does_not_quote_the_file(tmp_path: Path) -> None:
    """A damaged tile is found by OpenSlide, whose messages name files; ours do not, nor does what they came from."""
    data = bytearray(REGION.read_bytes())
    data[300_000:600_000] = bytes(300_000)
    file = tmp_path / "Doe-Jane.svs"
    file.write_bytes(data)
    with pytest.raises(ImageUnreadable, match="damaged, cut short") as caught:
        sample(open_slide(file, LIMITS), 20)
    assert "Doe" not in caught.value.message
    assert caught.value.__suppress_context__


def test_a_sample_survives_the_way_between_processes() -> None:
    """Decoding happens where a crash of native code does no harm: patches and overview come over the wire unchanged."""
    taken = sample(open_slide(REGION, LIMITS), 20)
    message = wire.packed(Reading(taken.study, taken.thumbnail))
    back = wire.unpacked(Reading, message.text, np.frombuffer(b"".join(message.pieces()), np.uint8))
    assert (taken.study, taken.thumbnail) == (back.study, back.overview)
    assert taken.study.overview == back.study.overview is not None


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lies", "kind"),
    [
        ({322: 65520, 323: 65520}, ImageTooLarge),
        ({256: 2**31 - 1, 257: 2**31 - 1}, ImageTooLarge),
        ({256: 4096}, ImageUnreadable),
        ({322: 16, 323: 16}, ImageUnreadable),
        ({256: 0}, ImageUnreadable),
        ({324: 2**31}, ImageUnreadable),
        ({325: 2**31}, ImageUnreadable),
        ({322: 0}, ImageUnreadable),
    ],
    ids=["huge tiles", "huge sides", "too few tiles", "small tiles", "no width", "beyond", "long", "no tile width"],
)
def test_a_directory_that_lies_is_refused_before_native_code_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies: dict[int, int], kind: type[ImageError]
) -> None:
    """Each number of the directory is held against the others and against the file's length."""
    seen = list[Path]()
    monkeypatch.setattr(openslide, "OpenSlide", seen.append)
    with pytest.raises(kind):
        open_slide(one_tile(tmp_path / "a.svs", lies), LIMITS)
    assert [] == seen


def test_directories_in_a_circle_are_refused(tmp_path: Path) -> None:
    """The second directory points back at the first."""
    page = Page(section(256, 256), description=APERIO)
    first = struct.unpack_from("<I", write(tmp_path / "a.svs", [page]).read_bytes(), 4)[0]
    looped = write(tmp_path / "b.svs", [page, page], next_of_last=first)
    with pytest.raises(ImageUnreadable, match="point back at one another"):
        open_slide(looped, LIMITS)


def test_too_many_directories_are_refused(tmp_path: Path) -> None:
    """A chain of directories costs little to write and much to read."""
    file = write(tmp_path / "a.svs", [Page(section(16, 16), tile=16, description="Aperio")] * 65)
    with pytest.raises(ImageTooLarge, match="more than 64 directories"):
        open_slide(file, LIMITS)


def test_tiles_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A few kilobytes cannot stand for gigapixels."""
    file = aperio(tmp_path / "a.svs", [section(512, 512)])
    data = bytearray(file.read_bytes())
    lengths = struct.pack("<4I", *[256 * 256 * 3] * 4)
    where = data.index(lengths)
    first, last = 8, len(data)
    data[where - 16 : where] = struct.pack("<4I", *[first] * 4)
    data[where : where + 16] = struct.pack("<4I", *[last // 2] * 4)
    file.write_bytes(data)
    with pytest.raises(ImageUnreadable, match="overlap"):
        open_slide(file, LIMITS)


@pytest.mark.parametrize("kept", [0, 4, 100, 1000, 100_000, -4000])
def test_a_slide_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    """Wherever it ends, the answer is that the slide is unreadable."""
    file = tmp_path / "a.svs"
    file.write_bytes(REGION.read_bytes()[:kept])
    with pytest.raises(ImageUnreadable):
        sample(open_slide(file, LIMITS), 20)


def test_a_dicom_slide_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """Frames that are missing are not shown as white."""
    file = dicom(tmp_path / "a.dcm", section(1000, 1000), 0.5, generate_uid())
    file.write_bytes(file.read_bytes()[:1_500_000])
    with pytest.raises(ImageUnreadable):
        sample(open_slide(file, LIMITS), 20)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("Rows", 65535, ImageTooLarge),
        ("Rows", 0, ImageUnreadable),
        ("NumberOfFrames", 2**31 - 1, ImageTooLarge),
        ("TotalPixelMatrixColumns", 2**31 - 1, ImageError),
        ("TotalPixelMatrixColumns", 0, ImageUnreadable),
    ],
)
def test_a_dicom_slide_that_lies_is_refused(tmp_path: Path, name: str, value: int, kind: type[ImageError]) -> None:
    """Sides, tiles and frames have limits in DICOM as well."""
    file = dicom(tmp_path / "a.dcm", section(300, 300), 0.5, generate_uid(), lies={name: value})
    with pytest.raises(kind):
        sample(open_slide(file, LIMITS), 20)


def test_a_file_that_names_other_files_is_not_read(tmp_path: Path) -> None:
    """MIRAX and VMS would let a stranger's file choose what this machine opens."""
    file = tmp_path / "a.vms"
    file.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=../secret.jpg\n")
    with pytest.raises(ImageUnreadable):
        open_slide(file, LIMITS)


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    """A folder from an archive may hold links to anywhere."""
    outside = dicom(tmp_path / "outside.dcm", section(256, 256), 0.5, generate_uid())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.dcm").symlink_to(outside)
    with pytest.raises(ImageUnreadable):
        open_slide(folder, LIMITS)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_level_is_never_held_whole(tmp_path: Path) -> None:
    """A slide of 80 million pixels (240 MB) is sampled within 200 MB, interpreter and libraries included."""
    first = np.tile(section(896, 896), (10, 10, 1))
    file = aperio(tmp_path / "a.svs", [first])
    work = (
        "import re, sys; from pathlib import Path; from medserve.imaging.slide import open_slide, sample;"
        "from medserve.settings import Limits;"
        "taken = sample(open_slide(Path(sys.argv[1]), Limits()), 20, count=4);"
        "print(taken.candidates, *re.findall(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", work, str(file)], capture_output=True, text=True, check=True, timeout=100
    )
    candidates, peak = (int(number) for number in done.stdout.split())
    assert candidates == 100
    assert peak < 200 * 1024


def test_work_for_the_mask_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tissue is looked for in a smaller level if there is much to decode, and nowhere if there is none."""
    first = section(2048, 2048)
    slide = open_slide(aperio(tmp_path / "a.svs", [first, halved(first, 2), halved(first, 8)]), LIMITS)
    monkeypatch.setattr(slides, "READ_PIXELS", 100_000)
    assert dict(sample(slide, 20).study.facts)["tissue found at"] == "2.5x"
    monkeypatch.setattr(slides, "READ_PIXELS", 1_000)
    with pytest.raises(ImageTooLarge, match="send it as a pyramid"):
        sample(slide, 20)
