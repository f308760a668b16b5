"""Where the reference lies is found, or it is said what to pull."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from medserve.errors import InvalidRequest
from medserve.hub.store import Pulled, PulledFile, Store
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings
from medserve.verification.reference import folder_of


def pulled(home: Path, name: str, form: Literal["gguf", "safetensors"], path: Path, short: str = "4b") -> None:
    """A model as if it had been pulled."""
    Store(home).write(
        Pulled(
            name=name,
            format=form,
            path=path,
            files=(PulledFile(path=path, bytes=1, sha256="0" * 64),),
            short=short,
            pulled=datetime.now(UTC),
        )
    )


def test_the_demonstration_model_s_reference_is_shipped(tmp_path: Path) -> None:
    """The same weights, in the same folder."""
    assert DEMO == folder_of(DEMO_MODEL, Settings(home=tmp_path), None)


def test_safetensors_are_their_own_reference(tmp_path: Path) -> None:
    """Another engine, or the same one, is held against them."""
    assert DEMO == folder_of(ModelSpec(name="any", engine="vllm", path=DEMO), Settings(home=tmp_path), None)


def test_the_safetensors_of_the_same_member_of_the_family_serve(tmp_path: Path) -> None:
    """Pulled under another name."""
    gguf = tmp_path / "medgemma-4b-it-Q4_K_M.gguf"
    pulled(tmp_path, "medgemma-4b", "gguf", gguf)
    pulled(tmp_path, "medgemma-4b-it", "safetensors", DEMO)

    assert DEMO == folder_of(ModelSpec(name="medgemma-4b", path=gguf), Settings(home=tmp_path), None)


def test_another_member_s_safetensors_do_not_serve(tmp_path: Path) -> None:
    """What to pull is named."""
    gguf = tmp_path / "medgemma-4b-it-Q4_K_M.gguf"
    pulled(tmp_path, "medgemma-4b", "gguf", gguf)
    pulled(tmp_path, "medgemma-1.5-4b-it", "safetensors", DEMO, short="1.5-4b")

    with pytest.raises(InvalidRequest, match="medserve pull google/medgemma-4b-it") as refused:
        folder_of(ModelSpec(name="medgemma-4b", path=gguf), Settings(home=tmp_path), None)

    assert "reference" == refused.value.param


def test_a_folder_that_is_given_must_hold_weights(tmp_path: Path) -> None:
    """It is believed otherwise."""
    assert DEMO == folder_of(ModelSpec(name="any", url="http://127.0.0.1:1"), Settings(home=tmp_path), DEMO)
    with pytest.raises(InvalidRequest, match="no folder with safetensors"):
        folder_of(DEMO_MODEL, Settings(home=tmp_path), tmp_path)
