"""The review page's routes: pictures of a catalogue, examined at once or as a job, with none of the page's defects."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from medserve.settings import DEMO
from tests.api.conftest import Slow, gateway
from tests.serving import Service, serving

DERMOSCOPY = Path(__file__).parents[1] / "data" / "dermoscopy"
PHOTOGRAPH = "ISIC_0000166.jpg"
LOOK = (
    "The shape is consistent with the picture. The colours are consistent with the picture. "
    "In addition, arborizing vessels are visible."
)
CLEAR = ["Irregular.", "yes", "dots and streaks", "brown, red", LOOK, "BCC"]
UNCLEAR = ["Hard to say.", "perhaps", "no dots or globules", "purple", "I'm sorry, I cannot assist with that.", "NONE"]
CONFIG = """
catalogue = {folder}
default_model = "clear"

[[models]]
name = "medserve-demo"
path = {weights}
projector = {projector}
context = 2048
threads = 1

[[models]]
name = "clear"
engine = "scripted"
replies = {clear}

[[models]]
name = "unclear"
engine = "scripted"
replies = {unclear}

[[models]]
name = "empty"
engine = "scripted"
replies = []
"""
CSV = f"""Image,Dx, Lesion attributes
{PHOTOGRAPH.removesuffix(".jpg")},mel, "network, veil"
{PHOTOGRAPH.removesuffix(".jpg")},nv, again
ISIC_9999999,nv, not here
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of a real photograph and a drawing, a CSV file that knows the first, and a secret beside it."""
    above = tmp_path_factory.mktemp("catalogue")
    folder = above / "pictures"
    folder.mkdir()
    shutil.copy(DERMOSCOPY / PHOTOGRAPH, folder)
    shutil.copy(DEMO / "drawings" / "lesion-mel.png", folder)
    (folder / "labels.csv").write_text(CSV)
    (above / "secret.png").write_bytes((DEMO / "drawings" / "cat.png").read_bytes())
    (folder / "link.png").symlink_to(above / "secret.png")
    return folder


def configured(folder: Path, home: Path) -> dict[str, str]:
    """The environment of a service with that catalogue, the demonstration model and three scripts."""
    config = home.with_suffix(".toml")
    places = {
        "folder": folder,
        "weights": DEMO / "medserve-demo.gguf",
        "projector": DEMO / "medserve-demo-mmproj.gguf",
    }
    written = {name: json.dumps(str(place)) for name, place in places.items()}
    config.write_text(CONFIG.format(**written, clear=json.dumps(CLEAR * 20), unclear=json.dumps(UNCLEAR * 20)))
    return {"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(home)}


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """One service for all tests that leave it running."""
    with serving(environment=configured(folder, folder.parent / "home")) as running:
        yield running


BARE = {"guard": False}
"""A script has as many answers as the protocol has questions; what the guard asks has tests of its own."""


def ordered(client: httpx.Client, filename: str = PHOTOGRAPH, **more: Any) -> str:
    """The number of a job."""
    order = {"filename": filename, "options": BARE, **more}
    answer = client.post("/api/analyze", json=order).raise_for_status().json()
    assert {"job_id"} == answer.keys()
    return str(answer["job_id"])


def ended(client: httpx.Client, job: str) -> Any:
    """How a job ended, asked for as the page did, but more often."""
    end = monotonic() + 60
    while (told := client.get(f"/api/status/{job}").raise_for_status().json())["status"] == "running":
        assert monotonic() < end
        sleep(0.05)
    return told


# --- pictures


def test_the_list_is_of_files_that_are_there(client: httpx.Client) -> None:
    """System 000 listed what its CSV file named, and its repository held none of those pictures."""
    assert [PHOTOGRAPH, "lesion-mel.png"] == client.get("/api/list-images").json()


def test_the_catalogue_tells_what_is_known_and_what_does_not_fit(client: httpx.Client) -> None:
    """Double rows are counted, and so are rows without a file."""
    told = client.get("/api/catalogue").raise_for_status().json()

    assert {"filename": PHOTOGRAPH, "gt_code": "MEL", "gt_attr": "network, veil"} == told["data"][0]
    assert ("UNK", "") == (told["data"][1]["gt_code"], told["data"][1]["gt_attr"])
    assert (3, 1, 1, 1) == tuple(told[name] for name in ("rows", "duplicates", "without_file", "without_row"))
    assert told["problem"] is None


def test_a_picture_is_served_as_a_picture_only(client: httpx.Client) -> None:
    """With its own media type, which a browser must believe."""
    answer = client.get(f"/images/{PHOTOGRAPH}")

    assert (DERMOSCOPY / PHOTOGRAPH).read_bytes() == answer.content
    assert ("image/jpeg", "nosniff") == (answer.headers["content-type"], answer.headers["x-content-type-options"])
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/images/../secret.png",
        "/images/..%2Fsecret.png",
        "/images/%2e%2e/secret.png",
        "/images/%2e%2e%2fsecret.png",
        "/images/..%5Csecret.png",
        "/images//etc/passwd",
        "/images/%2Fetc%2Fpasswd",
        "/images/link.png",
        "/images/labels.csv",
        f"/images/{PHOTOGRAPH}%00.png",
        "/images/%ff",
        "/images/",
    ],
)
def test_defect_000_11_no_path_leads_out_of_the_catalogue(service: Service, path: str) -> None:
    """System 000 opened whatever the address named; here it is sent as it stands, not tidied by the client."""
    head, secret = _raw(service, path)

    assert head.startswith(b"HTTP/1.1 404")
    assert not {b"\x89PNG", b"root:", b"Image,Dx"} & {secret[:4], secret[:5], secret[:8]}


def _raw(service: Service, path: str) -> tuple[bytes, bytes]:
    """The answer to a request whose path no client has touched."""
    import socket
    from urllib.parse import urlsplit

    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("filename", ["../secret.png", "/etc/passwd", "link.png", "labels.csv", "absent.jpg", "a\0b"])
@pytest.mark.parametrize("wait", ["true", "false"])
def test_defect_000_11_no_file_name_leads_out_of_the_catalogue(client: httpx.Client, filename: str, wait: str) -> None:
    """Refused before a job is made, and not quoted."""
    answer = client.post("/api/analyze", params={"wait": wait}, json={"filename": filename})

    assert (404, "picture_not_found") == (answer.status_code, answer.json()["error"]["code"])
    assert filename not in answer.text


def test_without_a_catalogue_the_routes_say_so() -> None:
    """With the setting that would give one."""
    with serving() as bare:
        answer = httpx.get(f"{bare.url}/api/list-images", trust_env=False)

    assert (404, "picture_not_found") == (answer.status_code, answer.json()["error"]["code"])
    assert "`catalogue`" in answer.json()["error"]["message"]


# --- examinations


def test_an_examination_comes_at_once_when_it_is_waited_for(client: httpx.Client) -> None:
    """As in the days of the published README; here with the whole report beside the page's names."""
    order = {"filename": PHOTOGRAPH, "options": BARE}
    told = client.post("/api/analyze", params={"wait": True}, json=order).raise_for_status().json()

    assert "BCC" == told["ai_code"]
    assert {
        "Shape": "irregular",
        "Pigment network": "yes",
        "Structures": "dots, streaks",
        "Colours": "brown, red",
    } == told["raw_obs"]
    assert ("MEL", "network, veil") == (told["gt_code"], told["gt_attr"])
    assert LOOK == told["adj_desc"]
    assert told["final_implication"].startswith("Dermoscopy report\n=====")
    assert 6 == len(told["report"]["steps"])


