"""/analyze and /generate in the shapes of the Cloud Run service: JSON that the model wrote, and none of its defects."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from medserve.engines.scripted import IMAGE_TOKENS
from tests.api.conftest import Slow, gateway
from tests.hostile import samples
from tests.imaging import phantoms
from tests.serving import Service, serving

STONES = {"stones": [{"size_mm": 4, "hounsfield_units": 850}], "confidence": 0.35, "note": "x"}
SAID = {
    "prefaced": f"Here is the result: {json.dumps(STONES)}",
    "trailing": '{"stones":[],"confidence":0.9} This is not a diagnosis.',
    "unclosed": '```json\n{"stones":[],"confidence":0.2}',
    "fenced": '```\n{"stones":[]}\n```',
    "thinking": '<unused94>thought\n{"stones":[1],"confidence":1}<unused95>{"stones":[]}',
    "list": '[{"size_mm":4}]',
    "cut": '{"stones":[{"size_mm":4,"hounsfield_units":850},{"size_mm":6.',
    "prose": "Both kidneys are free of stones.",
    "several": '{"a":1} or {"a":2}',
}
MODELS = """
default_model = "prefaced"

[limits]
image_bytes = 1_000_000
text_characters = 50_000
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model for every way in which an answer may be written."""
    folder = tmp_path_factory.mktemp("analyze")
    config = folder / "medserve.toml"
    models = [
        f'[[models]]\nname = "{name}"\nengine = "scripted"\nreplies = {json.dumps([reply] * 40)}'
        for name, reply in SAID.items()
    ]
    config.write_text("\n".join([MODELS, *models]))
    with serving(environment={"MEDSERVE_CONFIG": str(config)}) as running:
        yield running


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def analyzed(client: httpx.Client, model: str = "prefaced", **more: Any) -> Any:
    """The answer of /analyze."""
    order = {"prompt": "Which stones are there? Answer as JSON.", "model": model, **more}
    return client.post("/analyze", json=order).raise_for_status().json()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("prefaced", STONES),
        ("trailing", {"stones": [], "confidence": 0.9}),
        ("unclosed", {"stones": [], "confidence": 0.2}),
        ("fenced", {"stones": []}),
        ("thinking", {"stones": []}),
        ("list", [{"size_mm": 4}]),
    ],
)
def test_defect_004_1_the_result_is_what_the_model_wrote(client: httpx.Client, model: str, expected: Any) -> None:
    """Every example whose fields system 004 lost, and to which it added a confidence of 0.8."""
    told = analyzed(client, model)

    assert expected == told["result"]
    assert (None, None, []) == (told["parse_error"], told["recovered"], told["missing"])
    assert told["inference_time_ms"] > 0


def test_thinking_is_told_apart(client: httpx.Client) -> None:
    """It stands in a field of its own and nowhere else."""
    told = analyzed(client, "thinking")

    assert '{"stones":[]}' == told["raw_output"]
    assert '"confidence":1' in told["thinking"]


def test_an_answer_that_breaks_off_is_told_apart_into_whole_and_missing(client: httpx.Client) -> None:
    """The result has the shape that callers know for what could not be read."""
    told = analyzed(client, "cut")

    assert {"raw_output": SAID["cut"], "parse_error": "the JSON is cut short"} == told["result"]
    assert {"stones": [{"size_mm": 4, "hounsfield_units": 850}]} == told["recovered"]
    assert ["/stones/1/size_mm"] == told["missing"]


@pytest.mark.parametrize("model", ["prose", "several"])
def test_defect_004_5_without_json_nothing_is_put_in_its_place(client: httpx.Client, model: str) -> None:
    """System 004's callers were told of a kidney stone when there was none."""
    told = analyzed(client, model)

    assert {"raw_output", "parse_error"} == told["result"].keys()
    assert (SAID[model], None) == (told["raw_output"], told["recovered"])
    assert told["parse_error"]


def test_an_answer_says_where_it_comes_from(client: httpx.Client) -> None:
    """Who answered, how it ended, how many tokens, and the notice."""
    told = analyzed(client, images=[base64(samples.picture("PNG"))])

    assert ("prefaced", "stop") == (told["model"], told["finish_reason"])
    assert IMAGE_TOKENS == told["usage"]["image"]
    assert "Research use only" in told["notice"]


def test_defect_004_2_a_ct_is_shown_slice_by_slice_through_its_windows(client: httpx.Client) -> None:
    """System 004 ignored the modality and stretched every slice's own range; here a series comes with its labels."""
    series = phantoms.series(phantoms.abdomen())
    zipped = samples.zipped({f"IM{n:03}": data for n, data in enumerate(series)})
    told = [analyzed(client, images=[base64(zipped)]), analyzed(client, images=[base64(data) for data in series])]

    words = len(["Which", "stones", "are", "there?", "Answer", "as", "JSON."])
    for one in told:
        assert 12 * IMAGE_TOKENS == one["usage"]["image"]
        assert 12 * IMAGE_TOKENS + 12 * len(["SLICE", "1"]) + words == one["usage"]["prompt"]
        assert not {"wrong_modality", "modality_stated"} & {concern["name"] for concern in one["concerns"]}


