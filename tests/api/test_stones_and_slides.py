"""A CT series and a whole slide over HTTP: files go in, what was measured and counted comes out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Service
from tests.workflows import kidneys, slides
from tests.workflows.kidneys import Ball


@pytest.fixture
def client(demo: Service) -> Iterator[httpx.Client]:
    """A client of the service with the demonstration model."""
    with httpx.Client(base_url=demo.url, trust_env=False, timeout=60) as client:
        yield client


def test_a_series_with_a_stone_is_pointed_at_and_measured(client: httpx.Client) -> None:
    """Uploaded slice by slice, in no order; the voxels come as far as the measuring."""
    series = kidneys.series(kidneys.abdomen(7, [Ball((3, *kidneys.inside("right")), 16, 900)]))
    files = [("images", (f"{number}.dcm", series[number])) for number in (4, 0, 6, 2, 5, 1, 3)]
    made: Any = client.post("/v1/workflows/kidney-stones", files=files).raise_for_status().json()
    numbers = {one["name"]: one["value"] for one in made["conclusion"]["findings"] if one["source"] == "measured"}

    assert "yes" == made["conclusion"]["label"]
    assert ("right", 900.0) == (numbers["Stone 1: side"], numbers["Stone 1: greatest attenuation"])
    assert numbers["Stone 1: largest diameter"] == pytest.approx(16, abs=0.7)
    assert 7 == made["tokens"]["encodes"]
    assert made["conclusion"]["figures"][0]["png"]


def test_a_slide_is_answered_patch_by_patch(client: httpx.Client, tmp_path: Path) -> None:
    """With its map."""
    file = slides.slide(tmp_path, [[True, None, False]])
    made: Any = (
        client.post("/v1/workflows/histology", files={"images": ("a.svs", file.read_bytes())}).raise_for_status().json()
    )

    assert ["yes", "no"] == made["conclusion"]["data"]["patches"]
    assert "map of the patches" == made["conclusion"]["figures"][0]["name"]
    assert 2 == made["tokens"]["encodes"]
