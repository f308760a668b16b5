"""Every kind of DICOM picture is read as DICOM says, and everything else is refused with the reason."""

import struct
import time
import zlib
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medserve.errors import ImageError, ImageTooLarge, ImageUnreadable
from medserve.images import Concern, Modality, Study
from medserve.imaging import dicom, instance
from medserve.settings import Limits
from tests.imaging import phantoms

LIMITS = Limits()
RAMP = np.tile(np.arange(4096, dtype=np.uint16)[None, :64] * 65, (16, 1))


def read(*files: bytes) -> Study:
    """The study in DICOM files."""
    return dicom.study(files, LIMITS)


def x_ray(pixels: np.ndarray = RAMP, **tags: Any) -> bytes:
    """A digital radiograph of 12 bits."""
    return phantoms.dicom(pixels, sop_class=phantoms.DX, modality="DX", **{"BitsStored": 12, "HighBit": 11, **tags})


def grey(file: bytes) -> np.ndarray:
    """The one picture in a file, of which all three channels must be equal."""
    (image,) = read(file).images
    assert (image.pixels == image.pixels[..., :1]).all()
    return image.pixels[..., 0]


# What is claimed


def test_dicom_is_told_by_its_mark_or_its_first_element() -> None:
    """Files without preamble are claimed too; other formats, noise and short files are not."""
    marked = x_ray()
    assert dicom.claims(marked[:132])
    assert dicom.claims(marked[132:400])
    for other in (
        b"",
        b"DICM",
        b"\x89PNG\r\n\x1a\n".ljust(400, b"\0"),
        b"\xff\xd8\xff\xe0".ljust(400, b"\0"),
        b"II*\0" * 100,
    ):
        assert not dicom.claims(other)


def test_a_file_without_preamble_is_read_alike() -> None:
    """Old archives hold them: the same pixels come out."""
    marked = x_ray()
    assert read(marked).images == read(marked[132:]).images


# Grey pictures


def test_a_chest_x_ray_goes_through_rescale_then_window() -> None:
    """Modality before VOI: stored v is 2 v + 100, and the window 0..4095 lies on that."""
    values = 2.0 * RAMP + 100
    expected = np.clip((values - 2047.5) / 4095 + 0.5, 0, 1) * 255
    got = grey(x_ray(RescaleSlope=2, RescaleIntercept=100, WindowCenter=2048, WindowWidth=4096))
    assert np.abs(expected - got).max() <= 0.5 + 1e-9


def test_of_several_windows_the_first_counts() -> None:
    """WindowCenter and WindowWidth may hold alternatives."""
    several = x_ray(WindowCenter=[1000, 3000], WindowWidth=[500, 10])
    np.testing.assert_array_equal(grey(x_ray(WindowCenter=1000, WindowWidth=500)), grey(several))


def test_without_a_window_the_range_of_values_is_stretched() -> None:
    """From the least to the greatest stored value, as in the published steps."""
    expected = np.round((RAMP - 0.0) / 4095 * 255)
    np.testing.assert_array_equal(expected, grey(x_ray()))


def test_padding_does_not_spend_the_range() -> None:
    """The border of a collimated film holds a value that is no brightness."""
    padded = RAMP.copy()
    padded[:, :8] = 4095
    got = grey(x_ray(np.minimum(padded, 4095).astype(np.uint16), PixelPaddingValue=4095))
    assert got[0, -2] > 200
    masked = padded[:, 8:-1]
    expected = np.round((masked - masked.min()) / (masked.max() - masked.min()) * 255)
    np.testing.assert_array_equal(expected, got[:, 8:-1])


def test_monochrome1_is_inverted() -> None:
    """Its lowest value is white; the rest of the way is the same."""
    windows: list[dict[str, Any]] = [{}, {"WindowCenter": 1000, "WindowWidth": 900}]
    for tags in windows:
        inverted = grey(x_ray(PhotometricInterpretation="MONOCHROME1", **tags))
        np.testing.assert_array_equal(255 - grey(x_ray(**tags)), inverted)


