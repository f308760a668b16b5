"""Batches over HTTP: many studies or many requests, a result or an error for each, as OpenAI's own client has it."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import Service

BATCHES = "/v1/batches"
ASKED = {"messages": [{"role": "user", "content": "What shape?"}]}


@pytest.fixture
def picture(dermoscopy: Path) -> bytes:
    return dermoscopy.read_bytes()


@pytest.fixture
def speaker(service: Service) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, unchanged."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def done(client: httpx.Client, batch: str) -> dict[str, Any]:
    """A batch once it has ended."""
    client.get(f"/v1/jobs/{batch}", params={"wait": 30}).raise_for_status()
    told: dict[str, Any] = client.get(f"{BATCHES}/{batch}").raise_for_status().json()
    return told


def results(client: httpx.Client, batch: str) -> list[dict[str, Any]]:
    answer = client.get(f"{BATCHES}/{batch}/results").raise_for_status()
    assert "application/jsonl" == answer.headers["content-type"]
    return [json.loads(line) for line in answer.text.splitlines()]


def lines(*requests: dict[str, Any]) -> bytes:
    """A batch file of requests, named r0, r1, ..."""
    whole = [
        {"custom_id": f"r{place}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for place, body in enumerate(requests)
    ]
    return "\n".join(map(json.dumps, whole)).encode()


def test_one_bad_picture_spoils_no_batch(client: httpx.Client, picture: bytes) -> None:
    """Each study has its report or its own error in OpenAI's shape, in the order in which they came."""
    sent = {"workflow": "dermoscopy", "custom_ids": '["a", "b", "c"]', "metadata": '{"ward": "7"}'}
    files = [("images", ("Mustermann.jpg", data)) for data in (picture, b"no picture", picture)]
    made = client.post(BATCHES, files=files, data=sent).raise_for_status().json()
    ended = done(client, made["id"])
    found = results(client, made["id"])

    assert ("batch", "/v1/workflows/dermoscopy", {"ward": "7"}) == (
        ended["object"],
        ended["endpoint"],
        ended["metadata"],
    )
    assert ("completed", {"completed": 2, "failed": 1, "total": 3}) == (ended["status"], ended["request_counts"])
    assert ["a", "b", "c"] == [line["custom_id"] for line in found]
    assert [200, 400, 200] == [line["response"]["status_code"] for line in found]
    assert "Dermoscopy report" == found[0]["response"]["body"]["title"]
    assert "image_unreadable" == found[1]["response"]["body"]["error"]["code"]
    assert "Mustermann" not in json.dumps(found)


def test_a_batch_in_json_has_studies_of_its_own(client: httpx.Client, picture: bytes) -> None:
    """Several pictures are one study there; without a name an item is called by its place."""
    encoded = b64encode(picture).decode()
    items = [{"images": [encoded]}, {"images": [encoded, encoded], "custom_id": "two"}]
    made = client.post(BATCHES, json={"workflow": "dermoscopy", "items": items, "parallel": 2}).raise_for_status()
    ended = done(client, made.json()["id"])
    found = results(client, made.json()["id"])

    assert ["0", "two"] == [line["custom_id"] for line in found]
    assert [200, 400] == [line["response"]["status_code"] for line in found]
    assert "images" == found[1]["response"]["body"]["error"]["param"]
    assert {"completed": 1, "failed": 1, "total": 2} == ended["request_counts"]


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"json": {"workflow": "dermoscopy", "items": []}}, "items"),
        ({"json": {"workflow": "tarot", "items": [{"images": ["AAAA"]}]}}, "workflow"),
        ({"json": {"workflow": "dermoscopy", "items": [{"images": ["no base64!"]}]}}, "items.0.images.0"),
        ({"json": {"workflow": "dermoscopy", "items": [{"images": ["AAAA"], "custom_id": "a"}] * 2}}, "custom_ids"),
        ({"json": {"workflow": "dermoscopy", "paralell": 2, "items": [{"images": ["AAAA"]}]}}, "paralell"),
        ({"json": {"input_file_id": "file-0", "endpoint": "/v1/embeddings"}}, "endpoint"),
        ({"json": {"input_file_id": "file-0", "endpoint": "/v1/chat/completions"}}, "id"),
        ({"files": {"images": b"x"}, "data": {"workflow": "dermoscopy", "custom_ids": '["a", "b"]'}}, "custom_ids"),
        ({"files": {"images": b"x"}, "data": {"workflow": "dermoscopy", "options": "[]"}}, "options"),
        ({"files": {"pictures": b"x"}, "data": {"workflow": "dermoscopy"}}, "images"),
    ],
)
def test_a_batch_that_cannot_be_taken_names_its_field(client: httpx.Client, sent: dict[str, Any], param: str) -> None:
    """Before anything is acknowledged."""
    answer = client.post(BATCHES, **sent)

    assert answer.status_code in {400, 404}, answer.text
    assert param == answer.json()["error"]["param"]


