"""The models that were pulled: one small JSON file for each, which says where its files are and what they hash to."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from medserve import outputs
from medserve.errors import InvalidRequest, UnknownModel
from medserve.hub.family import short_name
from medserve.settings import ModelSpec, Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A pulled model's name is also its file's: no separator, and no dot at the beginning."""


class PulledFile(BaseModel):
    """A file of a model: where it lies, its size in bytes, and the SHA-256 that was computed when it was pulled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    bytes: int
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Pulled(BaseModel):
    """A model that was pulled. `path` is a GGUF file or a folder of safetensors, `projector` its vision part.

    `choices` are the other quantisations that the repository had, with their bytes, the smallest first: what could be
    pulled instead where this one does not fit. `repo` and `revision` are empty for files of one's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=NAME)]
    format: Literal["gguf", "safetensors"]
    path: Path
    projector: Path | None = None
    files: tuple[PulledFile, ...]
    repo: str = ""
    revision: str = ""
    short: Annotated[str, Field(description="the short name that it was pulled by")] = ""
    quant: str = ""
    licence: Annotated[str, Field(description="the page of its terms")] = ""
    choices: tuple[tuple[str, int], ...] = ()
    pulled: datetime

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def spec(self) -> ModelSpec:
        """The model as it is declared."""
        engine = "llama-cpp" if self.format == "gguf" else "transformers"
        return ModelSpec(name=self.name, engine=engine, path=self.path, projector=self.projector)


@dataclass(frozen=True)
class Kept:
    """The pulled models, the latest first, and a sentence for every file that cannot be read as one."""

    models: tuple[Pulled, ...]
    faults: tuple[str, ...]


class Store:
    """The folder where pulled models are told of: `models` in the home of the settings."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "models"

    def kept(self) -> Kept:
        """All that is there; a file that is damaged hides no other."""
        models: list[Pulled] = []
        faults: list[str] = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                model = Pulled.model_validate_json(file.read_bytes())
            except (OSError, ValidationError):
                faults.append(f"{file} is no record of a pulled model; remove it and pull the model again")
            else:
                models.append(model)
        return Kept(tuple(sorted(models, key=lambda model: model.pulled, reverse=True)), tuple(faults))

    def find(self, text: str) -> Pulled | None:
        """The model of that name; else, of those that a short name (4b, medgemma-4b) means, the one pulled last."""
        models = self.kept().models
        short = short_name(text)
        named = [model for model in models if model.name == text]
        return next(iter(named or (model for model in models if short and model.short == short)), None)

    def require(self, text: str) -> Pulled:
        """As `find`; raises UnknownModel, which says what there is."""
        if (found := self.find(text)) is None:
            names = ", ".join(model.name for model in self.kept().models) or "none"
            raise UnknownModel(f"no pulled model is called {text!r}; pulled are: {names}", param="name")
        return found

    def prepared(self) -> None:
        """See to it that a model can be recorded, before it is downloaded; raises InvalidRequest where it cannot."""
        outputs.kept_in(self._home, "models")

    def write(self, model: Pulled) -> None:
        """Record a model, whole or not at all; the folder is for this user only."""
        self.prepared()
        with NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
            file.write(model.model_dump_json(indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._folder / f"{model.name}.json")

    def free(self, name: str, repo: str, path: Path) -> None:
        """Raises InvalidRequest when the name is taken by a model of another origin."""
        held = next((model for model in self.kept().models if model.name == name), None)
        if held is not None and (held.repo != repo or (not repo and held.path != path)):
            raise InvalidRequest(
                f"a model called {name} was pulled from elsewhere; choose another name with --name, or remove it with: "
                f"medserve rm {name}",
                param="name",
            )

    def remove(self, model: Pulled) -> int:
        """Forget a model and delete what was downloaded for it; the bytes that this freed.

        Files of one's own and files that another pulled model needs stay.
        """
        others = [other for other in self.kept().models if other.name != model.name]
        (self._folder / f"{model.name}.json").unlink(missing_ok=True)
        if not model.repo:
            return 0
        needed = {file.path for other in others for file in other.files}
        return sum(_delete(file.path) for file in model.files if file.path not in needed)


def _delete(pointer: Path) -> int:
    """Remove a file of the cache, and what it points to once nothing else does; the bytes that this freed."""
    try:
        content, size = pointer.resolve(), pointer.stat().st_size
    except OSError:  # the cache was emptied by somebody else
        pointer.unlink(missing_ok=True)
        return 0
    pointer.unlink()
    if content == pointer.absolute():
        return size
    snapshots = content.parent.parent / "snapshots"
    if content.parent.name != "blobs" or any(other.resolve() == content for other in snapshots.rglob("*")):
        return 0
    content.unlink()
    return size


def declared(settings: Settings) -> Settings:
    """The settings with every pulled model among their models; one that they declare by the same name stands."""
    names = {spec.name for spec in settings.models}
    pulled = [model.spec for model in Store(settings.home).kept().models if model.name not in names]
    return settings.model_copy(update={"models": (*settings.models, *pulled)}) if pulled else settings