def test_signed_pixels_keep_their_sign() -> None:
    """-100..100 is black to white and not white in the middle."""
    signed = np.tile(np.arange(-100, 101, dtype=np.int16), (16, 1))
    got = grey(x_ray(signed, BitsStored=16, HighBit=15))
    assert (0, 128, 255) == (got[0, 0], got[0, 100], got[0, -1])


def test_bits_beyond_those_stored_do_not_count() -> None:
    """Old files keep overlays in the upper four bits."""
    np.testing.assert_array_equal(grey(x_ray(RAMP)), grey(x_ray(RAMP | 0x8000)))


def test_8_bit_pictures_without_window_are_as_they_are() -> None:
    """No stretch: a dark ultrasound stays dark."""
    pixels = np.tile(np.arange(20, 84, dtype=np.uint8), (16, 1))
    np.testing.assert_array_equal(pixels, grey(phantoms.dicom(pixels, sop_class=phantoms.ULTRASOUND, modality="US")))


def lut(entries: np.ndarray, first: int, bits: int = 16) -> pydicom.Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def test_a_voi_lut_is_looked_up_and_clipped_at_its_ends() -> None:
    """Values 1000..1099 have entries; below the first, above the last."""
    entries = np.linspace(0, 1023, 100).round()
    got = grey(x_ray(VOILUTSequence=[lut(entries, 1000, 10)]))
    index = np.clip(RAMP.astype(int) - 1000, 0, 99)
    np.testing.assert_array_equal(np.round(entries[index] / 1023 * 255), got)


