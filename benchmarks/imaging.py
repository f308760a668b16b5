"""Measures how long a medical file takes to become the model's pixels, on one core, decoding and resizing included.

    python -m benchmarks.imaging                medians of 15 runs, and a table for docs/performance.md

The files are drawn: a 512 x 512 CT slice without compression, and a 2048 x 2048 CR of 12 bits with noise, coded here as
lossless JPEG (process 14, first-order prediction), because no encoder for it exists among the packages. pylibjpeg
decodes it back to the drawing exactly, which is checked before anything is measured.

The first number is processor time, which other work on the machine does not change. "through the door" is time on the
clock, with what `intake` costs: handing the bytes to the confined decoder process and the pixels back.
"""

import argparse
import asyncio
import os
import struct
from collections.abc import Callable
from io import BytesIO
from statistics import median
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from medserve.imaging import dicom, intake
from medserve.imaging.instance import read
from medserve.imaging.preprocess import VisionInput, resized
from medserve.settings import Limits

CT = "1.2.840.10008.5.1.4.1.1.2"
CR = "1.2.840.10008.5.1.4.1.1.1"
MODEL = VisionInput(896)
BITS = 12
LENGTHS = (2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
"""Bits of the codes of the differences' sizes, the commonest first; a prefix code, not the best one."""


def ct_slice() -> bytes:
    """A disc of soft tissue with noise in air, 512 x 512, 16 bits."""
    rows, columns = np.mgrid[:512, :512] - 256
    noise = np.random.default_rng(1).normal(0, 10, (512, 512))
    hounsfield = np.where(rows**2 + columns**2 < 200**2, 40 + noise, -1000)
    dataset = _dataset(CT, "CT", (hounsfield + 1024).astype(np.uint16), 16)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelSpacing, dataset.ImagePositionPatient = [0.7, 0.7], [0, 0, 0]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    return _written(dataset, ExplicitVRLittleEndian)


def radiograph() -> NDArray[np.uint16]:
    """Something with edges, slopes and a detector's noise, 2048 x 2048, 12 bits."""
    rows, columns = np.mgrid[:2048, :2048] / 2048
    drawn = 1500 + 900 * np.sin(5 * rows) * np.cos(4 * columns) + 500 * ((rows * 12 % 1) < 0.2)
    noisy = drawn + np.random.default_rng(2).normal(0, 6, drawn.shape)
    return np.asarray(np.clip(np.rint(noisy), 0, 4095), np.uint16)


def cr(pixels: NDArray[np.uint16]) -> bytes:
    """The radiograph as a CR file in lossless JPEG."""
    dataset = _dataset(CR, "CR", pixels, BITS)
    dataset.PixelData = encapsulate([lossless_jpeg(pixels)])
    dataset["PixelData"].VR = "OB"
    return _written(dataset, JPEGLosslessSV1)


def lossless_jpeg(pixels: NDArray[np.uint16]) -> bytes:
    """A grey picture of 12 bits as JPEG process 14, selection value 1 (ITU T.81, annex H)."""
    differences = _differences(pixels.astype(np.int32))
    sizes = np.zeros(differences.shape, np.int64)
    for bits in range(BITS + 1):
        sizes[np.abs(differences) >= 1 << bits] = bits + 1
    order = np.argsort(-np.bincount(sizes.ravel(), minlength=len(LENGTHS)), kind="stable")
    codes, lengths = _codes(order)
    extra = np.where(differences > 0, differences, differences + (1 << sizes) - 1)
    words = (codes[sizes] << sizes) | extra
    scan = np.packbits(np.concatenate([_bits(w, n) for w, n in zip(words, lengths[sizes] + sizes, strict=True)]))
    height, width = pixels.shape
    table = bytes(LENGTHS.count(length) for length in range(1, 17)) + bytes(order.astype(np.uint8))
    return (
        b"\xff\xd8"
        + struct.pack(">HHBHHBBBB", 0xFFC3, 11, BITS, height, width, 1, 1, 0x11, 0)
        + struct.pack(">HHB", 0xFFC4, 3 + len(table), 0)
        + table
        + struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
        + scan.tobytes().replace(b"\xff", b"\xff\x00")
        + b"\xff\xd9"
    )


def _differences(pixels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each pixel less its left neighbour; in the first column less the one above, and the first less half the range."""
    predicted = np.empty_like(pixels)
    predicted[:, 1:] = pixels[:, :-1]
    predicted[1:, 0] = pixels[:-1, 0]
    predicted[0, 0] = 1 << (BITS - 1)
    return pixels - predicted


def _codes(order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each size's code and its length in bits, as annex C makes them from LENGTHS."""
    codes, lengths = np.zeros(len(LENGTHS), np.int64), np.zeros(len(LENGTHS), np.int64)
    code = 0
    for place, length in enumerate(LENGTHS):
        code <<= length - (LENGTHS[place - 1] if place else length)
        codes[order[place]], lengths[order[place]] = code, length
        code += 1
    return codes, lengths


def _bits(words: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest `lengths` bits of each word, one after another, as uint8 0 and 1."""
    ends = np.cumsum(lengths)
    below = np.repeat(ends, lengths) - np.arange(ends[-1]) - 1
    return ((np.repeat(words, lengths) >> below) & 1).astype(np.uint8)


def _dataset(sop_class: str, modality: str, pixels: NDArray[np.uint16], bits: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.ImageType = modality, ["ORIGINAL", "PRIMARY"]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def _written(dataset: Dataset, syntax: UID) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def milliseconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = perf_counter) -> float:
    """The median of so many runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append((clock() - began) * 1000)
    return median(times)


def to_pixels(data: bytes) -> None:
    """All that happens to a file's bytes before a model sees them."""
    for image in dicom.study([data], Limits()).images:
        resized(image, MODEL)


def main(repeats: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the decoder's process inherits it
    drawn = radiograph()
    files = {"CT slice, 512 x 512, 16 bits": ct_slice(), "CR, 2048 x 2048, 12 bits, lossless JPEG": cr(drawn)}
    stored = next(iter(read(files["CR, 2048 x 2048, 12 bits, lossless JPEG"], Limits()).stored((0,))))
    if not np.array_equal(stored, drawn):
        raise SystemExit("the lossless JPEG does not decode to what was drawn")
    print("| file | bytes | to 896 x 896 pixels | through the door |\n|---|---|---|---|")
    with asyncio.Runner() as runner:
        for name, data in files.items():
            inside = milliseconds(lambda data=data: to_pixels(data), repeats, process_time)  # type: ignore[misc]
            door = milliseconds(lambda data=data: runner.run(_door(data)), repeats)  # type: ignore[misc]
            print(f"| {name} | {len(data):,} | {inside:.0f} ms | {door:.0f} ms |")


async def _door(data: bytes) -> None:
    for image in (await intake.read([data], Limits())).images:
        resized(image, MODEL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    main(parser.parse_args().repeats)
