"""Servers that do less than they let one think: a real one behind somebody who drops, cuts or refuses what is asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve import certificates, process
from medserve.engines import openai
from medserve.engines._chat import OpenAIEngine
from medserve.engines._chat.piece import Piece
from medserve.engines._server import patience, served
from medserve.engines._server.patience import patiently
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.openai import Attached
from medserve.engines.transformers import Transformers
from medserve.errors import (
    ContextOverflow,
    EngineError,
    EngineTimeout,
    ModelBusy,
    ModelFailed,
    NotSupported,
    ServerLost,
)
from medserve.generation import Finish, Sampling, collect
from medserve.probing.manner import FLAGS, Manner
from medserve.probing.trial import Heard
from medserve.settings import Limits, ModelSpec, Settings
from tests.engines.servers import Between, Change, Request, between, listening, port_of, read, whole
from tests.engines.subjects import ask, picture

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def attached(llama: LlamaCpp, change: Change, **spec: Any) -> AsyncIterator[tuple[OpenAIEngine, Between]]:
    """The engine, started against the worker behind a lesser server; and what stands between."""
    async with between(llama, change) as stands:
        engine = await openai.start(stands.spec.model_copy(update=spec), Settings())
        try:
            yield engine, stands
        finally:
            await engine.close()


def fact(engine: OpenAIEngine, name: str) -> str:
    return dict(engine.capabilities.facts)[f"probed_{name}"]


def without(*names: str) -> Change:
    """A server that takes these fields and does nothing with them."""

    def drop(request: Request) -> None:
        for name in names:
            if request.body:
                request.body.pop(name, None)

    return drop


def refusing(*names: str) -> Change:
    """A server that says no to these fields."""

    def refuse(request: Request) -> bytes | None:
        bad = [name for name in names if request.body and name in request.body]
        return whole(400, {"error": {"message": f"unknown field {bad[0]}"}}) if bad else None

    return refuse


def pictures(change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Change:
    """A server that does something to every picture, or loses it."""

    def each(request: Request) -> None:
        for message in (request.body or {}).get("messages", ()):
            if not isinstance(message["content"], str):
                parts = [change(part) if part["type"] == "image_url" else part for part in message["content"]]
                message["content"] = [part for part in parts if part is not None]

    return each


# --- a server that does all ----------------------------------------------------------------------------------------


async def test_everything_that_the_chat_route_of_llama_server_does_is_found(remote: OpenAIEngine) -> None:
    """Each ability was seen, and its facts say so; the context is what the server says of itself."""
    able = remote.capabilities
    assert (able.schema, able.choices, able.logprobs, able.prefix, able.thinking) == (True,) * 5
    assert (2048, 18) == (able.context, able.image_tokens)
    assert ("honoured by grammar", "told by the server") == (fact(remote, "choices"), fact(remote, "context"))
    assert "not honoured" not in json.dumps(able.facts)
    assert "/" not in dict(able.facts)["weights"]


async def test_the_probes_are_few_small_and_told(llama: LlamaCpp) -> None:
    """At most forty requests of at most 64 tokens, and whoever waits for the load is told of each kind."""
    told: list[str] = []

    class Waiting:
        def progress(self, progress: process.Progress) -> None:
            told.append(progress.stage)

        async def make_room(self, memory_bytes: int) -> None: ...

    token = process.ONLOOKER.set(Waiting())
    try:
        async with attached(llama, lambda _: None) as (_, stands):
            asked = list(stands.asked())
    finally:
        process.ONLOOKER.reset(token)

    assert 10 < len(asked) <= 40
    assert max(body["max_tokens"] for body in asked) <= 64
    assert ["asking the server what it serves", "probing: words", "probing: vision"] == told[:3]
    assert "probing: overflow" == told[-1]


async def test_a_forced_beginning_and_choices_go_together(remote: OpenAIEngine) -> None:
    """The choices bind what follows."""
    result = await collect(remote.stream(ask("Which?", prefix="It is ", choices=("zq7", 'a "b"'))))

    assert result.text in {"It is zq7", 'It is a "b"'}


async def test_thinking_is_switched(remote: OpenAIEngine) -> None:
    """On for so many tokens and closed after them, or off."""
    on = await collect(remote.stream(ask("Describe the image.", thinking=6, max_tokens=20)))
    off = await collect(remote.stream(ask("Describe the image.", thinking=0)))

    assert on.thinking
    assert (on.usage.thinking or 0) <= 6
    assert ("", True) == (off.thinking, bool(off.text))


async def test_the_worker_of_transformers_is_a_server_like_another(tensors: Transformers) -> None:
    """It has other names for the same, which are found; and takes no pictures of another size than its own."""
    async with port_of(tensors) as port:
        engine = await openai.start(ModelSpec(name="m", engine="openai", url=f"http://127.0.0.1:{port}"), Settings())
        try:
            able = engine.capabilities
            both = await collect(engine.stream(ask("Which?", prefix="It is ", choices=("zq7", "zq8"))))
            bound = await collect(engine.stream(ask("?", prefix="It is ", schema=SCHEMA, max_tokens=64)))
        finally:
            await engine.close()

    assert (able.schema, able.choices, able.logprobs, able.prefix) == (True,) * 4
    assert "honoured by structured_outputs" == fact(engine, "choices")
    assert both.text in {"It is zq7", "It is zq8"}
    assert {"a": "x"} == json.loads(bound.text.removeprefix("It is "))


# --- servers that do less ------------------------------------------------------------------------------------------


async def test_a_server_that_loses_pictures_does_not_see(llama: LlamaCpp) -> None:
    """It answers fluently; but its prompt has not grown."""
    async with attached(llama, pictures(lambda _: None)) as (engine, _):
        assert engine.capabilities.vision is None
        with pytest.raises(NotSupported, match="adds nothing to the prompt"):
            await collect(engine.stream(ask(picture(1), "Which colour?")))
        assert (await collect(engine.stream(ask("Which colour?")))).text


async def test_a_server_that_always_sees_the_same_does_not_see(llama: LlamaCpp) -> None:
    """The prompt has grown, and yet two pictures cannot be told apart."""
    kept: list[dict[str, Any]] = []

    def first(part: dict[str, Any]) -> dict[str, Any]:
        kept.append(part)
        return kept[0]

    async with attached(llama, pictures(first)) as (engine, _):
        assert engine.capabilities.vision is None
        with pytest.raises(NotSupported, match="two different pictures got the same answer"):
            await collect(engine.stream(ask(picture(1), "Which colour?")))


@pytest.mark.parametrize(("status", "words"), [(400, "the server refuses it"), (500, "the server fails at it")])
async def test_a_server_that_takes_no_pictures_does_not_see(llama: LlamaCpp, status: int, words: str) -> None:
    """Whether it says no or breaks."""

    def refuse(request: Request) -> bytes | None:
        return whole(status, {"error": "no pictures"}) if "image_url" in json.dumps(request.body) else None

    async with attached(llama, refuse) as (engine, _):
        with pytest.raises(NotSupported, match=words):
            await collect(engine.stream(ask(picture(1), "Which colour?")))


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("lesser", [without, refusing])
async def test_a_schema_that_binds_nothing_is_refused(llama: LlamaCpp, lesser: Callable[..., Change]) -> None:
    """Dropped in silence or refused, it is the same to who needs it; the choices have another way."""
    async with attached(llama, lesser("response_format")) as (engine, _):
        assert engine.capabilities.choices
        with pytest.raises(NotSupported, match="schema"):
            await collect(engine.stream(ask("?", schema=SCHEMA)))


async def test_where_only_schemas_bind_choices_are_asked_for_as_json(llama: LlamaCpp) -> None:
    """The caller gets the text, not the JSON that it came in; what llama-server refuses together is refused by name."""
    async with attached(llama, refusing("grammar", "regex", "structured_outputs", "guided_choice")) as (engine, _):
        assert "honoured by schema" == fact(engine, "choices")
        result = await collect(engine.stream(ask("Which?", choices=("melanoma", 'a "nevus"'), max_tokens=96)))
        for begun in ({"prefix": "It is "}, {"thinking": 4}):
            with pytest.raises(NotSupported, match="choices after a beginning"):
                await collect(engine.stream(ask("Which?", choices=("zq7", "zq8"), **begun)))
        cut = await collect(engine.stream(ask("Which?", choices=("melanoma",), max_tokens=3)))

    assert result.text in {"melanoma", 'a "nevus"'}
    assert "melanoma".startswith(cut.text)
    assert Finish.LENGTH is cut.finish


async def test_a_server_that_binds_nothing_offers_neither(llama: LlamaCpp) -> None:
    """Every way of asking is tried, and none is believed."""
    names = ("grammar", "regex", "structured_outputs", "guided_choice", "response_format")
    async with attached(llama, without(*names)) as (engine, _):
        for wish in ({"choices": ("a", "b")}, {"schema": SCHEMA}):
            with pytest.raises(NotSupported):
                await collect(engine.stream(ask("?", **wish)))


@pytest.mark.parametrize("lesser", [without, refusing])
async def test_log_probabilities_that_do_not_come_are_not_offered(
    llama: LlamaCpp, lesser: Callable[..., Change]
) -> None:
    """And the sight is judged by words alone."""
    async with attached(llama, lesser("logprobs", "top_logprobs")) as (engine, _):
        assert "not honoured" == fact(engine, "logprobs")
        assert engine.capabilities.vision is not None
        with pytest.raises(NotSupported, match="top_logprobs"):
            await collect(engine.stream(ask("?", top_logprobs=2)))


def forgetful(request: Request) -> None:
    """A server whose template leaves out an assistant's last turn."""
    messages = (request.body or {}).get("messages") or [{"role": ""}]
    if messages[-1]["role"] == "assistant":
        messages.pop()


