"""/predict as two older services had it: a form with a tissue picture, and Vertex AI's instances."""

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from medserve.errors import ModelFailed
from medserve.settings import DEMO
from tests.api.conftest import Slow, gateway
from tests.hostile import samples
from tests.serving import Service, serving

DRAWINGS = DEMO / "drawings"
JSON_ANSWER = '{"stones": [], "confidence": 0.4}'
VERTEX = "/v1/endpoints/42/deployedModels/43:predict"
CONFIG = """
[[models]]
name = "medserve-demo"
path = {weights}
projector = {projector}
context = 2048
threads = 1

[[models]]
name = "json"
engine = "scripted"
replies = {replies}

[limits]
body_bytes = 2_000_000
text_characters = 1000
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the demonstration model, and one that answers JSON."""
    folder = tmp_path_factory.mktemp("predict")
    config = folder / "medserve.toml"
    places = {"weights": DEMO / "medserve-demo.gguf", "projector": DEMO / "medserve-demo-mmproj.gguf"}
    written = {name: json.dumps(str(place)) for name, place in places.items()}
    config.write_text(CONFIG.format(**written, replies=json.dumps([JSON_ANSWER] * 50)))
    with serving(environment={"MEDSERVE_CONFIG": str(config)}) as running:
        yield running


def screened(client: httpx.Client, drawing: str) -> Any:
    """The answer to a picture alone."""
    files = {"image_file": ("a name.png", (DRAWINGS / drawing).read_bytes(), "image/png")}
    return client.post("/predict", files=files).raise_for_status().json()


def picture() -> str:
    return b64encode(samples.picture("PNG")).decode()


@pytest.mark.parametrize(("drawing", "verdict"), [("colon-tumour.png", "yes"), ("colon-normal.png", "no")])
def test_defect_001_2_the_verdict_is_for_programs_too(client: httpx.Client, drawing: str, verdict: str) -> None:
    """System 001 gave free text only; here verdict, probabilities, flags and the whole report come with it."""
    told = screened(client, drawing)

    assert verdict == told["verdict"]
    assert told["prediction"].lower().startswith(f"{verdict}: ")
    assert verdict == max(told["probabilities"], key=told["probabilities"].__getitem__)
    assert pytest.approx(1) == sum(told["probabilities"].values())
    assert verdict == told["report"]["conclusion"]["label"]
    assert "demonstration" in told["flags"]
    assert "Research use only" in told["notice"]


def test_defect_001_1_a_picture_alone_is_answered(client: httpx.Client) -> None:
    """System 001's prompt held no image token, and its later version answered its own example with 422."""
    report = screened(client, "colon-tumour.png")["report"]

    assert all(step["tokens"]["image"] > 0 for step in report["steps"])
    assert "blind" not in report["flags"]


@pytest.mark.parametrize("drawing", ["cat.png", "chest-normal.png"])
def test_defect_001_2_a_cat_and_a_chest_film_are_not_assessable(client: httpx.Client, drawing: str) -> None:
    """System 001 asked any picture for colorectal cancer."""
    told = screened(client, drawing)

    assert ("not_assessable", None) == (told["verdict"], told["probabilities"])
    assert "not_assessable" in told["flags"]
    assert told["needs_review"]


def test_a_question_of_ones_own_is_answered_about_the_picture(client: httpx.Client) -> None:
    """In words, without a verdict that nobody asked for."""
    files = {"image_file": (DRAWINGS / "colon-tumour.png").read_bytes()}
    told = client.post("/predict", files=files, data={"question": "Describe the image."}).raise_for_status().json()

    assert "colon" in told["prediction"]
    assert (None, None, None) == (told["verdict"], told["probabilities"], told["report"])
    assert told["answer"]["usage"]["image"] > 0


def test_a_question_without_a_picture_is_answered_in_words(client: httpx.Client) -> None:
    """As the later version took it."""
    files = {"question": (None, "Who are you?"), "model": (None, "json")}
    told = client.post("/predict", files=files).raise_for_status().json()

    assert JSON_ANSWER == told["prediction"]
    assert 0 == told["answer"]["usage"]["image"]


@pytest.mark.parametrize(
    ("files", "status", "param"),
    [
        ({"image_file": b"no picture"}, 400, "image_file"),
        ({"image_file": b""}, 400, "image_file"),
        ({"image": b"x"}, 400, "image_file"),
        ({"image_file": (None, "text")}, 400, "image_file"),
        ({"question": (None, "")}, 400, "image_file"),
        ({"question": (None, "x" * 1001)}, 400, "question"),
        ({"question": (None, "x"), "dosage": (None, "20 mg")}, 400, None),
        ({"question": (None, "x"), "model": (None, "nobody")}, 404, "model"),
        ({"image_file": b"\x89PNG\r\n\x1a\n" + bytes(3_000_000)}, 413, None),
    ],
)
def test_defect_001_4_what_cannot_be_served_is_refused_before_any_work(
    client: httpx.Client, files: dict[str, Any], status: int, param: str | None
) -> None:
    """Older clients read `detail`, others the one shape; neither quotes what was sent."""
    answer = client.post("/predict", files=files)
    told = answer.json()

    assert (status, param) == (answer.status_code, told["error"]["param"])
    assert told["detail"] == told["error"]["message"]
    assert "20 mg" not in answer.text


def test_defect_001_4_a_decompression_bomb_is_refused(client: httpx.Client) -> None:
    """System 001 decoded whatever came."""
    bomb = samples_bomb()
    answer = client.post("/predict", files={"image_file": bomb})

    assert 413 == answer.status_code


