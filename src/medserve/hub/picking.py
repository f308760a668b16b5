"""Which engine runs what somebody names: decided by what it is, and told with the reason."""

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from medserve import engines
from medserve.errors import InvalidRequest, ModelFailed
from medserve.hub.store import Store
from medserve.settings import ModelSpec, Settings


@dataclass(frozen=True)
class Choice:
    """An engine's name, and why it was chosen."""

    engine: str
    reason: str


def choose(model: ModelSpec) -> Choice:
    """The engine for a model by what its files or its address are; the declared one where they do not tell."""
    if model.url is not None and model.path is None:
        return Choice("openai", "a server that somebody else runs answers for it")
    if model.path is not None and model.path.suffix.lower() == ".gguf":
        return Choice("llama-cpp", "GGUF files are what llama.cpp reads; it runs on this machine's processor")
    if model.path is not None and _has_safetensors(model.path):
        return Choice("transformers", "safetensors are what transformers reads")
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
    return None


def _in_folder(folder: Path) -> ModelSpec:
    name = _called(folder.resolve().name)
    if _has_safetensors(folder):
        return runnable(ModelSpec(name=name, engine="transformers", path=folder))
    found = [file for file in sorted(folder.glob("*.gguf")) if "mmproj" not in file.name.lower()]
    if len(found) != 1:
        raise InvalidRequest(
            f"{folder} holds {len(found) or 'neither safetensors nor'} GGUF files; name the one that is meant",
            param="model",
        )
    return ModelSpec(name=_called(found[0].stem), path=found[0])


def runnable(model: ModelSpec) -> ModelSpec:
    """The model as it is, once it is clear that its engine exists here; raises ModelFailed, which says what to pull."""
    if model.engine in engines.built_in() or entry_points(group="medserve.engines", name=model.engine):
        return model
    raise ModelFailed(
        f"{model.name} is a folder of safetensors, which the {model.engine} engine would run, and that is not here; "
        "pull GGUF files instead, such as: medserve pull 1.5-4b",
        param="model",
    )


def _has_safetensors(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def _called(text: str) -> str:
    """A name made of what was given, of the characters that names may have."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text).strip("-.") or "model"