def test_an_examination_is_a_job_that_is_polled(client: httpx.Client) -> None:
    """Its number comes at once, twelve characters or more of it, and its result has the same fields."""
    job = ordered(client, "lesion-mel.png")
    told = ended(client, job)

    assert len(job) >= 12
    assert "done" == told["status"]
    assert ("BCC", "UNK", "") == tuple(told["result"][name] for name in ("ai_code", "gt_code", "gt_attr"))
    assert {"raw_obs", "adj_desc", "final_implication", "report"} <= told["result"].keys()


def test_a_real_model_examines_a_drawing(client: httpx.Client) -> None:
    """The demonstration model knows this one; it looked, nothing was sampled (defect 000-8), and it says what it is."""
    told = ended(client, ordered(client, "lesion-mel.png", model="medserve-demo", options={"signs": True}))
    report = told["result"]["report"]

    assert "MEL" == told["result"]["ai_code"]
    assert {0.0} == {step["temperature"] for step in report["steps"]}
    assert 7 == len(told["result"]["raw_obs"])
    assert report["tokens"]["image"] > 0
    assert {"demonstration"} <= set(report["flags"])


def test_defect_000_3_what_cannot_be_read_is_null_and_never_a_nevus(client: httpx.Client) -> None:
    """System 000 answered NV to a refusal, to nonsense and to nothing."""
    told = ended(client, ordered(client, model="unclear"))["result"]

    assert told["ai_code"] is None
    assert "invalid_code" in told["report"]["flags"]
    assert "none was concluded" in told["final_implication"] or "NEEDS REVIEW" in told["final_implication"]


def test_defect_000_4_a_denied_structure_is_not_seen(client: httpx.Client) -> None:
    """System 000 read "no dots or globules" as dots and globules, and an uncertain network as none."""
    observed = ended(client, ordered(client, model="unclear"))["result"]["raw_obs"]

    assert ("none", None, None) == (observed["Structures"], observed["Shape"], observed["Pigment network"])


