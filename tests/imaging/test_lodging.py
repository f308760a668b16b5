"""Bytes get a path for as long as they are read, whether or not the process may write."""

import os
import sys
from pathlib import Path

import pytest

from medserve.errors import ImageTooLarge
from medserve.imaging import lodging


def test_contents_have_paths_and_then_no_more() -> None:
    """A process that may write uses its temporary folder."""
    with lodging.lodged([b"one", b"two"]) as paths:
        assert [b"one", b"two"] == [path.read_bytes() for path in paths]
    assert not any(path.exists() for path in paths)


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
def test_prepared_places_hold_contents_and_are_empty_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is there, what was there before is not, and more than there is room for is refused."""
    places: list[int] = []
    monkeypatch.setattr(lodging, "_places", places)
    lodging.prepare()
    try:
        for content in (b"a longer text", b"short"):
            with lodging.lodged([content]) as (path,), Path(path).open("rb") as file:
                assert content.ljust(20, b"\0") == file.read(20)
        assert bytes(20) == os.pread(places[0], 20, 0)
        with pytest.raises(ImageTooLarge, match="17 files"), lodging.lodged([b"x"] * 17):
            pass
    finally:
        for place in places:
            os.close(place)