def anew(request: Request) -> None:
    """A server whose template closes it and begins another."""
    messages = (request.body or {}).get("messages") or [{"role": ""}]
    if messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": "Go on."})
        for flag in FLAGS:
            request.body.pop(flag, None)


@pytest.mark.parametrize("lesser", [forgetful, anew])
async def test_a_beginning_that_is_not_gone_on_from_is_refused(llama: LlamaCpp, lesser: Change) -> None:
    """Neither a server that forgets it nor one that begins anew goes on as the model itself would."""
    async with attached(llama, lesser) as (engine, _):
        assert not engine.capabilities.thinking
        with pytest.raises(NotSupported, match="prefix"):
            await collect(engine.stream(ask("?", prefix="It is")))


async def test_a_server_that_refuses_flags_is_given_the_beginning_alone(llama: LlamaCpp) -> None:
    """As llama-server and Ollama take it."""
    async with attached(llama, refusing(*FLAGS)) as (engine, stands):
        result = await collect(engine.stream(ask("Describe the image.", prefix="Please send")))
        last = list(stands.asked())[-1]

    assert result.text.startswith("Please send a picture")
    assert "assistant" == last["messages"][-1]["role"]


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "seed"])
async def test_a_wish_about_drawing_that_has_no_effect_is_refused_by_name(llama: LlamaCpp, name: str) -> None:
    """The others are followed."""
    wishes = {"top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5}

    seeds = count(3)

    def drop(request: Request) -> None:
        if request.body and request.body.get("temperature"):
            request.body.pop(name, None)
            if name == "seed":  # what it draws differs each time, and yet the test is the same each time
                request.body["seed"] = next(seeds)

    async with attached(llama, drop) as (engine, _):
        with pytest.raises(NotSupported, match=f"does not honour {name}"):
            await collect(engine.stream(ask("?", sampling=Sampling(temperature=1.0, **{name: wishes.pop(name)}))))  # type: ignore[arg-type]
        wishes.pop("seed", None)
        if name != "seed":  # without one, what narrows is asked for twice, and may be seen by chance
            await collect(engine.stream(ask("?", max_tokens=2, sampling=Sampling(temperature=1.0, **wishes))))  # type: ignore[arg-type]


async def test_the_servers_own_defaults_fill_no_gap(llama: LlamaCpp) -> None:
    """What is not asked for is said to be off: llama-server alone would draw from 40 tokens."""
    async with attached(llama, lambda _: None) as (engine, stands):
        await collect(engine.stream(ask("?", max_tokens=1, sampling=Sampling(temperature=1.0))))
        drawn = list(stands.asked())[-1]
        await collect(engine.stream(ask("?", max_tokens=1)))
        greedy = list(stands.asked())[-1]

    assert (1_000_000, 0.0, 1.0) == (drawn["top_k"], drawn["min_p"], drawn["repeat_penalty"])
    assert 1.0 == greedy["repeat_penalty"]
    assert "top_k" not in greedy


@pytest.mark.parametrize(("name", "wish"), [("stop", {"stop": ("a",)}), ("temperature", {"sampling": Sampling(1.0)})])
async def test_other_wishes_without_effect_are_refused_too(llama: LlamaCpp, name: str, wish: dict[str, Any]) -> None:
    """Where the server drops them."""
    async with attached(llama, without(name)) as (engine, _):
        with pytest.raises(NotSupported, match=name):
            await collect(engine.stream(ask("?", **wish)))


async def test_the_repetition_penalty_has_two_names(llama: LlamaCpp) -> None:
    """vLLM's is not known to every llama-server, which has its own."""
    async with attached(llama, without("repetition_penalty")) as (engine, stands):
        await collect(engine.stream(ask("?", max_tokens=1, sampling=Sampling(repetition_penalty=1.5))))
        assert 1.5 == list(stands.asked())[-1]["repeat_penalty"]

    async with attached(llama, without("repetition_penalty", "repeat_penalty")) as (engine, _):
        with pytest.raises(NotSupported, match="repetition_penalty"):
            await collect(engine.stream(ask("?", sampling=Sampling(repetition_penalty=1.5))))


@pytest.mark.parametrize("lesser", [without, refusing])
async def test_where_streams_are_not_counted_answers_come_whole(llama: LlamaCpp, lesser: Callable[..., Change]) -> None:
    """Counts are measured or there is no answer; what is in it is the same."""
    async with attached(llama, lesser("stream_options")) as (engine, _):
        chunks = [chunk async for chunk in engine.stream(ask(picture(1), "Which colour?", top_logprobs=1))]

    assert "answers come whole" in fact(engine, "counts")
    assert 1 == len([chunk for chunk in chunks if chunk.text])
    assert chunks[-1].usage is not None
    assert (18, True) == (chunks[-1].usage.image, chunks[-1].usage.completion > 0)


async def test_a_server_that_counts_nothing_cannot_be_used(llama: LlamaCpp) -> None:
    """Nothing could be checked that it sees, and no number be told."""

    def answer(request: Request) -> bytes | None:
        said = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hm"}}]}
        event = {"choices": [{"index": 0, "finish_reason": "stop", "delta": {"content": "hm"}}]}
        if request.path != "/v1/chat/completions":
            return None
        return (
            whole(200, b"data: " + json.dumps(event).encode() + b"\n\n") if request.body["stream"] else whole(200, said)
        )

    async with between(llama, answer) as stands:
        with pytest.raises(ModelFailed, match="no counts of tokens"):
            await openai.start(stands.spec, Settings())


# --- the context ---------------------------------------------------------------------------------------------------


def cutting(request: Request) -> None:
    """A server that keeps the last thousand characters of a turn, as Ollama does beyond its context, in silence."""
    for message in (request.body or {}).get("messages", ()):
        if isinstance(message["content"], str):
            message["content"] = message["content"][-1000:]


async def test_pictures_are_not_verified_until_somebody_does(remote: OpenAIEngine) -> None:
    """What a server that somebody else built does with a picture is for `medserve verify` to find out."""
    assert "not verified" == dict(remote.capabilities.facts)["parity"]


async def test_a_certificate_of_one_server_holds_for_no_other(llama: LlamaCpp, tmp_path: Path) -> None:
    """Two servers may give two builds the same name; an address is known by its digest and not told."""
    facts = []
    async with between(llama) as one, between(llama) as other:
        for stands in (one, other, one):
            engine = await openai.start(stands.spec, Settings(home=tmp_path))
            facts.append(dict(engine.capabilities.facts))
            await engine.close()

        first, second, again = map(certificates.subject_of, facts)
        assert first == again
        assert first != second
        assert one.url not in str(first.values())


async def test_what_might_be_cut_in_silence_is_refused_here(llama: LlamaCpp) -> None:
    """Half a question would be answered as if it were whole."""
    async with attached(llama, cutting) as (engine, _):
        assert "cut in silence" in fact(engine, "overflow")
        with pytest.raises(ContextOverflow, match="cuts the prompt in silence"):
            await collect(engine.stream(ask("word " * 2000)))
        assert (await collect(engine.stream(ask("word " * 20, max_tokens=1)))).usage.prompt


LISTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vLLM": ("/v1/models", {"data": [{"id": "m", "max_model_len": 1024}]}, 1024),
    "medserve": ("/v1/models", {"data": [{"id": "m", "facts": {"context": "1536"}}]}, 1536),
    "LM Studio": ("/api/v0/models/m", {"id": "m", "loaded_context_length": 1200}, 1200),
    "Ollama": ("/api/ps", {"models": [{"name": "m:latest", "context_length": 1300}]}, 1300),
}


