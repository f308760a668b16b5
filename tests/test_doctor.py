"""The doctor looks at the machine without starting anything, and says what to do."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from medserve import doctor
from medserve.doctor import GIB, examine_machine
from medserve.settings import ModelSpec, Settings


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
    there = tmp_path / "there.gguf"
    there.write_bytes(bytes(2**20))
    found = checks(ModelSpec(name="a", path=there), ModelSpec(name="b", path=there, projector=tmp_path / "gone.gguf"))

    assert (True, "1.0 MiB of weights for the llama-cpp engine") == (found["model a"].good, found["model a"].words)
    assert not found["model b"].good
    assert "gone.gguf" in found["model b"].words
    assert "there.gguf" not in found["model b"].words


def test_a_containers_memory_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the container may use, not what the machine has; without a limit, the machine's."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "CGROUP_LIMIT", limit)
    machine = doctor.memory()
    limit.write_text("max\n")
    unlimited = doctor.memory()
    limit.write_text(f"{GIB}\n")

    assert (machine, GIB) == (unlimited, doctor.memory())
    assert "the demonstration model" in checks(ModelSpec(name="a", engine="scripted"))["memory"].words


def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is in the words."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    engine = checks(ModelSpec(name="a", engine="scripted"))["llama.cpp engine"]

    assert not engine.good
    assert "pip install medserve" in engine.words