def test_a_modality_lut_comes_before_the_window() -> None:
    """Values go through the table first; the window speaks of the table's values."""
    entries = np.arange(4096)[::-1]
    got = grey(x_ray(ModalityLUTSequence=[lut(entries, 0)], WindowCenter=2048, WindowWidth=4096))
    np.testing.assert_array_equal(
        grey(x_ray((4095 - RAMP).astype(np.uint16), WindowCenter=2048, WindowWidth=4096)), got
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_are_honoured(function: str) -> None:
    """Each gives pydicom's own result."""
    file = x_ray(WindowCenter=1500, WindowWidth=800, VOILUTFunction=function)
    expected = apply_voi_lut(RAMP, pydicom.dcmread(BytesIO(file))) / 4095 * 255
    assert np.abs(expected - grey(file)).max() <= 0.5 + 1e-9


# Colour


def palette(entries: int = 256, first: int = 0, bits: int = 16, held: int | None = None) -> dict[str, Any]:
    """A palette whose colours run against one another, as keywords of `phantoms.dicom`."""
    ramp = np.arange(held if held is not None else entries) * (65535 // max(entries - 1, 1))
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", ramp // 2)):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [entries % 65536, first, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = table.astype("<u2").tobytes()
    return tags


def test_palettes_are_looked_up() -> None:
    """Each index becomes its colour of 8 bits; indices beyond the table take its last colour."""
    indices = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    (image,) = read(phantoms.dicom(indices, sop_class=phantoms.ULTRASOUND, modality="US", **palette())).images
    np.testing.assert_array_equal(np.arange(256), image.pixels[0, :, 0])
    np.testing.assert_array_equal(np.arange(256)[::-1], image.pixels[0, :, 1])
    (short,) = read(phantoms.dicom(indices, modality="US", **palette(16))).images
    assert [255, 0] == short.pixels[0, 200, :2].tolist()


def test_segmented_palettes_are_written_out() -> None:
    """Discrete and linear segments (PS3.3 C.7.9.2); a table that would grow for ever stops at its declared length."""
    tags = palette(256)
    for colour in ("Red", "Green", "Blue"):
        del tags[f"{colour}PaletteColorLookupTableData"]
        segments = np.array([0, 1, 0, 1, 255, 65535], "<u2")
        tags[f"Segmented{colour}PaletteColorLookupTableData"] = segments.tobytes()
    indices = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    (image,) = read(phantoms.dicom(indices, modality="US", **tags)).images
    np.testing.assert_array_equal(np.arange(256), image.pixels[0, :, 2])
    bomb = np.tile(np.array([0, 1, 7, 1, 65535, 9], "<u2"), 20000).tobytes()
    tags["SegmentedRedPaletteColorLookupTableData"] = bomb
    started = time.monotonic()
    read(phantoms.dicom(indices, modality="US", **tags))
    assert time.monotonic() - started < 2


def test_colours_are_read_interleaved_and_by_plane() -> None:
    """PlanarConfiguration 0 and 1 hold the same picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 3)).astype(np.uint8)
    (interleaved,) = read(phantoms.dicom(pixels, modality="XC")).images
    planes = phantoms.dicom(pixels, modality="XC", PlanarConfiguration=1, PixelData=pixels.transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(pixels, interleaved.pixels)
    assert read(planes).images == (interleaved,)


def test_16_bit_colours_are_scaled() -> None:
    """65535 is 255 and 32768 is 128."""
    pixels = np.zeros((8, 8, 3), np.uint16)
    pixels[..., 0], pixels[..., 1] = 65535, 32768
    (image,) = read(phantoms.dicom(pixels, modality="XC")).images
    assert [255, 128, 0] == image.pixels[0, 0].tolist()


def test_ybr_becomes_rgb() -> None:
    """Pillow's conversion of the same values is the independent answer, within a level."""
    ybr = np.random.default_rng(1).integers(60, 196, (8, 8, 3)).astype(np.uint8)
    (image,) = read(phantoms.dicom(ybr, modality="XC", PhotometricInterpretation="YBR_FULL")).images
    expected = np.asarray(Pillow.fromarray(ybr, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(expected - image.pixels).max() <= 1


# Transfer syntaxes


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes_hold_the_same_picture(syntax: pydicom.uid.UID) -> None:
    """Implicit, big-endian and deflated files of one picture."""
    pixels = RAMP.byteswap() if syntax == ExplicitVRBigEndian else RAMP
    np.testing.assert_array_equal(grey(x_ray()), grey(x_ray(pixels, syntax=syntax)))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_syntaxes_hold_the_same_picture(syntax: pydicom.uid.UID) -> None:
    """Compressed by pydicom's encoders, read back to the last bit."""
    square = np.tile(RAMP, (4, 1))
    dataset = pydicom.dcmread(BytesIO(x_ray(square)))
    dataset.compress(syntax, generate_instance_uid=False)
    out = BytesIO()
    dataset.save_as(out)
    study = read(out.getvalue())
    assert read(x_ray(square)).images == study.images
    assert Concern.LOSSY_COMPRESSED not in study.concerns
    assert syntax.name == dict(study.facts)["transfer_syntax"]


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
        ("SC_rgb_gdcm_KY.dcm", "SC_rgb_rle.dcm"),
    ],
)
def test_pydicoms_files_agree_with_their_twins(compressed: str, plain: str) -> None:
    """Real encoders' output: JPEG lossless, RLE, JPEG-LS, JPEG 2000 and others; lossy ones within a few levels."""
    names = [get_testdata_file(name, download=False) for name in (compressed, plain)]
    if None in names:
        pytest.skip("this pydicom does not ship the file")
    first, second = (pydicom.dcmread(name) for name in names if name is not None)
    a, b = (read(_bytes(one)).images[0].pixels.astype(int) for one in (first, second))
    assert np.abs(a - b).mean() < (0.5 if "JPEG Lossless" in first.file_meta.TransferSyntaxUID.name else 3)


def _bytes(dataset: pydicom.FileDataset) -> bytes:
    out = BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def test_an_unreadable_syntax_is_named() -> None:
    """Video has no decoder here: the error says which syntax it was."""
    file = phantoms.dicom(RAMP, syntax=pydicom.uid.MPEG2MPML, PixelData=encapsulate([b"\0" * 64]), modality="ES")
    with pytest.raises(ImageUnreadable, match="MPEG2"):
        read(file)


def test_lossy_compression_is_flagged() -> None:
    """By the transfer syntax or by the file's own word, once lost is always lost."""
    assert Concern.LOSSY_COMPRESSED in read(x_ray(LossyImageCompression="01")).concerns
    assert Concern.LOSSY_COMPRESSED in read(jpeg(RAMP.shape)).concerns


def jpeg(declared: tuple[int, int], actual: tuple[int, int] = (16, 64)) -> bytes:
    """A radiograph as JPEG whose header may declare another size than the JPEG has."""
    out = BytesIO()
    Pillow.new("L", actual[::-1], 90).save(out, "JPEG")
    empty = np.zeros((8, 8), np.uint8)
    return phantoms.dicom(
        empty,
        sop_class=phantoms.DX,
        modality="DX",
        syntax=JPEGBaseline8Bit,
        Rows=declared[0],
        Columns=declared[1],
        PixelData=encapsulate([out.getvalue()]),
    )


# Kinds and numbers of files


@pytest.mark.parametrize(
    ("code", "modality"),
    [("CR", "DX"), ("DX", "DX"), ("SM", "SM"), ("GM", "SM"), ("XC", "XC"), ("US", "US"), ("OT", "OT"), ("OP", "OT")],
)
def test_modalities_are_kept_apart(code: str, modality: str) -> None:
    """Computed and digital radiography are one, microscopy is another; the code itself is a fact."""
    study = read(phantoms.dicom(np.zeros((16, 16, 3), np.uint8), modality=code))
    assert Modality(modality) is study.modality
    assert code == dict(study.facts)["modality"]


def test_frames_become_pictures() -> None:
    """A loop of 100 frames gives 85 of them, and says so."""
    frames = np.zeros((100, 16, 16), np.uint8) + np.arange(100, dtype=np.uint8)[:, None, None]
    study = read(phantoms.dicom(frames, modality="US", sop_class=phantoms.ULTRASOUND, NumberOfFrames=100))
    assert [round(i / 85 * 99) for i in range(1, 86)] == [int(image.pixels[0, 0, 0]) for image in study.images]
    assert Concern.FRAMES_LEFT_OUT in study.concerns


def test_several_pictures_keep_their_order() -> None:
    """Two radiographs, prior and current, are in the order in which they came."""
    first, second = x_ray(), x_ray(RAMP[::-1, ::-1].copy())
    assert [*read(first).images, *read(second).images] == list(read(first, second).images)


def test_files_of_several_examinations_are_flagged() -> None:
    """Two radiographs of different studies may be of two patients; of one study they are not flagged."""
    first, second = x_ray(), x_ray(StudyInstanceUID="1.2.3.4.9")
    assert Concern.SEVERAL_STUDIES in read(first, second).concerns
    assert Concern.SEVERAL_STUDIES not in read(first, x_ray()).concerns


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelSpacing": [0.5, 2.0]}, (16, 256)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (32, 64)),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (32, 64)),
        ({"PixelAspectRatio": [2, 1]}, (32, 64)),
        ({"PixelSpacing": [0.5, 0.5], "PixelAspectRatio": [2, 1]}, (16, 64)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, (32, 64)),
        ({"PixelAspectRatio": [1, 1]}, (16, 64)),
        ({}, (16, 64)),
    ],
    ids=str,
)
def test_pictures_keep_the_proportions_of_the_patient(tags: dict[str, Any], shape: tuple[int, int]) -> None:
    """Pixels that are not square are resampled, by spacing or by ratio (high, wide), and that is said."""
    study = read(x_ray(**tags))
    changed = shape != (16, 64)
    assert shape == study.images[0].pixels.shape[:2]
    assert changed == (Concern.RESAMPLED in study.concerns) == bool(study.images[0].source.notes)
    assert (64, 16) == (study.images[0].source.width, study.images[0].source.height)