def test_defect_000_6_colours_stay_what_they_were(client: httpx.Client) -> None:
    """System 000 turned red and purple into brown, and threw arborizing vessels away."""
    clear = ended(client, ordered(client))["result"]
    unclear = ended(client, ordered(client, model="unclear"))["result"]

    assert ("brown, red", "purple") == (clear["raw_obs"]["Colours"], unclear["raw_obs"]["Colours"])
    assert "arborizing" in clear["adj_desc"]


def test_defect_000_6_the_report_shows_every_observation_and_the_cleaned_description(client: httpx.Client) -> None:
    """System 000's report showed two of seven observations and the description as it was before cleaning."""
    told = ended(client, ordered(client, model="unclear"))["result"]

    assert all(name in told["final_implication"] for name in told["raw_obs"])
    assert "" == told["adj_desc"]
    assert "left out (refusal)" in told["final_implication"]


def test_a_job_that_fails_says_why(client: httpx.Client) -> None:
    """In words, with a code; the script has no answers."""
    told = ended(client, ordered(client, model="empty"))

    assert ("error", "engine_error") == (told["status"], told["code"])
    assert "script" in told["error"]


def test_an_unknown_job_is_not_found(client: httpx.Client) -> None:
    """In the page's shape and in the one shape."""
    answer = client.get("/api/status/0123456789ab")

    assert (404, "not_found") == (answer.status_code, answer.json()["status"])
    assert "job_not_found" == answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("order", "status", "param"),
    [
        ({}, 400, "filename"),
        ({"filename": ""}, 400, "filename"),
        ({"filename": PHOTOGRAPH, "options": {"sings": 1}}, 400, "options"),
        ({"filename": PHOTOGRAPH, "model": "nobody"}, 404, "model"),
        ({"filename": PHOTOGRAPH, "upload": True}, 400, "upload"),
    ],
)
def test_an_order_is_checked_before_it_is_taken(
    client: httpx.Client, order: dict[str, Any], status: int, param: str
) -> None:
    """What is wrong is told at once, not by a failed job."""
    answer = client.post("/api/analyze", json=order)

    assert (status, param) == (answer.status_code, answer.json()["error"]["param"].partition(".")[0])


def test_defect_000_11_nothing_is_written_beside_the_pictures(client: httpx.Client, folder: Path) -> None:
    """System 000 put prepared copies into its data folder."""
    ended(client, ordered(client))

    assert {PHOTOGRAPH, "lesion-mel.png", "labels.csv", "link.png"} == {path.name for path in folder.iterdir()}


def test_defect_000_11_jobs_outlive_a_restart(folder: Path, tmp_path: Path) -> None:
    """System 000 kept its jobs in a dictionary that was never cleaned and lost with the process."""
    environment = configured(folder, tmp_path / "home")
    with serving(environment=environment) as first, httpx.Client(base_url=first.url, trust_env=False) as client:
        job = ordered(client)
        told = ended(client, job)
    with serving(environment=environment) as second, httpx.Client(base_url=second.url, trust_env=False) as client:
        again = client.get(f"/api/status/{job}").raise_for_status().json()

    assert told == again


# --- while the model works


@pytest.fixture
def catalogued(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a gateway inside the test: the catalogue, and a home of its own."""
    monkeypatch.setenv("MEDSERVE_CATALOGUE", str(folder))
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("catalogued")
async def test_defect_000_11_an_examination_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """System 000 finished what nobody wanted any more, and everybody else waited for its lock."""
    engine = Slow()
    async with gateway(engine, monkeypatch) as service:
        order = {"filename": PHOTOGRAPH, "options": BARE}
        job = (await service.client.post("/api/analyze", json=order)).json()["job_id"]
        while not engine.running:
            await service.client.get("/livez")
        running = (await service.client.get(f"/api/status/{job}")).json()
        await service.client.post(f"/v1/jobs/{job}/cancel")
        ended = (await service.client.get(f"/api/status/{job}")).json()

        assert "running" == running["status"]
        assert ("error", "cancelled") == (ended["status"], ended["code"])
        assert (0, 0) == (engine.running, engine.finished)


@pytest.mark.usefixtures("catalogued")
async def test_who_waits_and_leaves_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synchronous form is nobody's when its client is gone."""
    engine = Slow()
    async with gateway(engine, monkeypatch) as service:
        order = {"filename": PHOTOGRAPH, "options": BARE}
        with pytest.raises(httpx.ReadTimeout):
            await service.client.post("/api/analyze?wait=true", json=order, timeout=2)
        for _ in range(100):
            if not engine.running:
                break
            await service.client.get("/livez")

        assert (0, 0) == (engine.running, engine.finished)
