"""An acknowledged job survives kill -9: a real service is killed in the middle, and the next one ends what it began."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.jobs import dying
from tests.serving import Service, serving, until

DERMOSCOPY = "/v1/workflows/dermoscopy"
LATER = {"Prefer": "respond-async"}
ENDED = {"done", "failed", "cancelled"}


@contextmanager
def gateway(environment: Mapping[str, str]) -> Iterator[tuple[Service, httpx.Client]]:
    """The service, on the demonstration model unless told otherwise, and a client of it."""
    with (
        serving(environment=environment) as service,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client,
    ):
        yield service, client


def scripted(folder: Path) -> dict[str, str]:
    """The environment of a service whose home is in `folder`, and whose model costs no time: jobs are what counts."""
    config = folder / "medserve.toml"
    config.write_text(f'[[models]]\nname = "script"\nengine = "scripted"\nreplies = {["Round."] * 500}\n')
    return {"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(folder / "home")}


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """A job once it has ended."""
    told: dict[str, Any] = {}
    for _ in range(10):
        told = client.get(f"/v1/jobs/{job}", params={"wait": 20}).raise_for_status().json()
        if told["state"] in ENDED:
            break
    return told


def lines(client: httpx.Client, batch: str) -> list[dict[str, Any]]:
    """The results of a batch by now."""
    told = client.get(f"/v1/batches/{batch}/results").raise_for_status()
    return [json.loads(line) for line in told.text.splitlines()]


def test_a_killed_service_ends_its_jobs_when_it_is_back(tmp_path: Path, dermoscopy: Path) -> None:
    """A study and a batch with one bad picture; what was done of the batch is not done again."""
    environment = {"MEDSERVE_HOME": str(tmp_path / "home"), "MEDSERVE_LIMITS__JOB_WORKERS": "1"}
    picture = dermoscopy.read_bytes()
    forms = [("images", picture), ("images", b"no picture"), *[("images", picture)] * 3]
    with gateway(environment) as (service, client):
        batch = client.post("/v1/batches", files=forms, data={"workflow": "dermoscopy"}).raise_for_status().json()["id"]
        study = client.post(DERMOSCOPY, files={"images": picture}, headers=LATER)
        assert 202 == study.status_code
        job = study.json()["id"]
        assert until(lambda: len(lines(client, batch)) >= 3, 60)
        before = lines(client, batch)
        service.stop(signal.SIGKILL)
    assert len(before) < 5
    assert list((tmp_path / "home" / "jobs").iterdir())

    with gateway(environment) as (_, client):
        assert "done" == ended(client, batch)["state"]
        assert "done" == ended(client, job)["state"]
        assert client.get(f"/v1/jobs/{job}/result").raise_for_status().json()["steps"]
        after = lines(client, batch)
        counts = client.get(f"/v1/batches/{batch}").json()["request_counts"]
    assert before == after[: len(before)]
    assert [str(n) for n in range(5)] == [line["custom_id"] for line in after]
    assert [200, 400, 200, 200, 200] == [line["response"]["status_code"] for line in after]
    assert {"completed": 4, "failed": 1, "total": 5} == counts
    assert [] == list((tmp_path / "home" / "jobs").iterdir())


def test_another_gateway_takes_over_what_a_killed_one_had(url: str, tmp_path: Path, dermoscopy: Path) -> None:
    """Two on one database and one home: at once, for the lock of the dead one is free, long before its lease ends."""
    environment = scripted(tmp_path) | {"MEDSERVE_DATABASE": url, "MEDSERVE_LIMITS__JOB_WORKERS": "1"}
    picture = dermoscopy.read_bytes()
    with gateway(environment) as (first, client), gateway(environment) as (_, other):
        batches = [
            client.post("/v1/batches", files=[("images", picture)] * 6, data={"workflow": "dermoscopy"}).json()["id"]
            for _ in range(2)
        ]
        assert until(lambda: all(lines(other, batch) for batch in batches), 60)
        first.stop(signal.SIGKILL)
        told = [ended(other, batch) for batch in batches]
        found = [lines(other, batch) for batch in batches]
    assert [("done", 6)] * 2 == [(each["state"], each["progress"]["done"]) for each in told]
    assert [[str(n) for n in range(6)]] * 2 == [[line["custom_id"] for line in each] for each in found]


def test_a_stopped_service_has_put_its_jobs_back(tmp_path: Path, dermoscopy: Path) -> None:
    """SIGTERM: the process is gone soon, and the next one goes on; stopping in order counts as no attempt."""
    environment = scripted(tmp_path)
    forms = [("images", dermoscopy.read_bytes())] * 12
    with gateway(environment) as (service, client):
        batch = client.post("/v1/batches", files=forms, data={"workflow": "dermoscopy"}).raise_for_status().json()["id"]
        assert until(lambda: len(lines(client, batch)) >= 1, 60)
        service.stop()
    with gateway(environment) as (_, client):
        told = ended(client, batch)
    assert ("done", 1) == (told["state"], told["attempts"])


def test_a_job_that_kills_its_process_does_so_three_times(url: str, tmp_path: Path) -> None:
    """Then it has failed, and says why; a service that starts again and again because of one picture serves nobody."""
    command = [sys.executable, "-m", dying.__name__, str(tmp_path / "home"), url, "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    told = [line.split() for line in done.stdout.splitlines()]
    assert [-signal.SIGKILL] * 3 + [0] == [int(words[1]) for words in told if words[0] == "ended"], done.stderr
    assert "failed" == [words[1] for words in told if words[0].startswith("job_")][-1]