def test_defect_004_8_the_stated_modality_counts(client: httpx.Client) -> None:
    """A file of another modality is flagged; a plain picture is taken, and that nobody can check it is told."""
    ct, picture = base64(samples.dicom()), base64(samples.picture("PNG"))

    def concerns(**order: Any) -> set[str]:
        return {concern["name"] for concern in analyzed(client, **order)["concerns"]}

    assert "wrong_modality" in concerns(images=[ct], modality="MR")
    assert "wrong_modality" not in concerns(images=[ct], modality="ct") | concerns(images=[ct])
    assert {"modality_stated", "not_hounsfield"} <= concerns(images=[picture], modality="CT")
    assert {"modality_stated"} == concerns(images=[picture], modality="dermoscopy")
    assert set() == concerns()


def test_plain_slices_of_a_ct_get_their_labels(client: httpx.Client) -> None:
    """As the model was trained to see them; photographs get none."""
    slices = [base64(samples.picture("PNG")), base64(samples.picture("BMP"))]
    ct, photographs = (analyzed(client, images=slices, modality=made) for made in ("CT", "XC"))

    assert 2 * len(["SLICE", "1"]) == ct["usage"]["prompt"] - photographs["usage"]["prompt"]


@pytest.mark.parametrize(
    ("order", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": " "}, 400, "prompt"),
        ({"prompt": "x" * 50_001}, 400, "prompt"),
        ({"prompt": "a\0b"}, 400, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "x", "max_tokens": 8193}, 400, "max_tokens"),
        ({"prompt": "x", "max_tokens": "9"}, 400, "max_tokens"),
        ({"prompt": "x", "modality": "tarot"}, 400, "modality"),
        ({"prompt": "x", "images": ["%%%"]}, 400, "images.0"),
        ({"prompt": "x", "images": ["A" * 2_000_000]}, 413, "images.0"),
        ({"prompt": "x", "images": ["http://127.0.0.1/a.png"]}, 400, "images.0"),
        ({"prompt": "x", "images": ["/etc/passwd"]}, 400, "images.0"),
        ({"prompt": "x", "confidence": 1}, 400, None),
        ({"prompt": "x", "model": "nobody"}, 404, "model"),
    ],
)
def test_defect_004_8_what_cannot_be_served_is_refused_by_its_field(
    client: httpx.Client, order: dict[str, Any], status: int, param: str
) -> None:
    """System 004 answered 500 with the exception's words; here `detail` is a sentence, beside the one shape."""
    answer = client.post("/analyze", json=order)
    told = answer.json()

    assert (status, param) == (answer.status_code, told["error"]["param"])
    assert told["detail"] == told["error"]["message"]


def test_defect_004_8_pictures_are_counted(client: httpx.Client) -> None:
    """System 004 had no limit on them."""
    answer = client.post("/analyze", json={"prompt": "x", "images": [base64(samples.picture("PNG"))] * 129})

    assert answer.status_code in (400, 413)


@pytest.mark.parametrize(
    ("sent", "status"),
    [({"content": b"{"}, 415), ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400)],
)
def test_a_body_that_is_no_json_is_refused(client: httpx.Client, sent: dict[str, Any], status: int) -> None:
    """With `detail` as well."""
    answer = client.post("/analyze", **sent)

    assert status == answer.status_code
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_text_is_generated(client: httpx.Client) -> None:
    """The words without the thinking."""
    told = client.post("/generate", json={"prompt": "Tell me.", "model": "thinking"}).raise_for_status().json()

    assert '{"stones":[]}' == told["text"]
    assert told["inference_time_ms"] > 0


def test_an_answer_that_max_tokens_cut_off_says_so(client: httpx.Client) -> None:
    """By its finish reason and a flag."""
    told = client.post("/generate", json={"prompt": "x", "model": "prose", "max_tokens": 2}).raise_for_status().json()

    assert ("length", ["truncated"]) == (told["finish_reason"], told["flags"])


def test_generate_takes_no_picture(client: httpx.Client, dermoscopy: Path) -> None:
    """Refused rather than ignored."""
    answer = client.post("/generate", json={"prompt": "x", "images": [base64(dermoscopy.read_bytes())]})

    assert (400, "images") == (answer.status_code, answer.json()["error"]["param"])


@pytest.mark.parametrize("path", ["/analyze", "/generate"])
async def test_defect_004_6_the_service_answers_while_the_model_works(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System 004 generated inside the event loop; here health is told meanwhile, and a client that goes stops it."""
    engine = Slow()
    async with gateway(engine, monkeypatch) as service:
        asked = asyncio.create_task(service.client.post(path, json={"prompt": "hello"}))
        while not engine.running:
            await service.client.get("/livez")
        health = await service.client.get("/health")
        waited = not asked.done()
        asked.cancel()
        for _ in range(100):
            if not engine.running:
                break
            await asyncio.sleep(0.02)

        assert (200, True) == (health.status_code, waited)
        assert (0, 0) == (engine.running, engine.finished)


async def test_defect_004_6_health_can_say_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """System 004's service was not up before its model was; a request meanwhile is told to come again."""
    async with gateway(Slow(), monkeypatch, start=5.0) as service:
        answer = await service.client.post("/generate", json={"prompt": "hello"})
        health = (await service.client.get("/health")).json()

    assert (503, "model_loading") == (answer.status_code, answer.json()["error"]["code"])
    assert answer.headers["Retry-After"]
    assert answer.json()["detail"]
    assert ("loading", False) == (health["status"], health["model_loaded"])
