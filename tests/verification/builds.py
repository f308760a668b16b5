"""Builds that are right, and builds that are wrong in one thing: real engines, with the fault put in front of them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from medserve.engines import Capabilities, Engine, ShowsPicture, ShowsPrompt, Start
from medserve.generation import Chunk, GenerationRequest, LabelScores, Message, Part
from medserve.images import Image
from medserve.settings import ModelSpec, Settings

See = Callable[[Image], Image]


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
