"""The doctor looks at the machine without starting anything, and says what to do."""

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from medserve import doctor, machine
from medserve.doctor import examine_machine
from medserve.hub import picking
from medserve.residency import GIB
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings


def checks(*models: ModelSpec) -> dict[str, doctor.Check]:
    """All checks of a machine with these models, by what they look at."""
    return {check.what: check for check in examine_machine(Settings(models=models))}


def test_a_machine_that_can_run_medserve_is_in_order() -> None:
    """The one that runs this test can."""
    found = checks(ModelSpec(name="script", engine="scripted"))

    assert [] == [check for check in found.values() if not check.good]
    assert "without files" in found["model script"].words


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Each file that is not there, and only those."""
    assert DEMO_MODEL.path is not None
    there = DEMO_MODEL.path
    found = checks(DEMO_MODEL, ModelSpec(name="b", path=there, projector=tmp_path / "gone.gguf"))
    good = found[f"model {DEMO_MODEL.name}"]

    assert good.good
    assert "runs on the llama-cpp engine" in good.words
    assert "weights 3 MiB, vision 2 MiB" in good.words
    assert not found["model b"].good
    assert "gone.gguf" in found["model b"].words
    assert there.name not in found["model b"].words


def test_weights_that_are_no_model_are_found(tmp_path: Path) -> None:
    """Without loading them."""
    (tmp_path / "zeros.gguf").write_bytes(bytes(2**20))
    found = checks(ModelSpec(name="a", path=tmp_path / "zeros.gguf"))["model a"]

    assert not found.good
    assert "not a whole GGUF file" in found.words


def test_a_python_without_vllm_is_an_obstacle(tmp_path: Path) -> None:
    """Before anything is started; a Python that is none likewise."""
    spec = ModelSpec(name="a", engine="vllm", path=DEMO)
    found = checks(spec, spec.model_copy(update={"name": "b", "python": tmp_path / "none"}))

    assert not found["model a"].good
    assert "lacks vLLM" in found["model a"].words
    assert not found["model b"].good
    assert "`python` cannot be run" in found["model b"].words


def test_a_gpu_that_is_asked_for_and_not_there_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model would not load: it is never moved to the processor in silence."""
    monkeypatch.setattr(picking, "torch_of", lambda model: picking.Torch("2.13.0", ()))
    found = checks(ModelSpec(name="a", engine="transformers", path=DEMO, context=2048, device="cuda:1"))["model a"]

    assert not found.good
    assert "sees no GPU, and the model's device is cuda:1: install a build of torch with CUDA" in found.words


def test_safetensors_are_told_with_what_torch_sees() -> None:
    """Which engine and why, where it would compute, and what it takes; torch itself is asked in another process."""
    spec = ModelSpec(name="a", engine="transformers", path=DEMO, context=2048, precision="float32")
    found = checks(spec, spec.model_copy(update={"name": "b", "device": "cpu"}))

    assert found["model a"].good
    assert found["model a"].words.startswith("runs on the transformers engine: safetensors are what transformers reads")
    assert re.search(
        r"torch 2\.\d+\.\d+\S* sees (no GPU, so it computes on the processor|\d GPU)", found["model a"].words
    )
    assert "it computes on the processor, as its device says" in found["model b"].words
    assert "weights 6 MiB (float32), vision 4 MiB" in found["model b"].words
    assert "torch 2." in found["transformers engine"].words


def test_a_containers_memory_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a container may use is what is told, not what the machine has."""
    (tmp_path / "membership").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)

    said = checks(ModelSpec(name="a", engine="scripted"))["memory"].words
    assert ("1.0 GiB", True) == (said[:7], "the demonstration model" in said)


def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is in the words."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    engine = checks(ModelSpec(name="a", engine="scripted"))["llama.cpp engine"]

    assert not engine.good
    assert "pip install medserve" in engine.words
