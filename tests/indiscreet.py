"""An engine of somebody else's that tells whatever it is asked, in every way that Python has; see `test_privacy`.

It is installed for a test as another distribution would be: by an entry point.
"""

import asyncio
import gc
import logging
import threading
import warnings
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import NoReturn

from medserve.engines import Capabilities
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.imaging.preprocess import VisionInput
from medserve.settings import ModelSpec, Settings

HERE = Path(__file__).parent.parent


def install(folder: Path) -> str:
    """Make a distribution in `folder` that offers this module as the engine `indiscreet`; what PYTHONPATH must hold."""
    about = folder / "indiscreet-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: indiscreet\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[medserve.engines]\nindiscreet = tests.indiscreet:start\n")
    return f"{folder}:{HERE}"


async def start(model: ModelSpec, settings: Settings) -> "Indiscreet":
    """The engine, which needs no weights."""
    return Indiscreet(model.name)


class Indiscreet:
    """It says one word, then fails and quotes its prompt."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.capabilities = Capabilities(context=100_000, vision=VisionInput(64), sight_test=False)
        self.alive = True

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        asked = " ".join(part for message in request.messages for part in message.parts if isinstance(part, str))
        logging.getLogger("indiscreet").error(asked)
        logging.getLogger("indiscreet").warning("asked: %s", asked)
        warnings.warn(asked, stacklevel=1)
        threading.Thread(target=_fail, args=(asked,)).start()
        task = asyncio.get_running_loop().create_task(_failing(asked))
        _Dropped(asked)
        if request.max_tokens > 1:
            yield Chunk(text="so ")
        await asyncio.sleep(0.01)
        del task
        gc.collect()  # now asyncio finds that nobody asked how the task ended
        raise ValueError(asked)

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        raise ValueError(str(labels))

    async def close(self) -> None:
        self.alive = False


def _fail(words: str) -> NoReturn:
    raise RuntimeError(words)


async def _failing(words: str) -> NoReturn:
    raise RuntimeError(words)


class _Dropped:
    def __init__(self, words: str) -> None:
        self._words = words

    def __del__(self) -> None:
        raise RuntimeError(self._words)
