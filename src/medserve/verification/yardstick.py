"""What Hugging Face's own processor makes of chart and conversations, asked of a process that does nothing else."""

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve.errors import ModelFailed
from medserve.generation import Message
from medserve.process import failure, inherited
from medserve.text import neutralise
from medserve.threads import in_thread
from medserve.verification.pictures import Charted
from medserve.verification.questions import Conversation

WORKER = "medserve.workers.transformers.yardstick"
SECONDS = 300.0


@dataclass(frozen=True)
class Expected:
    """What is right: pictures as the model takes them, uint8 [size, size, 3], and prompts as it reads them.

    `prompts` have one None for each picture with its marks, `lengths` count all tokens. `sees` says whether the model
    has a vision part at all.
    """

    sees: bool
    size: int
    image_tokens: int
    pictures: tuple[NDArray[np.uint8], ...]
    prompts: tuple[tuple[int | None, ...], ...]
    lengths: tuple[int, ...]
    versions: dict[str, str]


async def expected(folder: Path, chart: Sequence[Charted], conversations: Sequence[Conversation]) -> Expected:
    """What the processor in this folder makes of both; raises ModelFailed with the reason."""
    asked = {
        "folder": str(folder),
        "pictures": [_picture(one) for one in chart],
        "conversations": [[_message(message) for message in one.messages] for one in conversations],
    }
    said = await in_thread(_ask, asked)
    if "error" in said:
        raise failure(said["error"]["code"], said["error"]["message"])
    shape = said["size"], said["size"], 3
    return Expected(
        sees=said["sees"],
        size=said["size"],
        image_tokens=said["image_tokens"],
        pictures=tuple(np.frombuffer(b64decode(one), np.uint8).reshape(shape) for one in said["pictures"]),
        prompts=tuple(tuple(ids) for ids in said["prompts"]),
        lengths=tuple(said["lengths"]),
        versions=said["versions"],
    )


def _picture(one: Charted) -> dict[str, Any]:
    if one.colours is None:
        return {"file": b64encode(one.file).decode()}
    height, width, _ = one.colours.shape
    return {"rgb": b64encode(one.colours.tobytes()).decode(), "width": width, "height": height}


def _message(message: Message) -> dict[str, Any]:
    """A turn for the template; control tokens in its words are made data, as they are for every model."""
    parts = [
        {"type": "text", "text": neutralise(part)} if isinstance(part, str) else {"type": "image"}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _ask(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", WORKER],
            input=json.dumps(asked).encode() + b"\n",
            capture_output=True,
            timeout=SECONDS,
            env=inherited(),
            check=True,
        )
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        raise ModelFailed(
            "Hugging Face's own processor, which the build is compared with, cannot be run here; install it with: "
            "pip install 'medserve[transformers]'",
            param="reference",
        ) from None
    return said