@pytest.mark.parametrize("server", LISTS)
async def test_servers_tell_their_context_in_places_of_their_own(llama: LlamaCpp, server: str) -> None:
    """Of the model that runs, not the one that it could have been trained for."""
    place, said, context = LISTS[server]

    def tell(request: Request) -> bytes | None:
        if request.path == place:
            return whole(200, said)
        if request.path == "/v1/models":
            return whole(200, {"data": [{"id": "m"}]})
        return whole(404, {}) if request.method == "GET" else None

    async with attached(llama, tell) as (engine, _):
        assert (context, "told by the server") == (engine.capabilities.context, fact(engine, "context"))


async def test_a_context_that_nobody_tells_is_that_of_the_settings(llama: LlamaCpp) -> None:
    """And the record says so."""

    def mute(request: Request) -> bytes | None:
        if request.path == "/v1/models":
            return whole(200, {"data": [{"id": "m", "max_model_len": "much"}]})
        return whole(404, {}) if request.method == "GET" else None

    async with attached(llama, mute, context=2048) as (engine, _):
        assert (2048, "not told: that of the settings is assumed") == (
            engine.capabilities.context,
            fact(engine, "context"),
        )


# --- servers that are gone, busy, or wrong -------------------------------------------------------------------------


async def test_a_server_that_is_still_loading_is_waited_for(llama: LlamaCpp) -> None:
    """Its 503 says when to come again, and then it answers."""
    left = 2

    def loading(_: Request) -> bytes | None:
        nonlocal left
        left -= 1
        return whole(503, {"error": {"message": "Loading model"}}, retry_after="0") if left >= 0 else None

    async with attached(llama, loading) as (engine, stands):
        assert engine.capabilities.schema
        assert ["/v1/models"] * 3 == [request.path for request in stands.requests[:3]]