def test_impossible_proportions_are_refused() -> None:
    """A ratio that no device has would make a line of a picture, or a very large one."""
    with pytest.raises(ImageUnreadable, match="1000 times longer than wide"):
        read(x_ray(PixelAspectRatio=[1, 1000]))
    assert 2048 == read(x_ray(PixelAspectRatio=[1, 90])).images[0].width


def test_reports_and_directories_hold_no_picture() -> None:
    """Alone they are refused, beside pictures left out."""
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3", "SR"
    with pytest.raises(ImageUnreadable, match="no picture"):
        read(phantoms.saved(report))
    study = read(phantoms.saved(report), x_ray())
    assert Concern.NOT_A_PICTURE_DROPPED in study.concerns


def test_a_screenshot_of_a_ct_is_a_picture() -> None:
    """Secondary captures have no Hounsfield units, whatever their modality says."""
    shot = phantoms.dicom(np.full((16, 16), 9, np.uint8), sop_class=phantoms.SCREENSHOT, modality="CT")
    study = read(shot)
    assert {Concern.NOT_HOUNSFIELD, Concern.BURNED_IN_TEXT} == set(study.concerns)
    assert study.volume is None


def test_nothing_is_refused() -> None:
    """No file at all is an error with a remedy."""
    with pytest.raises(ImageUnreadable, match="at least one"):
        read()


