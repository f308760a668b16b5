"""Builds that are right, and builds that are wrong in one thing: real engines, with the fault put in front of them.

Each fault is planted otherwise than `medserve.verification.causes` plants it, which is what is held against them.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL.Image

from medserve.certificates import Certificate
from medserve.engines import Capabilities, Engine, ShowsPicture, ShowsPrompt, Start, transformers
from medserve.generation import Chunk, GenerationRequest, LabelScores, Message, Part
from medserve.images import Image
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings
from medserve.verification import Order, pictures, verify, yardstick
from medserve.verification.causes import SERVING

See = Callable[[Image], Image]
REFERENCE = ModelSpec(
    name="reference", engine="transformers", path=DEMO, context=2048, threads=1, slots=1, precision="float32"
)
"""The demonstration model as everything is held against it."""


class Lent:
    """An engine that somebody else closes; `sees` is what becomes of every picture on its way into the model.

    With `hands` too, what the engine says that it hands over changes alike, as when the gateway itself were wrong.
    """

    def __init__(self, engine: Engine, sees: See | None = None, *, hands: bool = False) -> None:
        self._engine = engine
        self._sees = sees or (lambda image: image)
        self._hands = hands
        self.name = engine.name
        self.capabilities: Capabilities = engine.capabilities
        self.alive = True

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        async for chunk in self._engine.stream(self._seen(request)):
            yield chunk

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        return await self._engine.score(self._seen(request), labels)

    async def shown(self, image: Image) -> bytes:
        assert isinstance(self._engine, ShowsPicture)
        return await self._engine.shown(self._sees(image) if self._hands else image)

    async def prompt_ids(self, request: GenerationRequest) -> tuple[int | None, ...]:
        assert isinstance(self._engine, ShowsPrompt)
        return await self._engine.prompt_ids(request)

    async def close(self) -> None:
        """Whoever lent it closes it."""

    def _seen(self, request: GenerationRequest) -> GenerationRequest:
        def part(one: Part) -> Part:
            return self._sees(one) if isinstance(one, Image) else one

        messages = tuple(Message(one.role, tuple(map(part, one.parts))) for one in request.messages)
        return replace(request, messages=messages)


class Remembering(Lent):
    """An engine that is asked everything once: in float32 it would say the same again."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._said: dict[tuple[object, ...], LabelScores] = {}

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        key = (request.messages, tuple(labels))
        if key not in self._said:
            self._said[key] = await super().score(request, labels)
        return self._said[key]


class Wordy(Lent):
    """An engine that neither scores labels nor shows what it hands over, as a server of somebody else's."""

    shown = None  # type: ignore[assignment]
    prompt_ids = None  # type: ignore[assignment]

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.capabilities = replace(engine.capabilities, score=False)


def lending(engine: Engine) -> Start:
    """Starts nothing, and gives the engine that there is."""

    async def start(_model: ModelSpec, _settings: Settings) -> Engine:
        return engine

    return start


# --- faults ----------------------------------------------------------------------------------------------------------


def reversed_colours(image: Image) -> Image:
    """Red and blue exchanged."""
    return Image(np.ascontiguousarray(image.pixels[..., ::-1]), image.source)


def squashed(image: Image) -> Image:
    """Square, whatever it was."""
    pixels = np.asarray(PIL.Image.fromarray(image.pixels).resize((256, 256)))
    return Image(pixels, replace(image.source, width=256, height=256))


WINDOWS: Mapping[str, Sequence[tuple[int, int]]] = {
    "ct_window_of_serving_code": SERVING,
    "ct_window_single": ((-160, 240),) * 3,
}


async def planted(fault: str) -> See:
    """What becomes of a picture by the fault of this name; other windows are for the drawn slices alone."""
    if fault in WINDOWS:
        return await _through(WINDOWS[fault])
    return {"colours_reversed": reversed_colours, "aspect_squashed": squashed}[fault]


async def _through(windows: Sequence[tuple[int, int]]) -> See:
    known = {}
    for shown in await pictures.slices(Settings().limits):
        assert shown.values is not None
        scaled = [np.clip((shown.values.astype(float) - low) / (high - low), 0, 1) for low, high in windows]
        known[shown.image.sha256] = Image(np.round(np.stack(scaled, -1) * 255).astype(np.uint8), shown.image.source)
    return lambda image: known.get(image.sha256, image)


# --- what they are held against --------------------------------------------------------------------------------------


@asynccontextmanager
async def reference(*, causal_images: bool = False) -> AsyncIterator[Engine]:
    """The reference, right or with its pictures masked as text is; it is asked everything once."""
    engine = await transformers.launch(REFERENCE, Settings(), causal_images=causal_images)
    try:
        yield Remembering(engine)
    finally:
        await engine.close()


@contextmanager
def processor_asked_once() -> Iterator[None]:
    """Hugging Face's processor is asked once about the same: the process that asks it takes seconds to start."""
    said: dict[str, dict[str, Any]] = {}
    ask = yardstick._ask

    def once(asked: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(asked)
        if key not in said:
            said[key] = ask(asked)
        return said[key]

    with patch.object(yardstick, "_ask", once):
        yield


class Verifying:
    """Verifies a build against engines that are there already; certificates are kept in `home`."""

    def __init__(self, right: Engine, causal: Engine, home: Path) -> None:
        self._engines = {False: right, True: causal}
        self.settings = Settings(home=home)

    async def launch(self, _model: ModelSpec, _settings: Settings, *, causal_images: bool = False) -> Engine:
        return self._engines[causal_images]

    async def __call__(self, build: Engine, *, model: ModelSpec = DEMO_MODEL, **order: object) -> Certificate:
        wanted = Order(model, **{"count": 12, **order})  # type: ignore[arg-type]
        return await verify(wanted, self.settings, start=lending(build), launch=self.launch)
