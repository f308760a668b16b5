"""What a model takes of memory, read from the headers of its files by a process that loads nothing and ends.

The numbers are the very ones by which the engine's worker asks for room: weights and vision part, what the slots keep
of what they have read (KV), and room to compute in. Files from elsewhere are never parsed in this process.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.errors import ModelFailed
from medserve.process import failure, inherited
from medserve.residency import size

SECONDS = 60.0
"""Far more than headers take, or to import torch; a disk that is asleep or far away may need some of it."""
UNREAD = "what it needs could not be found out; check its files and the packages of its python"


@dataclass(frozen=True)
class Need:
    """Bytes of memory by what takes them; `cache` is for `context` tokens in every slot.

    Of safetensors also: the precision they are computed in, whether the memory is that of the GPUs, and settings that
    take less, with the bytes of each, the nearest first. `room` is what those GPUs have, 0 where they were not asked.
    """

    weights: int
    vision: int
    cache: int
    working: int
    context: int
    precision: str = ""
    gpu: bool = False
    smaller: tuple[tuple[str, int], ...] = ()
    room: int = 0

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Need":
        """What a reader of headers said."""
        return cls(**{**said, "smaller": tuple((setting, taken) for setting, taken in said.get("smaller", ()))})

    @property
    def total(self) -> int:
        return self.weights + self.vision + self.cache + self.working

    @property
    def words(self) -> str:
        """The sum and its parts."""
        precision = f" ({self.precision})" if self.precision else ""
        parts = (
            (self.weights, f"weights {size(self.weights)}{precision}"),
            (self.vision, f"vision {size(self.vision)}"),
            (self.cache, f"KV {size(self.cache)} (context {self.context})"),
            (self.working, f"working {size(self.working)}"),
        )
        told = ", ".join(words for taken, words in parts if taken)
        return f"{size(self.total)} of {'GPU ' if self.gpu else ''}memory: {told}"


def asked(reader: str, order: Mapping[str, Any], *, python: Path | None = None) -> dict[str, Any]:
    """What a module says of what a worker would be told, run as a process of its own. Blocking.

    Raises ModelFailed with the module's own reason, and with none where it failed unforeseen.
    """
    try:
        done = subprocess.run(
            [str(python or sys.executable), "-P", "-m", reader],
            input=json.dumps({**order, "directory": ""}).encode() + b"\n",
            capture_output=True,
            timeout=SECONDS,
            env=inherited(),
            check=True,
        )
        said: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ModelFailed(UNREAD, param="model") from None
    if error := said.get("error"):
        raise failure(error["code"], error["message"])
    return said
