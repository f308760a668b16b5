"""The key of a server goes to that server and nowhere else, and medserve before medserve is a server like another."""

import asyncio
import logging
import os
from pathlib import Path

import pytest
import structlog

from medserve.engines import _server, openai
from medserve.engines._server import Key, connected
from medserve.engines.llama_cpp import LlamaCpp
from medserve.errors import EngineError, InvalidRequest, ModelFailed
from medserve.generation import Sampling, collect
from medserve.models import Models
from medserve.settings import DEMO_MODEL, ModelSpec, Settings
from tests.engines.servers import Change, Request, between, listening, read, whole
from tests.engines.subjects import ask, picture
from tests.serving import serving

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef-very-secret-0123456789abcdef"


def spec(url: str = "http://127.0.0.1:1", **changes: object) -> ModelSpec:
    return ModelSpec(name="m", engine="openai", url=url, **changes)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file that holds a key, and that nobody else may read."""
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


def asking_for(secret: str) -> Change:
    """A server that answers who shows this key, and says back what was shown to everybody else."""

    def change(request: Request) -> bytes | None:
        shown = request.headers.get("authorization")
        return None if shown == f"Bearer {secret}" else whole(401, {"error": {"message": f"Incorrect: {shown}"}})

    return change


# --- where a key comes from ----------------------------------------------------------------------------------------


async def test_a_key_comes_from_a_file_or_the_environment(
    llama: LlamaCpp, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request shows it, the very first one too."""
    monkeypatch.setenv("SERVER_KEY", SECRET)
    for way in ({"key_file": key_file}, {"key_variable": "SERVER_KEY"}):
        async with between(llama, asking_for(SECRET)) as stands:
            engine = await openai.start(stands.spec.model_copy(update=way), Settings())
            assert (await collect(engine.stream(ask("?", max_tokens=1)))).usage.prompt
            await engine.close()
            assert {f"Bearer {SECRET}"} == {request.headers["authorization"] for request in stands.requests}


