"""The promises of the wire: what was sent arrives, and what was not asked for does not."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medserve.images import Concern, Image, Modality, Source, Study, Volume
from medserve.imaging import wire
from medserve.imaging.isolation import Failure, Reading, Reply
from medserve.imaging.wire import Malformed


def sent(value: Any) -> tuple[bytes, NDArray[np.uint8]]:
    message = wire.packed(value)
    pieces = b"".join(message.pieces())
    assert message.payload == len(pieces)
    return message.text, np.frombuffer(pieces, np.uint8).copy()


def study() -> Study:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    volume = Volume(
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        np.array([[0.0, 0, 0], [0, 0, 2]]),
        (0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        "HU",
    )
    return Study(
        (Image(pixels, Source("PNG", "RGB", 7, 5, notes=("a note",))),) * 2,
        Modality.CT,
        ("SLICE 1", "SLICE 2"),
        (2.0, 1.0, 1.0),
        (Concern.GAP,),
        (("bits", "16"),),
        volume,
        (0, 1),
    )


def test_a_study_arrives_as_it_was_sent() -> None:
    """Pixels, voxels, labels, geometry, flags and facts, all of their own types."""
    reply = wire.unpacked(Reply, *sent(Reply(reading=Reading(study(), study().images[0]))))

    assert reply.reading is not None
    assert study() == reply.reading.study
    assert reply.reading.study.volume is not None
    assert np.array_equal(study().volume.values, reply.reading.study.volume.values)  # type: ignore[union-attr]
    assert np.int16 == reply.reading.study.volume.values.dtype
    assert Concern.GAP is reply.reading.study.concerns[0]


def test_a_failure_arrives_as_it_was_sent() -> None:
    """Code, message, field and place."""
    failure = Failure("image_unreadable", "words", "image", "dicom.py:1")

    assert Reply(failure=failure) == wire.unpacked(Reply, *sent(Reply(failure=failure)))


@dataclass(frozen=True)
class Record:
    number: int
    text: str = ""
    kind: Literal["a", "b"] = "a"
    many: tuple[int, ...] = ()
    array: NDArray[np.int16] | None = None


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": "1"},
        {"number": True},
        {"number": 1.5},
        {"text": 1},
        {"text": "\x1b[2J"},
        {"text": "x" * 20_000},
        {"kind": "c"},
        {"many": 1},
        {"many": ["a"]},
        {"many": [1] * 200_000},
        {"array": {"dtype": "int16", "shape": [100]}},
        {"array": {"dtype": "int16", "shape": [-1]}},
        {"array": {"dtype": "int16", "shape": [2**40, 2**40]}},
        {"array": {"dtype": "uint8", "shape": [1]}},
        {"array": {"dtype": "object", "shape": [1]}},
        {"array": [1, 2]},
        {"more": 1},
    ],
    ids=str,
)
def test_what_was_not_asked_for_is_refused(wrong: dict[str, Any]) -> None:
    """Other types, other fields, text that cannot be shown, arrays of other types or beyond what was sent."""
    plain = {"number": 1, "text": "", "kind": "a", "many": [], "array": None, **wrong}

    with pytest.raises(Malformed):
        wire.unpacked(Record, json.dumps(plain).encode(), np.zeros(16, np.uint8))


@given(st.binary(max_size=200))
def test_no_bytes_bring_anything_but_malformed(data: bytes) -> None:
    """Noise is refused and not half understood."""
    with pytest.raises(Malformed):
        wire.unpacked(Reply, data, np.zeros(0, np.uint8))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["reading", "failure", "study", "images"]), inner, max_size=2)
        ),
        max_leaves=8,
    )
)
def test_no_json_brings_anything_but_a_reply_or_malformed(plain: Any) -> None:
    """Whatever the shape of the JSON, only a reply comes out."""
    with suppress(Malformed):
        assert isinstance(wire.unpacked(Reply, json.dumps(plain).encode(), np.zeros(0, np.uint8)), Reply)


def test_deep_json_is_refused() -> None:
    """Nesting cannot exhaust the stack."""
    with pytest.raises(Malformed):
        wire.unpacked(Reply, b"[" * 200_000, np.zeros(0, np.uint8))


def test_what_does_not_travel_is_told_at_once() -> None:
    """A type without a plain form is a mistake in the code, not on the wire."""
    with pytest.raises(TypeError, match="does not travel"):
        wire.packed(object())


def test_an_array_from_a_file_keeps_no_other_alive(tmp_path: Path) -> None:
    """A small picture must not hold the memory of the whole volume that came with it."""
    message = wire.packed(Reply(reading=Reading(study())))
    path = tmp_path / "payload"
    path.write_bytes(b"".join(message.pieces()))

    with path.open("rb") as file:
        reply = wire.unpacked(Reply, message.text, wire.File(file.fileno(), message.payload))

    assert reply.reading is not None
    assert study() == reply.reading.study
    for image in reply.reading.study.images:
        assert image.pixels.base is not None
        assert image.pixels.nbytes == image.pixels.base.nbytes
