"""Which engine runs what somebody names: decided by what it is and what the machine has, and told with the reason."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from medserve import engines, machine
from medserve.errors import InvalidRequest, ModelFailed
from medserve.hub.store import Store
from medserve.settings import ModelSpec, Settings

NEEDED = ("torch", "transformers", "accelerate", "llguidance")
"""What the transformers engine cannot do without; bitsandbytes is needed where a model is to be quantised."""
INSTALL = 'pip install "medserve[transformers]"'
LOOK = (
    "import importlib.util, json, sys\n"
    "print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))"
)
SECONDS = 60.0
"""Far more than a Python takes to start and look."""


@dataclass(frozen=True)
class Choice:
    """An engine's name, and why it was chosen."""

    engine: str
    reason: str


def choose(model: ModelSpec) -> Choice:
    """The engine for a model by what its files or its address are; the declared one where they do not tell."""
    if model.engine == "vllm" and model.url is not None:
        return Choice("vllm", "it is declared so; a vLLM that somebody else runs answers for it")
    if model.engine == "vllm":
        return Choice("vllm", "it is declared so; vLLM is started from the environment of the model's python")
    if model.url is not None and model.path is None:
        return Choice("openai", "a server that somebody else runs answers for it")
    if model.path is not None and model.path.suffix.lower() == ".gguf":
        beside = "; the safetensors beside it would run on transformers" if _has_safetensors(model.path.parent) else ""
        return Choice("llama-cpp", f"GGUF files are what llama.cpp reads; it runs on this machine's processor{beside}")
    if model.path is not None and _has_safetensors(model.path):
        beside = "; the GGUF files beside them would run on llama.cpp" if _gguf_in(model.path) else ""
        return Choice("transformers", f"safetensors are what transformers reads{beside}")
    return Choice(model.engine, "it is declared so")


def spec_of(text: str, settings: Settings) -> ModelSpec | None:
    """The model that an address, a folder or a pulled model's name means; None when the text is none of these.

    Raises ModelFailed when no engine here runs such a model, which says what to pull instead, and InvalidRequest for a
    folder without a model.
    """
    if re.match(r"https?://", text):
        url = text.rstrip("/").removesuffix("/v1")  # as clients of OpenAI's API are told; the engine adds it itself
        return ModelSpec(name=_called(url.split("://", 1)[1]), engine="openai", url=url)
    if (pulled := Store(settings.home).find(text)) is not None:
        return runnable(pulled.spec)
    if Path(text).is_dir():
        return _in_folder(Path(text))
    if text.endswith(".safetensors") and Path(text).is_file():
        return _of_safetensors(Path(text).parent)
    return None


def _in_folder(folder: Path) -> ModelSpec:
    """The model of a folder. Of one that holds it in both forms, safetensors are taken where there is a GPU."""
    found = _gguf_in(folder)
    if _has_safetensors(folder) and (not found or machine.gpus().devices):
        return _of_safetensors(folder)
    if len(found) > 1:
        raise InvalidRequest(f"{folder} holds {len(found)} GGUF files; name the one that is meant", param="model")
    if not found:
        raise InvalidRequest(
            f"{folder} holds neither a GGUF file nor safetensors with their config.json, and nothing else is loaded, "
            "pickles (.bin, .pt, .pth) least of all; name another folder, or fetch a model: medserve pull 1.5-4b",
            param="model",
        )
    return ModelSpec(name=_called(found[0].stem), path=found[0])


def _of_safetensors(folder: Path) -> ModelSpec:
    return runnable(ModelSpec(name=_called(folder.resolve().name), engine="transformers", path=folder))


def runnable(model: ModelSpec) -> ModelSpec:
    """The model as it is, once it is clear that its engine can run here; raises ModelFailed, which says what to do."""
    if model.engine not in engines.built_in() and not entry_points(group="medserve.engines", name=model.engine):
        raise ModelFailed(
            f"{model.name} is a folder of safetensors, which the {model.engine} engine would run, and that is not "
            "here; pull GGUF files instead, such as: medserve pull 1.5-4b",
            param="model",
        )
    if model.engine == "transformers" and (lacking := missing(model)):
        where = f"the Python of {model.name}" if model.python else "this Python"
        raise ModelFailed(
            f"{model.name} is a folder of safetensors, which the transformers engine runs, and {where} lacks "
            f"{', '.join(lacking)}; run: {INSTALL}, or pull GGUF files instead, such as: medserve pull 1.5-4b",
            param="model",
        )
    if model.engine == "vllm" and model.path is not None and _missing_there(_python_of(model), ("vllm",)):
        raise ModelFailed(
            f"the Python of {model.name} lacks vLLM; install it into an environment of its own and name that one's "
            "Python by `python`",
            param="python",
        )
    return model


def _python_of(model: ModelSpec) -> Path:
    return model.python or Path(sys.executable)


def missing(model: ModelSpec) -> tuple[str, ...]:
    """The packages that the transformers engine would miss for a model; nothing of them is imported."""
    names = (*NEEDED, "bitsandbytes") if model.quantise else NEEDED
    if model.python is not None:
        return _missing_there(model.python, names)
    return tuple(name for name in names if find_spec(name) is None)


@cache
def _missing_there(python: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The same of another Python, which is asked; raises ModelFailed when it is none."""
    try:
        done = subprocess.run([str(python), "-c", LOOK, *names], capture_output=True, timeout=SECONDS, check=True)
        return tuple(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ModelFailed("the model's `python` cannot be run; check the setting", param="python") from None


def _has_safetensors(folder: Path) -> bool:
    return folder.is_dir() and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _gguf_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder that are weights."""
    return [file for file in sorted(folder.glob("*.gguf")) if "mmproj" not in file.name.lower()]


def _called(text: str) -> str:
    """A name made of what was given, of the characters that names may have."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text).strip("-.") or "model"
