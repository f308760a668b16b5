"""Settings come from the environment or a file, and are valid or refused by name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from medserve.settings import DEMO_MODEL, ModelSpec, Settings


def test_without_any_setting_the_demonstration_model_is_served_on_loopback() -> None:
    """The defaults are safe and need nothing."""
    settings = Settings()

    assert ("127.0.0.1", False, (DEMO_MODEL,)) == (settings.host, settings.open_to_network, settings.models)


def test_the_environment_sets_one_limit_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested names are joined by two underscores."""
    monkeypatch.setenv("MEDSERVE_LIMITS__IMAGE_BYTES", "1000")

    limits = Settings().limits

    assert (1000, 128) == (limits.image_bytes, limits.images)


def test_a_volume_in_one_file_may_be_larger_than_a_picture() -> None:
    """A NIfTI of 512 x 512 x 140 voxels has 70 MiB; a photograph never has."""
    limits = Settings().limits

    assert 512 * 512 * 140 * 2 < limits.file_bytes
    assert limits.image_bytes < limits.file_bytes


def test_a_file_declares_models_and_the_environment_wins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is for the machine, the environment for the moment."""
    file = tmp_path / "medserve.toml"
    file.write_text('port = 9000\ndefault_model = "b"\n[[models]]\nname = "b"\npath = "b.gguf"\n')
    monkeypatch.setenv("MEDSERVE_CONFIG", str(file))
    monkeypatch.setenv("MEDSERVE_PORT", "9001")

    settings = Settings()

    assert ("b", Path("b.gguf"), 9001) == (settings.default, settings.models[0].path, settings.port)


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "70000"), ("LIMITS__IMAGE_BYTES", "0"), ("LOG_LEVEL", "loud"), ("DEFAULT_MODEL", "x")]
)
def test_a_wrong_value_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start and not in the middle of a request."""
    monkeypatch.setenv(f"MEDSERVE_{name}", value)

    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    "name", ["", "a b", "../x\n", "a;b", "../x", "a/../b", "a/..", ".", "./a", "/a", "a/", "a//b", "/"]
)
def test_a_model_name_is_made_of_harmless_characters(name: str) -> None:
    """It appears in addresses, logs and metrics, and is reached by its address whatever cleans that on the way."""
    with pytest.raises(ValidationError):
        ModelSpec(name=name)
    assert "org/model.v1:q4" == ModelSpec(name="org/model.v1:q4").name
