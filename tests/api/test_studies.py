"""Whatever holds a study and whichever way it comes, HTTP reads it through the one door."""

import asyncio
import gzip
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import PIL.Image
import pytest

from medserve.imaging import intake
from medserve.settings import Limits
from tests.hostile import samples
from tests.imaging import phantoms
from tests.serving import Service

INSPECT = "/v1/inspect"
DERMOSCOPY = "/v1/workflows/dermoscopy"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def series() -> dict[str, bytes]:
    """A CT series of 12 slices, by name."""
    return {f"CT/IM{n:03}": data for n, data in enumerate(phantoms.series(phantoms.abdomen()))}


def data_uri(data: bytes, kind: str = "application/dicom") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def chat(*urls: str, **more: Any) -> dict[str, Any]:
    """A question about files."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}], **more}


def test_a_series_is_the_same_study_however_it_is_sent(client: httpx.Client, series: dict[str, bytes]) -> None:
    """As many files of a form, as a zip, as base64 in JSON and as a data URI of the zip."""
    study = asyncio.run(intake.read(list(series.values()), Limits()))
    packed = samples.zipped(series)
    ways: list[dict[str, Any]] = [
        {"files": [("images", (name, data)) for name, data in series.items()]},
        {"files": {"images": ("export.zip", packed)}},
        {"files": {"images": ("export.tar.gz", gzip.compress(samples.tarred(series)))}},
        {"json": {"images": [b64encode(data).decode() for data in series.values()]}},
        {"json": {"images": [data_uri(packed, "application/zip")]}},
    ]
    for way in ways:
        told = client.post(INSPECT, **way).raise_for_status().json()
        assert (study.sha256, "CT", 12) == (told["sha256"], told["modality"], len(told["pictures"]))
        assert "HU" == told["volume"]["unit"]


def test_an_inspection_comes_as_facts_or_as_a_contact_sheet(client: httpx.Client) -> None:
    """`Accept: image/png` asks for the picture."""
    files = {"images": samples.nifti()}
    facts = client.post(INSPECT, files=files, data={"modality": "ct"}).raise_for_status().json()
    sheet = client.post(INSPECT, files=files, headers={"Accept": "image/png"}).raise_for_status()

    assert "CT" == facts["modality"]
    assert "image/png" == sheet.headers["content-type"]
    assert "PNG" == PIL.Image.open(BytesIO(sheet.content)).format


def test_a_slide_is_drawn_from_as_asked(client: httpx.Client) -> None:
    """Magnification, patches and seed, in a form and in JSON."""
    slide = samples.slide(side=2048)
    wanted = {"patches": 2, "magnification": 20, "seed": 3}
    form = client.post(INSPECT, files={"images": slide}, data=wanted).raise_for_status().json()
    json = client.post(INSPECT, json={"images": [b64encode(slide).decode()], **wanted}).raise_for_status().json()

    assert 2 == len(form["pictures"])
    assert form == json


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"files": {"images": b"text"}}, "images.0"),
        ({"files": [("images", b"text"), ("images", b"text")]}, "images"),
        ({"files": {"images": b"x"}, "data": {"modality": "tarot"}}, "modality"),
        ({"files": {"images": b"x"}, "data": {"patches": "126"}}, "patches"),
        ({"json": {"images": ["AAAA"], "magnification": -1}}, "magnification"),
        ({"json": {"images": ["AAAA"], "zodiac": 1}}, None),  # a stranger's name is not repeated
        ({"json": {"images": ["dicomweb:pacs/studies/1.2/series/1.3"]}}, "images.0"),
        ({"json": {"images": ["https://example.org/a.dcm"]}}, "images.0"),
    ],
)
def test_a_study_that_cannot_be_looked_at_names_its_field(
    client: httpx.Client, sent: dict[str, Any], param: str | None
) -> None:
    """As everywhere."""
    answer = client.post(INSPECT, **sent)

    assert (400, param) == (answer.status_code, answer.json()["error"]["param"])


def test_a_dicom_photograph_becomes_a_report(client: httpx.Client) -> None:
    """With its concerns, and without the patient."""
    data = phantoms.dicom(
        samples.drawing(64, 64), sop_class=phantoms.SCREENSHOT, modality="CT", BurnedInAnnotation="YES"
    )
    answer = client.post(DERMOSCOPY, files={"images": data}).raise_for_status()
    report = answer.json()
    text = client.post(DERMOSCOPY, files={"images": data}, headers={"Accept": "text/plain"}).text

    assert {"wrong_modality", "burned_in_text"} <= {one["name"] for one in report["study"]["concerns"]}
    assert report["needs_review"]
    assert "burned_in_text: text, perhaps a name" in text
    assert not any(secret in answer.text + text for secret in phantoms.SECRETS.values())


def test_a_volume_is_too_much_for_a_workflow_of_one_picture(client: httpx.Client, series: dict[str, bytes]) -> None:
    """Counted after reading: how many pictures a file holds is not known before."""
    answer = client.post(DERMOSCOPY, files={"images": samples.zipped(series)})

    assert (400, "images") == (answer.status_code, answer.json()["error"]["param"])
    assert "not 12" in answer.json()["error"]["message"]


def test_a_volume_in_a_chat_becomes_its_slices_with_labels(client: httpx.Client, series: dict[str, bytes]) -> None:
    """256 tokens for each slice, two words for each label, and the concerns in a header."""
    whole = client.post(CHAT, json=chat(data_uri(samples.zipped(series), "application/zip"))).raise_for_status()
    usage = whole.json()["usage"]

    assert 12 * 256 == usage["prompt_tokens_details"]["image_tokens"]
    assert 12 * 256 + 12 * 2 + 3 == usage["prompt_tokens"]
    assert "resampled" == whole.headers["X-Medserve-Concerns"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_slice_in_a_chat_is_a_picture_and_its_concerns_are_told(client: httpx.Client, stream: bool) -> None:
    """A single one gets no label: who sends slices one by one numbers them himself."""
    answer = client.post(CHAT, json=chat(data_uri(samples.dicom()), stream=stream)).raise_for_status()

    assert "few_slices" in answer.headers["X-Medserve-Concerns"].split(",")
    if not stream:
        assert 256 + 3 == answer.json()["usage"]["prompt_tokens"]


def test_more_slices_than_a_request_may_have_are_refused(client: httpx.Client, series: dict[str, bytes]) -> None:
    """Counted over all parts, after volumes were taken apart."""
    zipped = data_uri(samples.zipped(series), "application/zip")
    answer = client.post(CHAT, json=chat(*[zipped] * 11))

    assert (400, "messages") == (answer.status_code, answer.json()["error"]["param"])


def test_a_large_upload_is_not_held_in_memory(client: httpx.Client, service: Service) -> None:
    """Thirty megabytes, several times over, go to disk; and what lay there is gone."""
    sent: dict[str, Any] = {"files": {"images": b"II*\0" + bytes(30_000_000)}}
    client.post(INSPECT, **sent)
    held = service.resident
    peak = 0
    for _ in range(4):
        client.post(INSPECT, **sent)
        peak = max(peak, service.resident)

    assert peak - held < 16_000_000
    assert [] == list(Path(gettempdir()).glob("medserve-*/*/000000"))
