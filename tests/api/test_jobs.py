"""Jobs over HTTP: ordered by a header, looked at, waited for, cancelled, and nobody else's business."""

import asyncio
from base64 import b64encode
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from medserve.settings import Limits
from tests.api import conftest
from tests.api.conftest import Slow, gateway
from tests.serving import Service

DERMOSCOPY = "/v1/workflows/dermoscopy"
LATER = {"Prefer": "wait=5, respond-async"}


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home for a gateway inside the test."""
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def order(client: httpx.Client, **sent: Any) -> dict[str, Any]:
    """A study that is taken as a job."""
    answer = client.post(DERMOSCOPY, headers=LATER, **sent)
    assert 202 == answer.status_code, answer.text
    told: dict[str, Any] = answer.json()
    assert f"/v1/jobs/{told['id']}" == answer.headers["Location"]
    assert "respond-async" == answer.headers["Preference-Applied"]
    return told


def test_a_workflow_as_a_job_brings_the_report(client: httpx.Client, dermoscopy: Path) -> None:
    """The same as at once, whether the picture came as a file or in JSON."""
    picture = dermoscopy.read_bytes()
    jobs = [
        order(client, files={"images": picture}, data={"options": '{"signs": true}'}),
        order(client, json={"images": [b64encode(picture).decode()], "options": {"signs": True}}),
    ]
    reports = []
    for job in jobs:
        ended = client.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).raise_for_status().json()
        assert ("done", "dermoscopy", "script") == (ended["state"], ended["workflow"], ended["model"])
        assert ended["progress"]["done"] == ended["progress"]["total"]
        reports.append(client.get(f"/v1/jobs/{job['id']}/result").raise_for_status().json())
    at_once = client.post(DERMOSCOPY, files={"images": picture}, data={"options": '{"signs": true}'}).json()

    assert {at_once["study"]["sha256"]} == {report["study"]["sha256"] for report in reports}
    assert {len(at_once["steps"])} == {len(report["steps"]) for report in reports}
    assert {True} == {report["provenance"]["options"]["signs"] for report in reports}


def test_what_can_be_refused_at_once_is(client: httpx.Client, dermoscopy: Path) -> None:
    """A job that cannot succeed is not acknowledged."""
    picture = {"images": dermoscopy.read_bytes()}
    refused = [
        client.post("/v1/workflows/tarot", headers=LATER, files=picture),
        client.post(DERMOSCOPY, headers=LATER, files=picture, data={"model": "nobody"}),
        client.post(DERMOSCOPY, headers=LATER, files=picture, data={"options": '{"zodiac": 1}'}),
        client.post(DERMOSCOPY, headers=LATER, json={"images": ["no base64!"]}),
        client.post(DERMOSCOPY, headers=LATER, json={"images": ["https://example.org/a.png"]}),
    ]
    told = [(answer.status_code, answer.json()["error"]["param"].split(".zodiac")[0]) for answer in refused]

    assert [
        (404, "workflow"),
        (404, "model"),
        (400, "options"),
        (400, "images.0"),
        (400, "images.0"),
    ] == told


def test_a_job_that_fails_says_why_and_has_no_result(client: httpx.Client) -> None:
    """With the code and the words that the request itself would have got."""
    job = order(client, files={"images": b"no picture"})
    ended = client.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
    result = client.get(f"/v1/jobs/{job['id']}/result")

    assert ("failed", "image_unreadable") == (ended["state"], ended["error"]["code"])
    assert (409, "job_unfinished") == (result.status_code, result.json()["error"]["code"])
    assert "image_unreadable" in result.json()["error"]["message"]


@pytest.mark.parametrize("identifier", ["job_0", "job_" + "0" * 32, "%00", "job_" + "0" * 31 + "%0A"])
def test_a_job_that_does_not_exist_is_not_found(client: httpx.Client, identifier: str) -> None:
    """On every route, with a code of its own."""
    answers = [
        client.get(f"/v1/jobs/{identifier}"),
        client.get(f"/v1/jobs/{identifier}/result"),
        client.post(f"/v1/jobs/{identifier}/cancel"),
        client.delete(f"/v1/jobs/{identifier}"),
        client.get(f"/v1/batches/{identifier}"),
        client.get(f"/v1/batches/{identifier}/results"),
    ]
    assert {(404, "job_not_found")} == {(each.status_code, each.json()["error"]["code"]) for each in answers}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/batches", "/v1/files"])
@pytest.mark.parametrize("after", ["x", "job_" + "0" * 32, "file-" + "0" * 32])
def test_a_list_that_cannot_go_on_names_the_field(client: httpx.Client, path: str, after: str) -> None:
    """There is no `id` in such a request."""
    answer = client.get(path, params={"after": after})

    assert (404, "after") == (answer.status_code, answer.json()["error"]["param"])


def test_jobs_are_listed_and_deleted(client: httpx.Client, dermoscopy: Path) -> None:
    """Newest first, in pages; who deletes a job deletes its result."""
    made = [order(client, files={"images": dermoscopy.read_bytes()})["id"] for _ in range(2)]
    for job in made:
        client.get(f"/v1/jobs/{job}", params={"wait": 20})
    first = client.get("/v1/jobs", params={"limit": 1}).raise_for_status().json()
    rest = client.get("/v1/jobs", params={"after": first["data"][0]["id"], "kind": "workflow"}).json()

    assert (made[1], True) == (first["data"][0]["id"], first["has_more"])
    assert made[0] == rest["data"][0]["id"]
    assert client.delete(f"/v1/jobs/{made[0]}").raise_for_status().json()["deleted"]
    assert 404 == client.get(f"/v1/jobs/{made[0]}/result").status_code


def test_waiting_is_bounded(client: httpx.Client) -> None:
    """A request does not last for ever."""
    answer = client.get("/v1/jobs/job_" + "0" * 32, params={"wait": 31})

    assert (400, "wait") == (answer.status_code, answer.json()["error"]["param"])


def test_no_word_of_an_order_reaches_the_log_or_the_database(
    client: httpx.Client, service: Service, dermoscopy: Path
) -> None:
    """Names of files are kept nowhere."""
    job = order(client, files={"images": ("Mustermann_Erika.jpg", dermoscopy.read_bytes())})
    client.get(f"/v1/jobs/{job['id']}", params={"wait": 20})

    assert job["id"].encode() in service.log
    assert b"Mustermann" not in service.log


@pytest.mark.anyio
async def test_a_cancelled_job_stops_the_generation_and_frees_the_slot(
    monkeypatch: pytest.MonkeyPatch, own_home: Path, dermoscopy: Path
) -> None:
    """Within moments, and its picture is gone."""
    async with gateway(Slow(pieces=100_000), monkeypatch) as running:
        told = await running.client.post(DERMOSCOPY, files={"images": dermoscopy.read_bytes()}, headers=LATER)
        job = told.json()["id"]
        await _until(lambda: running.engine.running == 1)
        assert 409 == (await running.client.get(f"/v1/jobs/{job}/result")).status_code
        await asyncio.sleep(0.2)
        seen = (await running.client.get(f"/v1/jobs/{job}")).json()
        assert "running" == seen["state"]
        assert seen["progress"]["step"]
        began = monotonic()
        ended = (await running.client.post(f"/v1/jobs/{job}/cancel")).json()
        assert monotonic() - began < 2
        assert ("cancelled", 0, 0) == (ended["state"], running.engine.running, running.engine.finished)
        assert [] == list((own_home / "jobs").iterdir())


@pytest.mark.anyio
async def test_a_full_queue_says_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch, own_home: Path, dermoscopy: Path
) -> None:
    """429 and Retry-After, and what was acknowledged stays."""
    monkeypatch.setattr(conftest, "Limits", lambda **given: Limits(jobs=1, job_workers=1, **given))
    async with gateway(Slow(pieces=100_000), monkeypatch) as running:
        picture = dermoscopy.read_bytes()
        await running.client.post(DERMOSCOPY, files={"images": picture}, headers=LATER)
        await _until(lambda: running.engine.running == 1)
        answers = [await running.client.post(DERMOSCOPY, files={"images": picture}, headers=LATER) for _ in range(2)]
        listed = (await running.client.get("/v1/jobs")).json()["data"]
    assert [202, 429] == [answer.status_code for answer in answers]
    assert "jobs_full" == answers[1].json()["error"]["code"]
    assert int(answers[1].headers["Retry-After"]) >= 1
    assert ["queued", "running"] == [job["state"] for job in listed]


@pytest.mark.anyio
async def test_a_job_waits_for_a_model_that_is_loading(
    monkeypatch: pytest.MonkeyPatch, own_home: Path, dermoscopy: Path
) -> None:
    """Longer than any request would be held."""
    async with gateway(Slow(pieces=1), monkeypatch, start=1.0) as running:
        told = await running.client.post(DERMOSCOPY, files={"images": dermoscopy.read_bytes()}, headers=LATER)
        assert 202 == told.status_code
        ended = await running.client.get(f"/v1/jobs/{told.json()['id']}", params={"wait": 20})
    assert "done" == ended.json()["state"]


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.01)
