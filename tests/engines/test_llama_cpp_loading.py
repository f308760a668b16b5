"""A model that cannot be loaded says why, by the right name, with the next step, and leaves no process behind."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medserve.engines import llama_cpp
from medserve.errors import ModelFailed, NotSupported, ProjectorMissing, WeightsCorrupt, WeightsMissing
from medserve.generation import collect
from medserve.process import Child
from medserve.settings import Limits, Settings
from medserve.threads import in_thread
from tests.engines.subjects import SPEC, ask, picture, running

pytestmark = pytest.mark.anyio

assert SPEC.path is not None
assert SPEC.projector is not None
WEIGHTS, PROJECTOR = SPEC.path, SPEC.projector


async def refused(**changes: object) -> ModelFailed:
    """The error that loading the demo model raises when this is changed."""
    with pytest.raises(ModelFailed) as caught:
        await llama_cpp.start(SPEC.model_copy(update=changes), Settings())
    assert "/" not in caught.value.message  # no path of this machine
    return caught.value


def altered(source: Path, target: Path, before: bytes, after: bytes) -> Path:
    """A copy of a file with some bytes exchanged for as many others."""
    content = source.read_bytes()
    assert before in content
    assert len(before) == len(after)
    target.write_bytes(content.replace(before, after, 1))
    return target


async def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """It is there: what is told is the engine that would read it."""
    error = await refused(path=tmp_path)

    assert type(error) is WeightsMissing
    assert "is a folder" in error.message
    assert "set `engine` to transformers" in error.message


async def test_bits_that_a_gguf_file_cannot_be_given() -> None:
    """What is asked and cannot be done is not left out in silence."""
    assert "quantise of " in (await refused(quantise="8bit")).message


async def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    """The error names the file and how to get it."""
    error = await refused(path=tmp_path / "none.gguf")

    assert type(error) is WeightsMissing
    assert "none.gguf does not exist" in error.message
    assert "check the model's paths" in error.message


async def test_no_path_at_all() -> None:
    """A model without a path is told so before any process starts."""
    assert type(await refused(path=None)) is WeightsMissing


async def test_a_file_of_another_kind(tmp_path: Path) -> None:
    """A web page that was saved as weights is no GGUF file."""
    (tmp_path / "page.gguf").write_text("<!doctype html><title>401</title>")
    error = await refused(path=tmp_path / "page.gguf")

    assert type(error) is WeightsCorrupt
    assert "does not begin with the letters GGUF" in error.message


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
async def test_a_file_that_is_cut_short(tmp_path: Path, share: float) -> None:
    """However much is missing, the file is found out before it is loaded."""
    content = WEIGHTS.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])

    error = await refused(path=tmp_path / "cut.gguf")

    assert type(error) is WeightsCorrupt
    assert "fetch it again" in error.message


async def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    """What llama.cpp itself complains of is passed on."""
    path = altered(WEIGHTS, tmp_path / "odd.gguf", b"output_norm.weight", b"output_nrom.weight")
    error = await refused(path=path)

    assert type(error) is ModelFailed
    assert "llama.cpp could not load odd.gguf" in error.message
    assert "output_norm" in error.message


async def test_a_projector_in_place_of_weights() -> None:
    """The two files exchanged are told apart by what they hold."""
    error = await refused(path=PROJECTOR)

    assert type(error) is WeightsCorrupt
    assert "architecture 'clip'" in error.message


async def test_weights_in_place_of_a_projector() -> None:
    """A projector has to be one."""
    error = await refused(projector=WEIGHTS)

    assert type(error) is WeightsCorrupt
    assert "mmproj" in error.message


async def test_a_projector_that_does_not_exist(tmp_path: Path) -> None:
    """A projector that was named must be there; the model is not loaded blind."""
    assert type(await refused(projector=tmp_path / "none.gguf")) is ProjectorMissing


async def test_a_projector_of_another_model(tmp_path: Path) -> None:
    """A projector whose width is not the weights' is refused with both numbers."""
    key = b"clip.vision.projection_dim" + (4).to_bytes(4, "little")
    content = PROJECTOR.read_bytes()
    at = content.index(key) + len(key)
    width = content[at : at + 4]
    wrong = (int.from_bytes(width, "little") * 2).to_bytes(4, "little")
    error = await refused(projector=altered(PROJECTOR, tmp_path / "wide.gguf", key + width, key + wrong))

    assert type(error) is WeightsCorrupt
    assert f"it is {int.from_bytes(wrong, 'little')} wide" in error.message


