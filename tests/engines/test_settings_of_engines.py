"""A setting that an engine has no use for is refused by its name: a wish is never ignored in silence."""

from pathlib import Path
from typing import Any

import pytest

from medserve import engines
from medserve.errors import ModelFailed
from medserve.settings import ModelSpec, Settings

pytestmark = pytest.mark.anyio

SOMEWHERE = {"path": Path("model"), "url": None}
ELSEWHERE = {"path": None, "url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("engine", "where", "setting"),
    [
        ("llama-cpp", SOMEWHERE, {"precision": "float32"}),
        ("llama-cpp", SOMEWHERE, {"device": "cpu"}),
        ("llama-cpp", SOMEWHERE, {"python": Path("python")}),
        ("transformers", SOMEWHERE, {"parallel": 2}),
        ("transformers", SOMEWHERE, {"arguments": ("--seed",)}),
        ("vllm", SOMEWHERE, {"served": "medgemma"}),
        ("vllm", ELSEWHERE, {"parallel": 2}),
        ("openai", ELSEWHERE, {"precision": "bfloat16"}),
    ],
)
async def test_a_setting_for_another_engine_is_refused(
    engine: str, where: dict[str, Any], setting: dict[str, Any]
) -> None:
    """Before anything is started or asked."""
    spec = ModelSpec(name="m", engine=engine, **where, **setting)

    with pytest.raises(ModelFailed) as refused:
        await engines.find(engine)(spec, Settings())

    assert [refused.value.param] == list(setting)
    assert engine in refused.value.message
