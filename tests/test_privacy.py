"""A hundred words that name a patient go in by every way there is; none comes out in logs, metrics, traces and errors.

The service is a process of its own at its most talkative, and besides the demonstration model it has an engine that
quotes its prompts wherever it can.
"""

import base64
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import indiscreet
from tests.collector import Collector, collecting
from tests.imaging.phantoms import dicom
from tests.serving import Service, serving, until

CONFIG = """
log_level = "debug"
catalogue = "{catalogue}"

[[models]]
name = "demo"
path = "{demo}/medserve-demo.gguf"
projector = "{demo}/medserve-demo-mmproj.gguf"
context = 2048
threads = 1

[[models]]
name = "indiscreet"
engine = "indiscreet"
"""
DEMO = Path(__file__).parents[1] / "src" / "medserve" / "demo"
TEXT_TAGS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress"),
    *("InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
    *("PhysiciansOfRecord", "RequestingPhysician", "AccessionNumber", "StudyID", "StudyDescription"),
    *("SeriesDescription", "ProtocolName", "PatientComments", "ImageComments", "AdditionalPatientHistory"),
    *("StationName", "DeviceSerialNumber", "Occupation", "EthnicGroup", "MedicalRecordLocator", "CountryOfResidence"),
)


class Words:
    """Words that nothing else holds, each given out once: 15 letters and digits, so that every field takes them."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self) -> str:
        self.given.append(f"Pl{len(self.given):03d}Mustermann")
        return self.given[-1]

    def found_in(self, text: str | bytes) -> list[str]:
        """Those that stand in a text, whatever their case, as they are or in base64."""
        searched = text.encode() if isinstance(text, str) else text
        lowered = searched.lower()
        return [
            word
            for word in self.given
            if word.lower().encode() in lowered or any(form in searched for form in _in_base64(word.encode()))
        ]


def _in_base64(word: bytes) -> Iterator[bytes]:
    """What surely stands in the base64 of any text that holds the word, at each of the three places it may begin."""
    for before in range(3):
        written = base64.b64encode(b"\0" * before + word)
        yield written[4 if before else 0 : -4]


@dataclass
class Caller:
    """Sends requests and keeps every answer that is an error, its head and its body, and the statuses that came."""

    client: httpx.Client
    statuses: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request."""
        answer = self.client.request(method, path, **more)
        self.statuses.add(answer.status_code)
        failed_later = '"error"' in answer.text and answer.headers.get("content-type", "").startswith("text/event")
        if answer.status_code >= 400 or failed_later:
            self.errors.append(f"{answer.headers}\n{answer.text}")
        return answer

    def chat(self, said: Any, *, model: str = "demo", **more: Any) -> httpx.Response:
        """A chat whose user turn is `said`."""
        messages = [{"role": "user", "content": said}]
        return self.send(
            "POST", "/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 4, **more}
        )


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Where the service sends its traces."""
    with collecting() as collector:
        yield collector


def test_a_hundred_planted_words_are_found_nowhere(
    tmp_path: Path, collector: Collector, capfd: pytest.CaptureFixture[str], dermoscopy: Path
) -> None:
    """In tags, names, prompts, options, paths, queries, headers, broken bodies; served, refused and crashed."""
    planted = Words()
    catalogue = tmp_path / planted()
    catalogue.mkdir()
    named = f"{planted()}.jpg"
    (catalogue / named).write_bytes(dermoscopy.read_bytes())
    (catalogue / f"{planted()}.csv").write_text(f"Image,Dx,Lesion attributes\n{named},{planted()},{planted()}\n")
    config = tmp_path / "medserve.toml"
    config.write_text(CONFIG.format(demo=DEMO, catalogue=catalogue))
    environment = {
        "MEDSERVE_CONFIG": str(config),
        "MEDSERVE_HOME": str(tmp_path / "home"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # the framework would tell paths and errors itself, if it were let
        "PYTHONPATH": os.pathsep.join(
            filter(None, (indiscreet.install(tmp_path / "site"), os.environ.get("PYTHONPATH")))
        ),
    }
    with (
        serving(environment=environment) as service,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client,
    ):
        caller = Caller(client)
        in_files(caller, planted, dermoscopy)
        in_conversations(caller, planted)
        in_orders(caller, planted, dermoscopy)
        in_older_dialects(caller, planted, dermoscopy)
        in_the_catalogue(caller, planted, named)
        in_lines_and_headers(caller, planted)
        in_broken_bodies(caller, planted)
        in_broken_http(service, planted)
        all_jobs_ended(caller)
        in_failures(caller, planted, service)
        scraped = client.get("/metrics").text
        scraped += client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}).text
        service.stop()
    logs = service.log.decode()

    assert len(planted.given) >= 100
    assert {200, 400, 404, 500} <= caller.statuses
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    assert {"http.request", "library.spoke", "thread.failed", "process.unraisable", "request.failed"} <= {
        line["event"] for line in lines
    }
    assert 'route="/v1/chat/completions"' in scraped
    names = {span.name for span in collector.spans}
    assert {"POST /v1/chat/completions", "invoke_workflow dermoscopy", "chat demo", "job batch"} <= names
    assert {"/v1/traces"} == {path for path, _ in collector.bodies}

    places: dict[str, str | bytes] = {
        "the log": logs,
        "what was printed": "".join(capfd.readouterr()),
        "the metrics": scraped,
        "the traces": b"".join(body for _, body in collector.bodies),
        "the errors": "\n".join(caller.errors),
    }
    assert {} == {place: found for place, text in places.items() if (found := planted.found_in(text))}


def in_files(caller: Caller, planted: Words, photograph: Path) -> None:
    """Tags of DICOM files that can be read and that cannot, and names of files and of their fields."""
    tags: dict[str, Any] = {tag: planted() for tag in TEXT_TAGS}
    pixels = np.tile(np.arange(64, dtype=np.int16), (64, 1))
    whole = dicom(pixels, **tags)
    for data in (whole, whole[: len(whole) // 2], b"DICM" + whole[200:]):
        encoded = "data:application/dicom;base64," + base64.b64encode(data).decode()
        caller.chat([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": encoded}}])
        caller.send("POST", "/v1/workflows/dermoscopy", json={"images": [encoded], "model": "demo"})
        caller.send(
            "POST",
            "/v1/workflows/dermoscopy",
            files={"images": (f"{planted()}.dcm", data, f"application/{planted()}")},
            data={"model": "demo"},
        )
    picture = photograph.read_bytes()
    caller.send("POST", "/v1/workflows/dermoscopy", files={planted(): (f"{planted()}.jpg", picture)})
    caller.send("POST", "/v1/workflows/dermoscopy", files={"images": (planted(), picture)}, data={planted(): planted()})
    caller.send("POST", "/v1/workflows/dermoscopy", files={"images": (planted(), picture)}, data={"model": "demo"})
    caller.send("POST", "/v1/inspect", files={"images": (f"../{planted()}.jpg", picture)})
    caller.send("POST", "/v1/inspect", files={"images": (planted(), planted().encode())})


def in_conversations(caller: Caller, planted: Words) -> None:
    """Every text that a conversation can hold, in answers that come and in those that are refused."""
    caller.chat(planted(), stop=[planted()], user=planted(), metadata={planted(): planted()})
    caller.chat(planted(), stream=True)
    turns = [
        {"role": "system", "content": planted()},
        {"role": "user", "content": planted()},
        {"role": "assistant", "content": planted(), "reasoning_content": planted()},
        {"role": "user", "content": planted()},
    ]
    caller.send("POST", "/v1/chat/completions", json={"messages": turns, "max_tokens": 2})
    caller.send("POST", "/v1/chat/completions", json={"messages": turns[::-1]})
    schema = {"name": planted(), "schema": {"type": "object", "properties": {planted(): {"type": planted()}}}}
    caller.chat(planted(), response_format={"type": "json_schema", "json_schema": schema})
    caller.chat(planted(), response_format={"type": planted()})
    caller.chat(planted(), model=planted())
    caller.chat(planted(), seed=planted())
    caller.chat(planted(), temperature={planted(): planted()})
    caller.chat(planted(), metadata={planted(): 7})
    caller.chat(planted(), **{planted(): planted()})
    caller.chat(f"{planted()} " * 5000)  # more than the model's context
    caller.chat([{"type": planted(), "text": planted()}])
    for url in (
        f"https://{planted()}.example/{planted()}.png",
        f"dicomweb:{planted()}/studies/1.2.3",
        f"file:///{planted()}",
        f"data:image/{planted()};base64,{base64.b64encode(planted().encode()).decode()}",
        f"data:image/png;base64,{planted()}!",
        planted(),
    ):
        caller.chat([{"type": "image_url", "image_url": {"url": url}}])


def in_orders(caller: Caller, planted: Words, photograph: Path) -> None:
    """Options and models of workflows, done now and as jobs, and models that are to be added."""
    picture = base64.b64encode(photograph.read_bytes()).decode()
    orders: list[dict[str, Any]] = [
        {"options": {planted(): planted()}},
        {"options": {"signs": planted()}},
        {"options": {"controls": [planted()]}},
        {"model": planted()},
        {"seed": planted()},
        {planted(): planted()},
        {},
    ]
    for order in orders:
        whole = {"images": [picture], **order}
        caller.send("POST", "/v1/workflows/dermoscopy", json=whole)
        caller.send("POST", "/v1/workflows/dermoscopy", json=whole, headers={"Prefer": "respond-async"})
        batch = {"workflow": "dermoscopy", "metadata": {planted(): planted()}, **order}
        for items in ([{"custom_id": planted(), "images": [picture]}], [{"images": [planted()]}]):
            caller.send("POST", "/v1/batches", json={**batch, "items": items})
    caller.send("POST", "/v1/batches", json={"workflow": planted(), "items": [{"images": [planted()]}]})
    caller.send("POST", "/v1/batches", json={"input_file_id": planted(), "endpoint": planted()})
    of_requests(caller, planted)
    for background in (False, True):
        asked = {"input": planted(), "instructions": planted(), "metadata": {planted(): planted()}, "store": True}
        caller.send("POST", "/v1/responses", json={**asked, "background": background, "max_output_tokens": 2})
    caller.send("POST", "/v1/responses", json={"model": planted(), "input": planted(), "background": True})
    for model in (
        {"name": planted(), "path": f"/{planted()}.gguf"},
        {"name": f"{planted()}!", "engine": "scripted"},
        {"name": planted(), "engine": planted()},
        {"name": planted(), "engine": "openai", "url": f"ftp://{planted()}"},
        {"name": planted(), "engine": "scripted", "context": planted(), planted(): planted()},
    ):
        caller.send("POST", "/v1/models", json=model)


def of_requests(caller: Caller, planted: Words) -> None:
    """A batch file whose lines are answered, refused, broken, and answered by the engine with a bug."""
    lines = [
        {
            "custom_id": planted(),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": planted()}]},
        }
        for model in ("demo", planted(), "indiscreet")
    ]
    for content in ("\n".join(map(json.dumps, lines)), f"{json.dumps(lines[0])}\n{planted()}", planted()):
        sent = caller.send("POST", "/v1/files", files={"file": (planted(), content)}, data={"purpose": "batch"})
        if sent.status_code < 300:
            batch = {"input_file_id": sent.json()["id"], "endpoint": "/v1/chat/completions"}
            caller.send("POST", "/v1/batches", json=batch)


def in_older_dialects(caller: Caller, planted: Words, photograph: Path) -> None:
    """The routes that callers of older systems use."""
    picture = photograph.read_bytes()
    encoded = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    for path in ("/demo/v1/generate", "/demo/v1/chat", "/indiscreet/v1/generate"):
        caller.send("POST", path, json={"text": planted(), "system": planted(), "max_new_tokens": 2})
        caller.send("POST", path, json={"prompt": planted(), "image": planted(), planted(): planted()})
    for path in ("/analyze", "/generate"):
        served = caller.send("POST", path, json={"prompt": planted(), "max_tokens": 2, "model": "demo"})
        assert served.status_code == 200, served.text
        caller.send("POST", path, json={"prompt": planted(), "image": encoded, "instruction": planted()})
        caller.send("POST", path, json={"prompt": planted(), "model": planted()})
        caller.send("POST", path, json={"prompt": planted(), "model": "indiscreet"})
    shown = {"prompt": planted(), "images": [encoded], "model": "demo", "max_tokens": 2}
    assert caller.send("POST", "/analyze", json=shown).status_code == 200
    caller.send("POST", "/analyze", json={**shown, "modality": planted()})
    caller.send("POST", "/analyze", json={**shown, "images": [planted()]})
    for more in ({}, {"question": planted()}):
        form = {"files": {"image_file": (planted(), picture)}, "data": {"model": "demo", **more}}
        assert caller.send("POST", "/predict", **form).status_code == 200
    caller.send("POST", "/predict", files={planted(): (planted(), picture)}, data={"model": planted()})
    caller.send("POST", "/predict", json={"instances": [shown, {"prompt": planted(), planted(): planted()}]})
    caller.send("POST", "/predict", json={"instances": [planted()]})
    caller.send("GET", f"/api/status/{planted()}")


def in_the_catalogue(caller: Caller, planted: Words, named: str) -> None:
    """Names of pictures that lie there and of some that do not, and what is known of them."""
    for path in ("/api/list-images", "/api/catalogue", f"/images/{named}", f"/images/{planted()}.jpg"):
        caller.send("GET", path)
    for wait in ("?wait=true", ""):
        order = {"filename": named, "model": "demo"}
        assert caller.send("POST", f"/api/analyze{wait}", json=order).status_code == 200
        caller.send("POST", f"/api/analyze{wait}", json={**order, "options": {planted(): planted()}})
        caller.send("POST", f"/api/analyze{wait}", json={**order, "model": "indiscreet"})
        caller.send("POST", f"/api/analyze{wait}", json={"filename": f"{planted()}.jpg"})
        caller.send("POST", f"/api/analyze{wait}", json={"filename": named, planted(): planted()})


def all_jobs_ended(caller: Caller) -> None:
    """Wait for every job, and keep what is told of those that failed."""

    def jobs() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = caller.client.get("/v1/jobs", params={"limit": 100}).json()["data"]
        return listed

    assert until(lambda: all(job["state"] not in {"queued", "running"} for job in jobs()), 60)
    assert jobs()
    caller.errors += [json.dumps(job["error"]) for job in jobs() if job["error"]]


def in_lines_and_headers(caller: Caller, planted: Words) -> None:
    """What stands before a body: methods, paths, queries and headers."""
    for path in (
        "/{}",
        "/v1/models/{}",
        "/v1/workflows/{}",
        "/v1/jobs/{}",
        "/images/{}",
        "/{}/v1/health",
        "/docs/{}/..",
    ):
        caller.send("GET", path.format(planted()), params={planted(): planted()})
        caller.send("POST", path.format(planted()), json={})
    caller.send(planted(), "/v1/models")
    named = ("User-Agent", "X-Request-Id", "Referer", "Cookie", "X-Forwarded-For", "Authorization", "Accept", "Origin")
    for header in (*named, "tracestate", "baggage", "traceparent", "Idempotency-Key", "X-Api-Key", "Content-Type"):
        caller.send("GET", "/v1/models", headers={header: planted()})
    both = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": f"v={planted()}"}
    caller.send("POST", "/v1/chat/completions", headers=both, content=planted())
    caller.send("GET", "/v1/models", headers={"Host": f"{planted()}.example"})


def in_broken_bodies(caller: Caller, planted: Words) -> None:
    """Bodies that are not what they say."""
    for body in (f'{{"model": "{planted()}", ', f'{{"messages": {planted()}}}', f'"{planted()}"', f"[{planted()}]"):
        for path in ("/v1/chat/completions", "/v1/workflows/dermoscopy"):
            caller.send("POST", path, content=body, headers={"Content-Type": "application/json"})
    form = f"multipart/form-data; boundary={planted()}"
    caller.send("POST", "/v1/workflows/dermoscopy", content=planted(), headers={"Content-Type": form})
    caller.send("POST", "/v1/workflows/dermoscopy", json={"images": [planted(), f"data:{planted()},{planted()}"]})


def in_broken_http(service: Service, planted: Words) -> None:
    """What no HTTP parser takes, and an upgrade that nobody offers."""
    port = httpx.URL(service.url).port or 0
    head = f"GET /{planted()} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for text in (
        f"{planted()} {planted()}\r\n\r\n",
        f"GET /{planted()}\x01 HTTP/9.9\r\n\r\n",
        f"{head}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {planted()}\r\n\r\n",
        f"{head}Content-Length: {planted()}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(text.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


def in_failures(caller: Caller, planted: Words, service: Service) -> None:
    """Prompts whose answering fails: an engine with a bug, whole and in a stream, and a worker that is killed."""
    caller.chat(planted(), model="indiscreet", max_tokens=1)
    caller.chat(planted(), model="indiscreet", stream=True)
    caller.chat(planted(), model="indiscreet")
    messages = [{"role": "user", "content": f"Tell me of {planted()}."}]
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
    asked = {
        "model": "demo",
        "messages": messages,
        "max_tokens": 1500,
        "response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": endless}},
    }
    with caller.client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert any('"content"' in line for line in lines)
        for pid in service.workers:
            if b"medserve.workers.llama_cpp" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        rest = "".join(lines)
    assert '"error"' in rest, "the worker was not killed in the middle of its answer"
    caller.errors.append(rest)
    caller.send("POST", "/v1/chat/completions", json={**asked, "max_tokens": 2})