def test_real_odd_files_look_right() -> None:
    """A MONOCHROME1 radiograph and a JPEG one, from beside the repository, against Pillow and plain arithmetic."""
    (inverted,) = phantoms.shared("dicom-odd/monochrome1-dx.dcm")
    raw = np.frombuffer(pydicom.dcmread(BytesIO(inverted)).PixelData, np.uint8)[: 169 * 211].reshape(169, 211)
    np.testing.assert_array_equal(255 - raw, grey(inverted))
    (compressed,) = phantoms.shared("dicom-odd/jpeg-baseline-cr.dcm")
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(BytesIO(compressed)).PixelData, number_of_frames=1))
    np.testing.assert_array_equal(np.asarray(Pillow.open(BytesIO(frame))), grey(compressed))


# Hostile bytes


def test_declared_sizes_are_checked_before_memory_is_taken() -> None:
    """65535 x 65535 pixels, 1 000 000 frames, and pixels that are not there."""
    with pytest.raises(ImageTooLarge):
        read(x_ray(Rows=65535, Columns=65535))
    with pytest.raises(ImageTooLarge):
        read(x_ray(RAMP[None], NumberOfFrames=1_000_000))
    with pytest.raises(ImageUnreadable, match="cut short"):
        read(x_ray(Rows=9000, Columns=9000))
    with pytest.raises(ImageUnreadable, match="each side"):
        read(x_ray(Rows=0))


def test_a_compressed_frame_of_another_size_is_not_decoded() -> None:
    """The header says 16 x 64; the JPEG inside would decode to 16 million pixels."""
    assert (16, 64) == read(jpeg((16, 64))).images[0].pixels.shape[:2]
    with pytest.raises(ImageUnreadable, match="another size"):
        read(jpeg((16, 64), (4000, 4000)))


def test_sizes_in_code_streams_are_found() -> None:
    """JPEG with a long comment first, JPEG-LS, JPEG 2000 bare and in its box; others have none."""
    out = BytesIO()
    Pillow.new("L", (30, 20)).save(out, "JPEG", comment=b"x" * 5000, progressive=True)
    assert (20, 30, 1) == instance.codestream_shape(out.getvalue())
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII16xH", 47, 0, 34, 25, 4, 5, 3)
    assert (20, 30, 3) == instance.codestream_shape(siz)
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x0afree\0\0"
    assert (20, 30, 3) == instance.codestream_shape(box + b"\0\0\0\0jp2c" + siz)
    assert instance.codestream_shape(box + b"\0\0\0\0free" + siz) is None  # pydicom would walk on the spot for ever
    assert (20, 30, 3) == instance.codestream_shape(b"\xff\xd8\xff\xf7\0\x0b\x08" + struct.pack(">HHB", 20, 30, 3))
    assert instance.codestream_shape(b"\0" * 100) is None
    assert instance.codestream_shape(b"\xff\xd8" + b"\xff\xe0\0\x02" * 9) is None