async def test_a_server_that_never_ends_loading_is_given_up() -> None:
    """When its own time to wait leads beyond the time that a load may take."""

    async def busy() -> None:
        raise ModelBusy("later", retry_after=60.0)

    with pytest.raises(ModelBusy):
        await patiently(busy, asyncio.get_running_loop().time() + 1.0)


async def test_a_lost_question_that_may_be_repeated_is_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is waited longer."""
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
    asked = 0

    async def lost() -> None:
        nonlocal asked
        asked += 1
        raise ServerLost("gone")

    with pytest.raises(ServerLost):
        await patiently(lost, asyncio.get_running_loop().time() + 10)
    assert 3 == asked


async def test_a_generation_is_not_repeated_but_a_count_is(llama: LlamaCpp) -> None:
    """A server that hangs up on the first of each after the probes."""
    failing: list[bool] = []

    def fail(request: Request) -> bytes | None:
        if request.body and failing and request.body.get("stream") is failing[0]:
            failing.clear()
            return b""
        return None

    async with attached(llama, fail) as (engine, stands):
        failing.append(True)
        before = len(stands.requests)
        with pytest.raises(ServerLost, match="hung up"):
            await collect(engine.stream(ask("?", max_tokens=1)))
        assert before + 1 == len(stands.requests)

        failing.append(False)
        result = await collect(engine.stream(ask(picture(1), "What is never asked twice?", max_tokens=1)))
        assert 18 == result.usage.image
        assert before + 4 == len(stands.requests)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "wants a key; name it by `key_variable` or `key_file`"),
        (403, "refuses the key"),
        (307, "sends elsewhere, which is not followed"),
        (500, "failed with status 500"),
    ],
)
async def test_a_server_that_says_no_from_the_start_is_a_failed_model(llama: LlamaCpp, status: int, words: str) -> None:
    """With what is to be mended, and without the server's own words; llama-server lists models to everybody."""

    def refuse(request: Request) -> bytes | None:
        return whole(status, {"error": {"message": "Jane"}}, location="http://127.0.0.1:1/") if request.body else None

    async with between(llama, refuse) as stands:
        with pytest.raises(ModelFailed, match=words) as raised:
            await openai.start(stands.spec, Settings())

    assert "Jane" not in str(raised.value)
    assert 1 == len(list(stands.asked()))


