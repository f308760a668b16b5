"""What a worker is asked to run is told by the names and meanings of the model's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.workers.transformers import folder as safetensors


@dataclass(frozen=True)
class Spec:
    """What the parent asks for. `images` is how many one request may have."""

    directory: Path
    folder: Path
    python: Path
    context: int
    slots: int
    threads: int | None
    precision: str
    device: str
    parallel: int
    images: int
    reuse: bool
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Spec":
        paths = {name: Path(said[name]) for name in ("directory", "folder", "python")}
        return cls(**{**said, **paths, "arguments": tuple(said["arguments"])})

    @property
    def weights(self) -> safetensors.Spec:
        """The same as who examines the folder is asked."""
        sizes = (self.context, self.slots, self.threads or 1)
        return safetensors.Spec(self.directory, self.folder, *sizes, precision=self.precision, reuse=self.reuse)

    @property
    def socket(self) -> Path:
        return self.directory / "http.sock"