async def test_a_file_that_is_replaced_is_read_anew(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that keys can be changed without a restart."""
    monkeypatch.setattr(_server, "KEY_SECONDS", 0.0)
    key = Key(spec(key_file=key_file))
    assert f"Bearer {SECRET}" == (await key.headers())["authorization"]

    key_file.write_text("another")
    assert "Bearer another" == (await key.headers())["authorization"]

    key_file.unlink()
    with pytest.raises(ModelFailed, match="cannot be read: No such file"):
        await key.headers()


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"", 0o600, "is empty"),
        (b"a b", 0o600, "characters that no header can carry"),
        (b"a\r\nhost: b", 0o600, "characters that no header can carry"),
        ("schlüssel".encode(), 0o600, "characters that no header can carry"),
        (b"x" * 9000, 0o600, "no file that holds one key"),
        (SECRET.encode(), 0o644, "chmod 600"),
        (SECRET.encode(), 0o660, "chmod 600"),
    ],
)
async def test_a_key_that_cannot_be_one_is_not_sent(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    """Nor is it said what it was, or where."""
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(mode)

    with pytest.raises(ModelFailed, match=words) as raised:
        await openai.start(spec(key_file=file), Settings())

    assert SECRET not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


async def test_a_pipe_is_no_key_file(tmp_path: Path) -> None:
    """It is not waited for somebody to write to it."""
    os.mkfifo(tmp_path / "key", 0o600)
    async with asyncio.timeout(5):
        with pytest.raises(ModelFailed, match="no file that holds one key"):
            await openai.start(spec(key_file=tmp_path / "key"), Settings())


async def test_a_group_may_read_a_key() -> None:
    """As secrets are mounted for a service that runs under a user of its own."""
    assert "key" == _server._of_file(_file(0o440), "m")


def _file(mode: int) -> Path:
    file = Path(os.environ["HOME"]) / "group-key"
    file.write_text("key")
    file.chmod(mode)
    return file


async def test_a_variable_that_is_not_set_is_told() -> None:
    """Before anything is asked."""
    with pytest.raises(ModelFailed, match="environment variable with the key of m is not set"):
        await openai.start(spec(key_variable="MEDSERVE_TEST_NO_SUCH"), Settings())


# --- where it goes -------------------------------------------------------------------------------------------------


async def test_a_key_does_not_travel_in_clear(key_file: Path) -> None:
    """Except to this very machine."""
    for url in ("http://192.0.2.1:8000", "http://models.example.org", "http://localhost.example.org"):
        with pytest.raises(ModelFailed, match="would travel in clear; name an https address"):
            connected(spec(url, key_file=key_file))
        connected(spec(url))
        connected(spec(url.replace("http:", "https:"), key_file=key_file))
    for url in ("http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost"):
        connected(spec(url, key_file=key_file))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.example.org", "not a plain http or https"),
        ("http://user:password@a.example.org", "not a plain http or https"),
        ("http://a.example.org/?key=1", "must not have a query"),
        ("http://0x7f.1", "cannot be used"),
    ],
)
def test_an_odd_address_is_refused(url: str, words: str) -> None:
    """It might lead elsewhere than it seems, or hold a key that logs would show."""
    with pytest.raises(ModelFailed, match=words):
        connected(spec(url))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h:1", "/"),
        ("http://h:1/", "/"),
        ("http://h:1/v1", "/"),
        ("https://h/llm/v1/", "/llm"),
        ("http://h/x", "/x"),
    ],
)
def test_an_address_may_be_written_as_for_other_clients(url: str, path: str) -> None:
    """With `/v1` at its end or without."""
    assert path == connected(spec(url)).address.path


async def test_a_redirect_takes_no_key_along(llama: LlamaCpp, key_file: Path) -> None:
    """The other host hears nothing; the model has failed and says why."""
    heard: list[Request] = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await read(reader))
        writer.write(whole(200, {"data": []}))
        await writer.drain()

    async with listening(other) as port:
        there = f"http://127.0.0.1:{port}/v1/models"
        async with between(llama, lambda _: whole(302, b"", location=there)) as stands:
            with pytest.raises(ModelFailed, match="sends elsewhere, which is not followed"):
                await openai.start(stands.spec.model_copy(update={"key_file": key_file}), Settings())

    assert [] == heard


async def test_a_wrong_key_is_told_and_not_repeated(
    llama: LlamaCpp, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the error, not in a log, not in `repr`, though the server says it back."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logged:
        async with between(llama, asking_for("another")) as stands:
            model = stands.spec.model_copy(update={"key_file": key_file})
            with pytest.raises(ModelFailed, match="wants a key; name it by `key_variable` or `key_file`") as raised:
                await openai.start(model, Settings())

    chain = [raised.value, raised.value.__cause__]
    assert SECRET not in f"{chain!r}{logged}{caplog.text}{model!r}{connected(model)!r}"
    assert 1 == len(stands.requests)


async def test_a_key_that_is_taken_back_is_an_error_of_the_engine(llama: LlamaCpp, key_file: Path) -> None:
    """The server answered when the model was loaded."""
    accepted = [SECRET]
    async with between(llama, lambda request: asking_for(accepted[0])(request)) as stands:
        engine = await openai.start(stands.spec.model_copy(update={"key_file": key_file}), Settings())
        accepted[0] = "another"
        with pytest.raises(EngineError, match="wants a key"):
            await collect(engine.stream(ask("?")))
        await engine.close()


@pytest.mark.parametrize(
    "field", [{"key_file": "/etc/hostname"}, {"key_variable": "PATH"}, {"python": "/bin/sh"}, {"arguments": ["--x"]}]
)
async def test_a_request_cannot_name_secrets(field: dict[str, object]) -> None:
    """Or who may add models could send any file of this machine to any address, or run any program."""
    models = Models(Settings())
    try:
        with pytest.raises(InvalidRequest, match="can be said in the settings only") as raised:
            await models.add(ModelSpec.model_validate({"name": "m", "engine": "openai", "url": "http://h", **field}))
    finally:
        await models.close()
    assert next(iter(field)) == raised.value.param


# --- medserve before medserve --------------------------------------------------------------------------------------


async def test_medserve_stands_before_medserve(key_file: Path) -> None:
    """With a key: pictures, schemas, choices, log-probabilities and seeds go through both."""
    with serving(environment={"MEDSERVE_ADMIN_KEY_FILE": str(key_file)}) as service:
        engine = await openai.start(spec(f"{service.url}/v1", key_file=key_file), Settings())
        try:
            facts = dict(engine.capabilities.facts)
            assert ("medserve", DEMO_MODEL.name, "2048") == (facts["server"], facts["weights"], facts["context"])
            assert "honoured by schema" == facts["probed_choices"]
            assert "64" == facts["image_size"]  # as the other medserve tells, so that pixels are resized once
            assert not engine.capabilities.prefix
            chosen = await collect(engine.stream(ask(picture(1), "Which colour?", choices=("brown", "black"))))
            drawn = ask("Write ten random words.", top_logprobs=2, sampling=Sampling(temperature=1.0, seed=7))
            first, second = [await collect(engine.stream(drawn)) for _ in range(2)]
        finally:
            await engine.close()

        with pytest.raises(ModelFailed, match="wants a key"):
            await openai.start(spec(service.url), Settings())

    assert chosen.text in {"brown", "black"}
    assert (engine.capabilities.image_tokens, 1) == (chosen.usage.image, chosen.usage.encodes)
    assert first.text == second.text
    assert first.logprobs
