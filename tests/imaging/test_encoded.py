"""Files inside JSON are decoded exactly or refused; what the HTTP API makes of refusals stands in tests/api."""

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.errors import ImageTooLarge, ImageUnreadable, InvalidRequest
from medserve.imaging import encoded
from medserve.settings import Limits


def read(text: str, **limits: int) -> bytes:
    """What is read."""
    return asyncio.run(encoded.read(text, Limits(**limits)))


@pytest.mark.parametrize("head", ["", "data:image/jpeg;base64,", "DATA:;base64,", "data:image/jpeg;name=a.jpg;base64,"])
def test_every_form_is_the_same_file(dermoscopy: Path, head: str) -> None:
    """Bare or as a data URI, in one line or broken into many."""
    data = dermoscopy.read_bytes()
    text = b64encode(data).decode()
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))

    assert data == read(head + text) == read(head + broken)


@given(st.binary(max_size=100), st.integers(1, 8))
def test_blocks_make_no_difference(data: bytes, quads: int) -> None:
    """However the text is cut, the bytes are those that were encoded."""
    patch = pytest.MonkeyPatch()
    patch.setattr(encoded, "BLOCK", 4 * quads)
    try:
        assert data == encoded._base64(b64encode(data).decode())
    finally:
        patch.undo()


@pytest.mark.parametrize(
    "text", ["A", "AAA", "AA=A", "AA==AAAA", "AAA-", "AAAé", "====", "data:image/png,AAAA", "data:AAAA"]
)
def test_broken_texts_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Also where a block ends in padding."""
    monkeypatch.setattr(encoded, "BLOCK", 4)

    with pytest.raises(ImageUnreadable, match=r"^(the base64 is broken|a data URI must)"):
        read(text)


@pytest.mark.parametrize("text", ["http://127.0.0.1/a.png", "FILE:///etc/passwd", "file:a", "gopher:a", "x-y.z+1:a"])
def test_addresses_are_never_followed(text: str) -> None:
    """Of whatever kind."""
    with pytest.raises(InvalidRequest, match="not fetched"):
        read(text)


def test_a_text_that_is_too_long_is_not_decoded() -> None:
    """Its length says enough, whatever it holds."""
    with pytest.raises(ImageTooLarge, match=r"3000 bytes"):
        read("!" * 6000, image_bytes=3000)
