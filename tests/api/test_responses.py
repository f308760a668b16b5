"""The Responses API where a real model would not show it: thinking, failures in the middle, and what is kept."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from medserve import keys
from medserve.api import create_app, later
from medserve.errors import ContextOverflow, EngineTimeout, MedserveError, ModelBusy, WorkerCrashed
from medserve.keys import Scope
from medserve.settings import ModelSpec, Settings
from tests.api.conftest import Slow, gateway, settled
from tests.imaging.phantoms import abdomen, nifti
from tests.serving import serving, until

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ASKED: dict[str, Any] = {"input": "hello"}
THINKS = """
[[models]]
name = "thinker"
engine = "scripted"
replies = [{replies}]
"""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service whose model thinks before it answers, as MedGemma marks it."""
    folder = tmp_path_factory.mktemp("thinker")
    reply = '"<unused94>thought\\nHm, a border.<unused95>Round."'
    (folder / "medserve.toml").write_text(THINKS.format(replies=", ".join([reply] * 50)))
    environment = {"MEDSERVE_CONFIG": str(folder / "medserve.toml"), "MEDSERVE_HOME": str(folder / "home")}
    with (
        serving(environment=environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ended as it should."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert "[DONE]" == lines[-1]
    return [json.loads(line) for line in lines[:-1]]


def ended(client: httpx.Client, response: dict[str, Any]) -> dict[str, Any]:
    """A background response once it has ended."""
    held = [response]

    def over() -> bool:
        held.append(client.get(f"{RESPONSES}/{response['id']}").json())
        return held[-1]["status"] not in ("queued", "in_progress")

    assert until(over)
    return held[-1]


# --- thinking ------------------------------------------------------------------------------------------------------


def test_thinking_is_an_item_and_not_a_word_of_the_answer(thinker: httpx.Client) -> None:
    """System 003 left thinking in the answers of its 27B model; here each has its place, whole or in events."""
    whole = thinker.post(RESPONSES, json=ASKED).json()
    told = events(thinker.post(RESPONSES, json=ASKED | {"stream": True}).text)

    for response in (whole, told[-1]["response"]):
        assert ["reasoning", "message"] == [item["type"] for item in response["output"]]
        assert ["Hm, a border.", "Round."] == [item["content"][0]["text"] for item in response["output"]]
    assert "Hm, a border." == "".join(e["delta"] for e in told if e["type"] == "response.reasoning_text.delta")


def test_a_chat_keeps_thinking_apart_too(thinker: httpx.Client) -> None:
    """Defect 002-3: `reasoning_content`, also in deltas; its tokens are unknown where the engine cannot count."""
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    answer = thinker.post(CHAT, json=asked).json()
    stream = thinker.post(CHAT, json=asked | {"stream": True}).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in stream.split("\n") if line.startswith("data: {")]

    assert "Hm, a border." == answer["choices"][0]["message"]["reasoning_content"]
    assert "Round." == answer["choices"][0]["message"]["content"]
    assert "Hm, a border." == "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert "Round." == "".join(delta.get("content", "") for delta in deltas)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] is None


def test_thinking_that_is_sent_back_is_not_shown_to_the_model(thinker: httpx.Client) -> None:
    """Items of an answer are taken as they came: the prompt counts its words without the thought."""
    first = thinker.post(RESPONSES, json=ASKED).json()
    user = {"role": "user", "content": "hello"}
    with_thought = thinker.post(RESPONSES, json={"input": [user, *first["output"], user]}).json()
    without = thinker.post(RESPONSES, json={"input": [user, first["output"][1], user]}).json()

    assert with_thought["usage"]["input_tokens"] == without["usage"]["input_tokens"]


# --- in the background ---------------------------------------------------------------------------------------------


def test_a_background_response_is_what_it_would_have_been_at_once(thinker: httpx.Client) -> None:
    """But for its identifier, its times and that it is kept."""
    now = thinker.post(RESPONSES, json=ASKED | {"metadata": {"a": "b"}}).json()
    later = ended(thinker, thinker.post(RESPONSES, json=ASKED | {"background": True, "metadata": {"a": "b"}}).json())

    same = ("status", "usage", "model", "metadata", "temperature", "max_output_tokens", "error")
    assert {name: now[name] for name in same} == {name: later[name] for name in same}
    assert [item["content"] for item in now["output"]] == [item["content"] for item in later["output"]]
    assert later["completed_at"] >= later["created_at"]
    job = thinker.get("/v1/jobs/" + later["id"].replace("resp_", "job_")).json()
    assert ("done", 1, 1) == (job["state"], job["progress"]["done"], job["progress"]["total"])


def test_nothing_is_kept_of_a_response_that_was_answered_at_once(thinker: httpx.Client) -> None:
    """Asking for it again is an honest 404, under any name."""
    response = thinker.post(RESPONSES, json=ASKED).json()
    names = (response["id"], "resp_", "job_0", response["id"].replace("resp_", "job_"))
    answers = [thinker.get(f"{RESPONSES}/{name}") for name in names]

    assert response["store"] is False
    assert {404} == {answer.status_code for answer in answers}
    assert "background" in answers[0].json()["error"]["message"]


def test_a_background_response_that_fails_says_why(thinker: httpx.Client) -> None:
    """A question that the engine cannot honour, found when it is asked."""
    asked = {"background": True, "top_logprobs": 3}
    response = ended(thinker, thinker.post(RESPONSES, json=ASKED | asked).json())

    assert ("failed", "unsupported_parameter") == (response["status"], response["error"]["code"])
    assert "top_logprobs" in response["error"]["message"]
    assert [] == response["output"]


def test_words_of_a_background_question_lie_nowhere_when_it_is_over(tmp_path: Path) -> None:
    """Its file is gone with the job, and the database never held the input."""
    (tmp_path / "medserve.toml").write_text(THINKS.format(replies='"Round."'))
    environment = {"MEDSERVE_CONFIG": str(tmp_path / "medserve.toml"), "MEDSERVE_HOME": str(tmp_path / "home")}
    with (
        serving(environment=environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        ended(client, client.post(RESPONSES, json={"input": "Mustermann", "background": True}).json())
        assert until(lambda: not any(path.is_file() for path in (tmp_path / "home" / "jobs").rglob("*")))
    kept = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())

    assert b"Round." in kept
    assert b"Mustermann" not in kept
    assert b"Mustermann" not in running.log


async def test_a_background_response_is_seen_by_the_key_that_asked_for_it_alone(tmp_path: Path) -> None:
    """To every other key it does not exist: it cannot be read, stopped or deleted."""
    script = ModelSpec(name="script", engine="scripted", replies=("Round.",) * 5)
    settings = Settings(home=tmp_path, models=(script,))
    async with keys.opened(settings) as kept:
        mine, other = [(await kept.add(name, (Scope.USE,)))[1] for name in ("mine", "other")]
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client,
    ):
        client.headers["Authorization"] = f"Bearer {mine}"
        queued = (await client.post(RESPONSES, json=ASKED | {"background": True})).json()
        path = f"{RESPONSES}/{queued['id']}"
        stranger = {"Authorization": f"Bearer {other}"}
        strange = [
            (await client.request(method, path + more, headers=stranger)).status_code
            for method, more in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""))
        ]
        own = [(await client.request(method, path)).status_code for method in ("GET", "DELETE", "GET")]

    assert [404, 404, 404] == strange
    assert [200, 200, 404] == own


