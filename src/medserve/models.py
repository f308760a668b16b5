"""Which models exist and what state each is in: told apart honestly, loaded once, retried with pauses."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from time import monotonic, time
from typing import TypeVar

import structlog

from medserve import engines, planning, sight
from medserve.engines import Capabilities, Counts, Engine, Start
from medserve.errors import EngineError, MedserveError, ModelBlind, ModelFailed, ModelLoading, UnknownModel
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.imaging import raster
from medserve.settings import ModelSpec, Settings

log = structlog.get_logger()

UNKNOWN_IMAGE_TOKENS = 256
"""What a picture is taken to cost where a server does not say it: MedGemma's number."""


MOST_RETRY_SECONDS = 900.0
DOUBLINGS = 30
"""More of them change nothing, and a float holds them."""

E = TypeVar("E", bound=MedserveError)


class State(StrEnum):
    """Where a model is in its life."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """A model's state as everyone may see it. `blind` says why it is refused for image work although it is ready.

    `error` says why the last load failed, and `attempts` how many loads there were since the model was last ready.
    """

    name: str
    state: State
    since: float
    engine: str
    error: str | None = None
    blind: str | None = None
    load_seconds: float | None = None
    attempts: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


class ModelHandle:
    """A declared model; an engine that loads itself when first asked, and says why when it cannot.

    After a crash of its worker the next request loads it anew. After a failed load every request gets the reason at
    once; the first one after `limits.retry_seconds` tries again, and each further failure doubles that time, up to
    MOST_RETRY_SECONDS. `status` counts the attempts. `clock` tells seconds that never go back.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        start: Start | None = None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.spec = spec
        self._settings = settings
        self._start = start or engines.find(spec.engine)
        self._engine: Engine | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._clock = clock
        self._attempts = 0
        self._retry_at = 0.0
        # Never raised themselves, only copies: a raised error holds its traceback, and with it a request's pictures.
        self._error: MedserveError | None = None
        self._blind: ModelBlind | None = None
        self._since = time()
        self._load_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> State:
        if self._engine is not None:
            return State.READY if self._engine.alive else State.COLD
        if self._loading is not None:
            return State.LOADING
        return State.FAILED if self._error else State.COLD

    @property
    def status(self) -> Status:
        return Status(
            name=self.name,
            state=self.state,
            since=self._since,
            engine=self.spec.engine,
            error=self._error.message if self._error else None,
            blind=self._blind.message if self._blind else None,
            load_seconds=self._load_seconds,
            attempts=self._attempts,
            facts=dict(self._engine.capabilities.facts) if self._engine else {},
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the loaded model can do; raises ModelLoading while there is none."""
        if self._engine is None:
            raise ModelLoading(f"{self.name} is not loaded yet", param="model")
        return self._engine.capabilities

    @property
    def alive(self) -> bool:
        return self.state is State.READY

    async def ready(self) -> Engine:
        """The loaded engine, loading it first where needed; raises ModelFailed with the reason when it cannot be."""
        if self._engine is not None and self._engine.alive:
            return self._engine
        if self._loading is None:
            self._refuse_too_early()
            self._since = time()
            self._loading = asyncio.create_task(self._load(), name=f"load {self.name}")
        return await asyncio.shield(self._loading)

    def _refuse_too_early(self) -> None:
        """Raise the reason of a failed load for as long as it is too early to try again."""
        left = self._retry_at - self._clock()
        if self._error is not None and left > 0:
            raise _copied(self._error, f"; a request may try again in {ceil(left)} seconds")

    def _failed(self, error: MedserveError) -> None:
        """Keep the reason, and put off the next attempt."""
        self._error = _copied(error)
        seconds = self._settings.limits.retry_seconds * 2 ** min(self._attempts - 1, DOUBLINGS)
        self._retry_at = self._clock() + min(seconds, MOST_RETRY_SECONDS)

    async def _load(self) -> Engine:
        if self._engine is not None:
            log.warning("model.crashed", model=self.name)  # nothing else ends an engine that was not dropped
        await self._drop()
        self._attempts += 1
        log.info("model.loading", model=self.name, engine=self.spec.engine, attempt=self._attempts)
        try:
            engine = await self._start(self.spec, self._settings)
            self._blind = await self._blindness(engine)
        except MedserveError as error:
            self._failed(error)
            log.error("model.failed", model=self.name, code=error.code, reason=error.message)
            raise
        except Exception as error:
            log.exception("model.failed", model=self.name)
            failure = ModelFailed(f"{self.name} could not be loaded: {type(error).__name__}", param="model")
            self._failed(failure)
            raise failure from error
        finally:
            self._loading = None
            self._load_seconds = time() - self._since
            self._since = time()
        self._engine = engine
        self._error, self._attempts = None, 0
        log.info("model.ready", model=self.name, seconds=round(self._load_seconds, 2), sees=self._blind is None)
        return engine

    async def _blindness(self, engine: Engine) -> ModelBlind | None:
        """The sight test of an engine that takes images: None when it sees, else why it does not."""
        if engine.capabilities.vision is None or not engine.capabilities.sight_test:
            return None
        try:
            first, second = [await raster.read(path.read_bytes(), self._settings.limits) for path in sight.DRAWINGS]
            await sight.check(engine, (first, second))
        except ModelBlind as blind:
            log.error("model.blind", model=self.name, reason=blind.message)
            return _copied(blind)
        except BaseException:
            await engine.close()
            raise
        return None

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Answer with the loaded engine; see `Engine.stream`."""
        engine = await self._for(request)
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """Score with the loaded engine; see `Engine.score`."""
        return await (await self._for(request)).score(request, labels)

    async def _for(self, request: GenerationRequest) -> Engine:
        """The engine that will answer; the one place where a request is held against what the model can take."""
        engine = await self.ready()
        if request.images and self._blind is not None:
            raise _copied(self._blind)
        able = engine.capabilities
        await planning.check(
            request,
            context=able.context,
            image_tokens=able.image_tokens or UNKNOWN_IMAGE_TOKENS,
            count=engine.count if isinstance(engine, Counts) else None,
        )
        return engine

    async def close(self) -> None:
        """Stop loading and give back everything; the model is cold afterwards."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError, MedserveError):
                await self._loading
        await self._drop()

    async def _drop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(EngineError):
                await engine.close()


def _copied(error: E, more: str = "") -> E:
    """An error of the same kind and words, and `more` after them, that no traceback hangs on."""
    return type(error)(error.message + more, param=error.param)


class Models:
    """All declared models by name."""

    def __init__(self, settings: Settings) -> None:
        self._handles = {spec.name: ModelHandle(spec, settings) for spec in settings.models}
        self._default = settings.default
        self._preload: asyncio.Task[None] | None = None

    def get(self, name: str | None = None) -> ModelHandle:
        """The model of that name, or the default; raises UnknownModel, which says which names exist."""
        try:
            return self._handles[name or self._default]
        except KeyError:
            known = ", ".join(self._handles)
            raise UnknownModel(f"no model is called {name!r}; there are: {known}", param="model") from None

    def __iter__(self) -> Iterator[ModelHandle]:
        return iter(self._handles.values())

    def preload(self) -> None:
        """Begin to load the default model in the background; a failure is kept in its state."""
        self._preload = asyncio.create_task(_attempt(self.get()))

    async def close(self) -> None:
        await asyncio.gather(*(handle.close() for handle in self))


async def _attempt(handle: ModelHandle) -> None:
    with suppress(MedserveError):
        await handle.ready()