@pytest.mark.parametrize("entry", ["clip.vision.patch_size", "clip.vision.projector.scale_factor"])
async def test_a_projector_that_says_what_cannot_be(tmp_path: Path, entry: str) -> None:
    """A patch of no pixels is a damaged file, which is told before llama.cpp divides by it."""
    key = entry.encode() + (4).to_bytes(4, "little")
    at = PROJECTOR.read_bytes().index(key) + len(key)
    said = PROJECTOR.read_bytes()[at : at + 4]
    error = await refused(projector=altered(PROJECTOR, tmp_path / "none.gguf", key + said, key + bytes(4)))

    assert type(error) is WeightsCorrupt
    assert "cannot be" in error.message


async def test_a_projector_beside_the_weights_is_found(tmp_path: Path) -> None:
    """Without being named, the one mmproj file beside the weights is used."""
    shutil.copy(WEIGHTS, tmp_path / "model.gguf")
    shutil.copy(PROJECTOR, tmp_path / "mmproj-model.gguf")

    async with running(path=tmp_path / "model.gguf", projector=None) as engine:
        assert engine.capabilities.vision is not None


async def test_weights_alone_read_but_do_not_see(tmp_path: Path) -> None:
    """Without a projector words are answered and pictures are refused, with what to do."""
    shutil.copy(WEIGHTS, tmp_path / "model.gguf")

    async with running(path=tmp_path / "model.gguf", projector=None) as engine:
        assert engine.capabilities.vision is None
        assert engine.capabilities.image_tokens == 0
        assert (await collect(engine.stream(ask("Which colour?")))).usage.completion > 0
        with pytest.raises(NotSupported, match="mmproj"):
            await collect(engine.stream(ask(picture(1), "Which colour?")))


async def test_a_model_that_loads_too_slowly() -> None:
    """Loading has a limit, and the message names the setting."""
    settings = Settings(limits=Limits(load_seconds=0.001))

    with pytest.raises(ModelFailed, match="load_seconds"):
        await llama_cpp.start(SPEC, settings)


async def test_the_context_is_no_larger_than_the_models_own() -> None:
    """What the weights were made for is the upper limit."""
    async with running(context=131_072, slots=1) as engine:
        assert engine.capabilities.context < 131_072


async def test_facts_tell_which_weights_answered() -> None:
    """A report can name the weights, their quantisation and a fingerprint of their content."""
    async with running() as engine:
        facts = dict(engine.capabilities.facts)

    assert facts["engine"] == "llama-cpp"
    assert facts["file"] == WEIGHTS.name
    assert len(facts["fingerprint"]) == 64
    assert facts["quantisation"]
    assert ("gemma3", "8192", "apache-2.0") == (facts["architecture"], facts["trained_context"], facts["licence"])
    assert ("gemma3", 64) == (facts["processor"], len(facts["projector_fingerprint"]))
    assert facts["devices"]


async def test_a_worker_whose_facts_are_not_understood_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else knows of it: it would hold its memory until the service ends."""
    pids = []

    def refuse(_engine: llama_cpp.LlamaCpp, _model: object, child: Child, **_named: object) -> None:
        pids.append(child.pid)
        raise KeyError("vision")

    monkeypatch.setattr(llama_cpp.LlamaCpp, "__init__", refuse)
    with pytest.raises(KeyError, match="vision"):
        await llama_cpp.start(SPEC, Settings())

    assert 1 == len(pids)
    assert not Path(f"/proc/{pids[0]}").exists()


PARENT = """
import asyncio, sys, time
from pathlib import Path
from medserve.engines import llama_cpp
from medserve.settings import ModelSpec, Settings
async def main():
    spec = ModelSpec.model_validate_json(sys.argv[1])
    engine = await llama_cpp.start(spec, Settings())
    print(engine.pid, engine._child.directory, flush=True)
    time.sleep(60)
asyncio.run(main())
"""


def test_a_worker_does_not_outlive_a_parent_that_was_killed() -> None:
    """kill -9 of the gateway leaves no worker and no directory."""
    command = [sys.executable, "-c", PARENT, SPEC.model_dump_json()]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())
    assert parent.stdout is not None
    pid, directory = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()

    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)

    assert not Path(f"/proc/{pid}").exists()
    assert not Path(directory).exists()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


async def test_no_secret_of_the_gateway_reaches_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's environment holds what it needs and no keys."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MEDSERVE_API_KEY", "secret")
    async with running() as engine:
        environment = await in_thread(Path(f"/proc/{engine.pid}/environ").read_bytes)

    assert b"secret" not in environment
    assert b"GOMP_SPINCOUNT=600" in environment