@pytest.mark.parametrize("passing", [ModelBusy("full"), WorkerCrashed("the worker ended")], ids=["busy", "crashed"])
async def test_a_background_response_waits_for_what_passes(
    passing: MedserveError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there to ask again, so it fails neither for want of room nor because a worker ended."""
    busy = [passing, passing]

    class Full(Slow):
        def stream(self, request: Any) -> Any:
            if busy:
                raise busy.pop()
            return super().stream(request)

    monkeypatch.setattr(later, "PAUSE_SECONDS", 0.01)
    async with gateway(Full(pieces=2, between=0.0), monkeypatch) as here:
        response = (await here.client.post(RESPONSES, json=ASKED | {"background": True})).json()
        while response["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
            response = (await here.client.get(f"{RESPONSES}/{response['id']}")).json()

    assert "completed" == response["status"]
    assert [] == busy


async def test_a_loading_model_holds_a_response_for_a_while_and_a_background_one_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one is told when to come again; the other was acknowledged and needs no second call."""
    async with gateway(Slow(pieces=2, between=0.0), monkeypatch, start=1.0) as here:
        queued = (await here.client.post(RESPONSES, json=ASKED | {"background": True})).json()
        told = await here.client.post(RESPONSES, json=ASKED)
        assert "queued" == queued["status"]
        assert await settled(lambda: here.engine.finished == 1)
        await asyncio.sleep(0.1)
        response = (await here.client.get(f"{RESPONSES}/{queued['id']}")).json()

    assert (503, "model_loading") == (told.status_code, told.json()["error"]["code"])
    assert int(told.headers["retry-after"]) > 0
    assert "completed" == response["status"]


# --- what ends badly -----------------------------------------------------------------------------------------------


async def test_a_failure_in_the_middle_is_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """`response.failed` with the reason, what was said as incomplete, and nothing that looks whole."""
    failure = WorkerCrashed("the worker ended")
    async with gateway(Slow(pieces=3, between=0.0, failure=failure), monkeypatch) as here:
        told = events((await here.client.post(RESPONSES, json=ASKED | {"stream": True})).text)
    response = told[-1]["response"]

    assert ("response.failed", "failed", "worker_crashed") == (
        told[-1]["type"],
        response["status"],
        response["error"]["code"],
    )
    assert ("incomplete", "so so so ") == (response["output"][0]["status"], response["output"][0]["content"][0]["text"])
    assert "response.completed" not in [event["type"] for event in told]


async def test_a_failure_that_nobody_foresaw_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug ends the stream as honestly as a foreseen error."""
    async with gateway(Slow(pieces=1, between=0.0, failure=KeyError("Mustermann")), monkeypatch) as here:
        answer = await here.client.post(RESPONSES, json=ASKED | {"stream": True})

    assert "response.failed" == events(answer.text)[-1]["type"]
    assert "Mustermann" not in answer.text


async def test_a_failure_before_the_first_piece_is_an_ordinary_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its status, and the name that the field has in this dialect."""
    failure = ContextOverflow("the prompt takes 9000 tokens", param="messages")
    async with gateway(Slow(pieces=0, failure=failure), monkeypatch) as here:
        answers = [await here.client.post(RESPONSES, json=ASKED | {"stream": stream}) for stream in (True, False)]

    assert [400, 400] == [answer.status_code for answer in answers]
    assert ["input", "input"] == [answer.json()["error"]["param"] for answer in answers]


async def test_a_failure_after_the_first_second_is_still_a_typed_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status line was sent, so the events say it, though no word of the answer had come."""
    engine = Slow(pieces=0, before_first=1.3, failure=EngineTimeout("too long"))
    async with gateway(engine, monkeypatch) as here:
        answer = await here.client.post(RESPONSES, json=ASKED | {"stream": True})

    assert 200 == answer.status_code
    assert ["response.created", "response.in_progress", "response.failed"] == [
        event["type"] for event in events(answer.text)
    ]


async def test_a_client_who_leaves_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it waits for the whole response or reads events, before the first piece or after it."""
    async with gateway(Slow(before_first=0.2), monkeypatch) as here:
        for stream in (True, False):
            asked = asyncio.create_task(here.client.post(RESPONSES, json=ASKED | {"stream": stream}))
            assert await settled(lambda: here.engine.running == 1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert await settled(lambda: here.engine.running == 0)
    assert 0 == here.engine.finished


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_several_answers_in_work_stop_with_their_reader(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """All of them."""
    body = {"messages": [{"role": "user", "content": "hello"}], "n": 2} if path == CHAT else ASKED
    async with gateway(Slow(), monkeypatch) as here:
        async with here.client.stream("POST", path, json=body | {"stream": True}) as answer:
            await anext(answer.aiter_lines())
            assert here.engine.running == (2 if path == CHAT else 1)
        assert await settled(lambda: here.engine.running == 0)

    assert 0 == here.engine.finished


async def test_one_of_several_answers_that_fails_ends_the_stream_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No choice is left standing as if it were whole."""
    body = {"messages": [{"role": "user", "content": "hello"}], "n": 2, "stream": True}
    async with gateway(Slow(pieces=3, failure=WorkerCrashed("the worker ended")), monkeypatch) as here:
        answer = await here.client.post(CHAT, json=body)

    last = [line for line in answer.text.split("\n") if line.startswith("data: ")][-1]
    assert "worker_crashed" == json.loads(last.removeprefix("data: "))["error"]["code"]


async def test_an_unable_engine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dialect names its own field; nothing is ignored."""
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    rows: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, chat | {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, chat | {"logprobs": True}, "logprobs"),
        (RESPONSES, ASKED | {"text": {"format": {"type": "json_object"}}}, "text.format"),
        (RESPONSES, ASKED | {"include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ]
    async with gateway(Slow(), monkeypatch) as here:
        answers = [(await here.client.post(path, json=body)).json()["error"] for path, body, _ in rows]

    assert [param for _, _, param in rows] == [error["param"] for error in answers]
    assert {"unsupported_parameter"} == {error["code"] for error in answers}


def test_concerns_about_files_are_told_by_a_header(thinker: httpx.Client) -> None:
    """At once, and of a background response whenever it is asked for."""
    url = "data:application/octet-stream;base64," + b64encode(nifti(abdomen(4))).decode()
    asked = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
    at_once = thinker.post(RESPONSES, json=asked)
    queued = thinker.post(RESPONSES, json=asked | {"background": True})
    later = thinker.get(f"{RESPONSES}/{queued.json()['id']}")

    assert at_once.headers["x-medserve-concerns"]
    assert 3 * [at_once.headers["x-medserve-concerns"]] == [
        answer.headers["x-medserve-concerns"] for answer in (at_once, queued, later)
    ]