def test_run_lengths_that_leave_their_frame_are_refused() -> None:
    """pylibjpeg-rle panics at them, which is not even an Exception in Python."""
    runs = bytes((129, 7)) * 9  # nine times 128 bytes where 64 are declared
    frame = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs * 2
    empty = np.zeros((8, 8), np.uint16)
    file = phantoms.dicom(empty, modality="DX", syntax=RLELossless, PixelData=encapsulate([frame]))
    with pytest.raises(ImageUnreadable):
        read(file)


def test_a_small_damaged_jpeg_ls_frame_costs_no_seconds() -> None:
    """150 bytes found by fuzzing, on which CharLS 1.5.1 spends 7 s: pylibjpeg must do the work."""
    frame = bytes.fromhex(
        "ffd8fff7000b100032000a01011100fff8000d01ffff0018004d01220040ffda000801010002000040201010102040820820"
        "1fff7000000000000733182082108421080ff0665a1084210844407e04cca22222222207c14ca88888888881f044ca222222"
        "4903e084a8040404081020820807c1025008080810204104100f8200a010101020408208201f04c17f0f0041041084210840"
    )
    empty = np.zeros((50, 10), np.uint16)
    file = phantoms.dicom(empty, modality="DX", syntax=JPEGLSNearLossless, PixelData=encapsulate([frame]))
    started = time.monotonic()
    with suppress(ImageUnreadable):
        read(file)
    assert time.monotonic() - started < 2


def test_a_deflate_bomb_is_not_inflated() -> None:
    """80 kB that would inflate to 80 MB stop at the limit on bytes."""
    head = x_ray(syntax=DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(80 * 2**20)) + packer.flush()
    with pytest.raises(ImageTooLarge, match="inflates"):
        read(head[:start] + bomb)


def test_deep_sequences_end_in_a_refusal() -> None:
    """20 000 sequences within one another, of undefined length."""
    deep = b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    head = x_ray()
    with pytest.raises(ImageError):
        read(head[: head.index(b"\x28\x00\x02\x00US")] + deep)


@pytest.mark.parametrize(
    "tags",
    [
        palette(256, held=10),
        {**palette(256), "RedPaletteColorLookupTableDescriptor": [256, 0, 99]},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"VOILUTSequence": [pydicom.Dataset()]},
        {"SamplesPerPixel": 4},
        {"SamplesPerPixel": 3},
        {"BitsAllocated": 12},
        {"BitsStored": 77},
        {"PhotometricInterpretation": "HSV"},
        {"WindowCenter": 5, "WindowWidth": 0},
        {"Rows": None},
    ],
)
def test_broken_descriptions_are_refused(tags: dict[str, Any]) -> None:
    """Short and impossible palettes, look-up tables without data, wrong samples and bits, impossible windows."""
    with pytest.raises(ImageUnreadable):
        read(phantoms.dicom(np.zeros((16, 16), np.uint16), modality="DX", **tags))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    """Bits flipped and files cut anywhere: a study or an ImageError, nothing else."""
    file = bytearray(data.draw(st.sampled_from(_SEEDS)))
    for _ in range(data.draw(st.integers(0, 4))):
        file[data.draw(st.integers(128, len(file) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del file[data.draw(st.integers(140, len(file))) :]
    message = ""
    try:
        read(bytes(file))
    except ImageError as error:
        message = error.message
    assert not any(secret in message for secret in phantoms.SECRETS.values())


_SEEDS = [x_ray(RAMP[:, :16].copy()), jpeg((16, 64)), phantoms.series(phantoms.abdomen(1, 48))[0]]