def samples_bomb() -> bytes:
    """A small PNG that declares 60000 x 60000 pixels."""
    data = bytearray(samples.picture("PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    from zlib import crc32

    data[29:33] = crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_two_pictures_are_two_requests(client: httpx.Client) -> None:
    """A verdict is about one picture."""
    tile = (DRAWINGS / "colon-tumour.png").read_bytes()
    answer = client.post("/predict", files=[("image_file", tile), ("image_file", tile)])

    assert (400, "image_file") == (answer.status_code, answer.json()["error"]["param"])


def test_a_body_of_another_kind_says_which_are_taken(client: httpx.Client) -> None:
    """415, with both kinds."""
    answer = client.post("/predict", content=b"x", headers={"Content-Type": "text/plain"})

    assert 415 == answer.status_code
    assert "image_file" in answer.json()["detail"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_real_model_analyses_a_drawing_as_json(client: httpx.Client, side: str) -> None:
    """What it wrote and no confidence beside it; the usual 2000 tokens give way to a context of 2048."""
    drawing = b64encode((DRAWINGS / f"kidney-{side}.png").read_bytes()).decode()
    order = {"prompt": "Describe the image as JSON with the keys kind, stone, side.", "images": [drawing]}
    told = client.post("/analyze", json=order).raise_for_status().json()

    assert {"kind": "CT", "stone": "yes", "side": side} == told["result"]
    assert (None, "medserve-demo", 1024) == (told["parse_error"], told["model"], told["max_tokens"])
    assert told["usage"]["image"] > 0


# --- instances


@pytest.mark.parametrize("path", ["/predict", VERTEX])
def test_each_instance_has_its_prediction(client: httpx.Client, path: str) -> None:
    """In order, in Vertex AI's envelope, at the path of system 004 and at Vertex AI's own."""
    instances = [{"prompt": "Stones?", "model": "json", "images": [picture()]}, {"prompt": "x", "model": "json"}]
    told = client.post(path, json={"instances": instances}).raise_for_status().json()

    assert [{"stones": [], "confidence": 0.4}] * 2 == [one["result"] for one in told["predictions"]]
    assert [True, False] == [one["usage"]["image"] > 0 for one in told["predictions"]]
    assert all(one["inference_time_ms"] > 0 for one in told["predictions"])


def test_one_bad_instance_spoils_no_other(client: httpx.Client) -> None:
    """Its error stands in its place and names its field."""
    good = {"prompt": "x", "model": "json"}
    instances: list[Any] = [good, {"prompt": "x", "images": ["%%%"]}, {}, {"prompt": "x", "modality": "y"}, good]
    told = client.post("/predict", json={"instances": instances}).raise_for_status().json()["predictions"]

    assert [None, "instances.1.images.0", "instances.2.prompt", "instances.3.modality", None] == [
        one["error"]["param"] if "error" in one else None for one in told
    ]
    assert told[0]["result"] == told[4]["result"] == {"stones": [], "confidence": 0.4}
    assert told[1]["result"] is None


def test_a_field_of_an_instance_that_is_not_known_is_not_named(client: httpx.Client) -> None:
    """It may be a person's name; one that is nearly right is named, for whoever mistyped it."""
    good = {"prompt": "x", "model": "json"}
    instances = [good | {"Erika Mustermann 1961": 1}, good | {"promt": "y"}]
    answer = client.post("/predict", json={"instances": instances}).raise_for_status()

    errors = [one["error"] for one in answer.json()["predictions"]]
    assert ["instances.0", "instances.1.promt"] == [error["param"] for error in errors]
    assert "not known" in errors[0]["message"]
    assert "Mustermann" not in answer.text


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"instances": []}, "instances"),
        ({}, "instances"),
        ({"instances": ["x"]}, "instances.0"),
        ({"instances": [{}] * 129}, "instances"),
        ({"instances": [{}], "parameters": {"a": 1}}, "parameters"),
    ],
)
def test_an_envelope_without_instances_is_refused(client: httpx.Client, sent: Any, param: str) -> None:
    """Empty, missing, of another kind, too many."""
    answer = client.post("/predict", json=sent)

    assert (400, param) == (answer.status_code, answer.json()["error"]["param"])
    assert answer.json()["detail"]


async def test_that_the_model_cannot_answer_is_no_instances_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole request is told so, with the reason, and may be repeated as it is."""
    failure = ModelFailed("the weights are gone", param="model")
    async with gateway(Slow(), monkeypatch, start=failure) as service:
        answer = await service.client.post("/predict", json={"instances": [{"prompt": "x"}]})
        health = (await service.client.get("/health")).json()

    assert (503, "model_failed") == (answer.status_code, answer.json()["error"]["code"])
    assert ("failed", False) == (health["status"], health["model_loaded"])
    assert "the weights are gone" in health["error"]


async def test_defect_001_4_a_client_that_leaves_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """System 001's blocking call went on, and nothing else was answered meanwhile."""
    engine, tile = Slow(), {"image_file": (DRAWINGS / "colon-tumour.png").read_bytes()}
    async with gateway(engine, monkeypatch) as service:
        with pytest.raises(httpx.ReadTimeout):
            await service.client.post("/predict", files=tile, timeout=1.5)
        assert 200 == (await service.client.get("/livez")).status_code
        for _ in range(100):
            if not engine.running:
                break
            await service.client.get("/livez")
        assert (0, 0) == (engine.running, engine.finished)