@pytest.mark.parametrize(("hangs", "words"), [("/v1/models", "did not answer in time"), ("/v1/chat", "took longer")])
async def test_a_server_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch, hangs: str, words: str) -> None:
    """Whether it says nothing at all, or only nothing to a question."""
    monkeypatch.setattr(served, "LOOK_SECONDS", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await read(reader)).path.startswith(hangs):
            await asyncio.sleep(60)
        writer.write(whole(200, {"data": [{"id": "m"}]}))
        await writer.drain()

    async with listening(serve) as port:
        spec = ModelSpec(name="m", engine="openai", url=f"http://127.0.0.1:{port}")
        async with asyncio.timeout(10):
            with pytest.raises(ModelFailed, match=words):
                await openai.start(spec, Settings(limits=Limits(answer_seconds=0.3)))


async def test_a_server_that_never_ends_an_answer_is_left() -> None:
    """It is not listened to for minutes, nor is all kept that it says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if "/v1/models" == (await read(reader)).path:
            writer.write(whole(200, {"data": [{"id": "m"}]}))
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n' * 100)
            await writer.drain()

    async with listening(serve) as port, asyncio.timeout(30):
        with pytest.raises(ModelFailed, match="does not end an answer"):
            await openai.start(ModelSpec(name="m", engine="openai", url=f"http://127.0.0.1:{port}"), Settings())


async def test_a_load_that_takes_too_long_in_one_probe_goes_on_without(
    llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not answered in time is not offered; a second one without an answer ends the load."""
    late: list[str] = []

    async def slow(self: Attached, request: Any) -> Heard:
        name = "schema" if request.schema else "choices" if request.choices else "prefix" if request.prefix else ""
        if name in late:
            raise EngineTimeout("late")
        return await heard(self, request)

    heard = Attached.heard
    monkeypatch.setattr(Attached, "heard", slow)
    late.append("schema")
    async with attached(llama, lambda _: None) as (engine, _):
        assert (False, True) == (engine.capabilities.schema, engine.capabilities.choices)
        assert "not honoured: no answer in time" == fact(engine, "schema")

    late.append("choices")
    async with between(llama) as stands:
        with pytest.raises(ModelFailed, match="answered at first and then hung"):
            await openai.start(stands.spec, Settings())


