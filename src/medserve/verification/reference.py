"""Where the reference is: the same model's weights in safetensors, which transformers runs as they were meant."""

from collections.abc import Iterator
from pathlib import Path

from medserve.errors import InvalidRequest
from medserve.hub.family import FAMILY, short_name
from medserve.hub.store import Store
from medserve.settings import DEMO, ModelSpec, Settings


def folder_of(model: ModelSpec, settings: Settings, given: Path | None) -> Path:
    """The folder of the safetensors of a model; raises InvalidRequest, which says what to give or pull.

    `given` is believed. Else the model's own folder serves, the demonstration's for the demonstration model, or the
    safetensors that were pulled of the same member of MedGemma's family.
    """
    if given is not None:
        if not _holds_weights(given):
            raise InvalidRequest(
                "--reference names no folder with safetensors and a config.json; give the model's own",
                param="reference",
            )
        return given
    for folder in _candidates(model, settings):
        if _holds_weights(folder):
            return folder
    raise InvalidRequest(
        f"there are no safetensors of {model.name} to compare it with; {_remedy(model, settings)}", param="reference"
    )


def _candidates(model: ModelSpec, settings: Settings) -> Iterator[Path]:
    if model.path is not None:
        yield model.path
        if model.path.parent == DEMO:
            yield DEMO
    short = _short(model, settings)
    for pulled in Store(settings.home).kept().models:
        if short and pulled.short == short and pulled.format == "safetensors":
            yield pulled.path


def _holds_weights(folder: Path) -> bool:
    return folder.is_dir() and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _short(model: ModelSpec, settings: Settings) -> str | None:
    """Which member of the family a model is, by how it was pulled or by its name."""
    pulled = Store(settings.home).find(model.name)
    if pulled is not None and pulled.short:
        return pulled.short
    return short_name(model.served or model.name)


def _remedy(model: ModelSpec, settings: Settings) -> str:
    short = _short(model, settings)
    pull = FAMILY[short].safetensors if short else "google/medgemma-1.5-4b-it"
    return f"name their folder with --reference, or fetch them, such as: medserve pull {pull}"