def test_openais_client_makes_a_batch_and_reads_its_files(speaker: openai.OpenAI, client: httpx.Client) -> None:
    """Upload, create, retrieve, output and error file, list, delete: as its documentation shows it."""
    file = speaker.files.create(file=("x.jsonl", lines(ASKED, {**ASKED, "n": 99}, ASKED)), purpose="batch")
    made = speaker.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"study": "1"},
    )
    done(client, made.id)
    ended = speaker.batches.retrieve(made.id)
    assert ended.output_file_id
    assert ended.error_file_id
    answered, refused = (
        [json.loads(line) for line in speaker.files.content(each).text.splitlines()]
        for each in (ended.output_file_id, ended.error_file_id)
    )
    output = speaker.files.retrieve(ended.output_file_id)

    assert ("completed", {"study": "1"}) == (ended.status, ended.metadata)
    assert ended.request_counts is not None
    assert (2, 1, 3) == (
        ended.request_counts.completed,
        ended.request_counts.failed,
        ended.request_counts.total,
    )
    assert ["r0", "r2"] == [line["custom_id"] for line in answered]
    assert ["Round."] * 2 == [line["response"]["body"]["choices"][0]["message"]["content"] for line in answered]
    assert [("r1", 400, "n")] == [
        (line["custom_id"], line["response"]["status_code"], line["response"]["body"]["error"]["param"])
        for line in refused
    ]
    assert len(speaker.files.content(ended.output_file_id).content) == output.bytes
    assert made.id == speaker.batches.list(limit=1).data[0].id
    assert speaker.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        speaker.files.content(file.id)


def test_a_streamed_request_is_an_item_that_is_refused(speaker: openai.OpenAI, client: httpx.Client) -> None:
    """Refused, not ignored."""
    file = speaker.files.create(file=("x.jsonl", lines({**ASKED, "stream": True})), purpose="batch")
    made = speaker.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done(client, made.id)

    assert "stream" == results(client, made.id)[0]["response"]["body"]["error"]["param"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no request"),
        (b"{", "line 1"),
        (lines(ASKED) + b"\n" + lines(ASKED), "line 2: custom_id"),
        (lines(ASKED).replace(b"/chat/completions", b"/embeddings"), "line 1: url"),
        (b"\n\n" + json.dumps({"custom_id": "a"}).encode(), "line 1: method is required"),
    ],
)
def test_a_batch_file_that_cannot_be_read_names_its_line(speaker: openai.OpenAI, content: bytes, words: str) -> None:
    """At once, and not after hours."""
    file = speaker.files.create(file=("x.jsonl", content), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        speaker.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert "input_file_id" == refused.value.param


def test_a_file_that_is_for_something_else_is_refused(client: httpx.Client) -> None:
    """Only batches are fed from files here."""
    answer = client.post("/v1/files", files={"file": b"{}"}, data={"purpose": "fine-tune"})
    nothing = client.post("/v1/files", files={"image": b"{}"}, data={"purpose": "batch"})

    assert (400, "purpose") == (answer.status_code, answer.json()["error"]["param"])
    assert (400, "file") == (nothing.status_code, nothing.json()["error"]["param"])


def test_a_job_that_is_no_batch_is_none(client: httpx.Client, picture: bytes) -> None:
    """Batches are jobs, and not the other way round."""
    headers = {"Prefer": "respond-async"}
    job = client.post("/v1/workflows/dermoscopy", files={"images": picture}, headers=headers).json()["id"]

    assert 404 == client.get(f"{BATCHES}/{job}").status_code
    assert 404 == client.get(f"/v1/files/output-{job.removeprefix('job_')}").status_code