async def test_served_names_the_model_there(llama: LlamaCpp) -> None:
    """Our own name for it is another matter; and a server that lists nothing is asked for it all the same."""

    def two(request: Request) -> bytes | None:
        listed = {"data": [{"id": "org/a"}, {"id": "org/b"}]}
        return whole(200, listed) if request.path == "/v1/models" else None

    async with attached(llama, two, served="org/b") as (engine, stands):
        assert "org/b" == dict(engine.capabilities.facts)["weights"]
        assert {"org/b"} == {body["model"] for body in stands.asked()}

    async with between(llama, two) as stands:
        with pytest.raises(ModelFailed, match="it has: org/a, org/b; name one by `served`"):
            await openai.start(stands.spec, Settings())

    async with attached(
        llama, lambda request: whole(404, {}) if request.path == "/v1/models" else None, served="c"
    ) as (_, stands):
        assert {"c"} == {body["model"] for body in stands.asked()}


# --- pure ----------------------------------------------------------------------------------------------------------


@given(choices=st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_choices_are_said_so_that_they_mean_themselves(choices: list[str]) -> None:
    """As a regular expression; whatever characters they hold."""
    import re

    pattern = re.compile(Manner(choosing="regex").worded({}, ask("?", choices=tuple(choices)))["regex"])

    assert all(pattern.fullmatch(choice) for choice in choices)
    assert not pattern.fullmatch(choices[0] + "z") or choices[0] + "z" in choices


@given(pieces=st.lists(st.text(max_size=3)), begun=st.text(min_size=1, max_size=8))
def test_an_echoed_beginning_is_taken_away_however_it_is_cut(pieces: list[str], begun: str) -> None:
    """And one that is another is an error."""
    rest = "".join(pieces)
    cut = [begun[:3], begun[3:], *pieces]
    undo = openai._After(begun)

    assert rest == "".join(undo(Piece(text=piece)).text for piece in cut)
    with pytest.raises(EngineError):
        openai._After(begun)(Piece(text=chr(ord(begun[0]) ^ 1)))


@given(choice=st.text(), size=st.integers(1, 5))
def test_a_choice_comes_out_of_its_json(choice: str, size: int) -> None:
    """In whatever pieces it came."""
    said = json.dumps(choice)
    pieces = [Piece(text=said[start : start + size]) for start in range(0, len(said), size)]
    undo = openai._OutOfJson()

    assert choice == "".join(undo(piece).text for piece in [*pieces, Piece(finish=Finish.STOP)])
