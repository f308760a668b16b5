"""Which models exist and what state each is in: told apart honestly, loaded when asked, unloaded when not needed.

A model is cold, loading, ready or failed. It leaves `ready` when it has been idle for its time, when another needs its
memory, when a person says so, or when its worker ends; it is never taken from under a request that it works on.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil
from pathlib import Path
from time import monotonic, time
from typing import Any, TypeVar

import structlog
from structlog.contextvars import clear_contextvars

from medserve import engines, metrics, observation, planning, process, sight, thinking
from medserve.engines import Capabilities, Counts, Engine, HasPlaces, HasWorker, Start
from medserve.errors import (
    InvalidRequest,
    MedserveError,
    MemoryShort,
    ModelBlind,
    ModelBusy,
    ModelFailed,
    ModelLoading,
    UnknownModel,
    WorkerCrashed,
)
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.imaging import raster
from medserve.places import Places
from medserve.process import Progress
from medserve.residency import Room
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

log = structlog.get_logger()

UNKNOWN_IMAGE_TOKENS = 256
"""What a picture is taken to cost where a server does not say it: MedGemma's number."""


MOST_RETRY_SECONDS = 900.0
DOUBLINGS = 30
"""More of them change nothing, and a float holds them."""
CRASH_SECONDS = 2.0
"""The pause after a second crash in a row; the first has none, each further one doubles it."""
CALM_SECONDS = 300.0
"""A worker that lived so long without work is not one that dies of being loaded."""
LOOK_SECONDS = 10.0
"""How often, at most, it is looked after an answer whether the models have outgrown their room."""

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

    `since` is when this state began and `idle_since` since when nobody has used a loaded model, in Unix seconds. `code`
    says of which kind a failure is, as errors do.
    `error` says why the last load failed or the worker ended; `attempts` how many loads there were since the model was
    last ready, `crashes` how often its worker ended since it last answered, and `retry_seconds` when a request may try
    again. While it loads, `stage` says in words what is being done, `progress` how much of that is done, 0 to 1 where
    it can be measured, and `elapsed` the seconds so far. `memory_bytes` is what its process held when it was last
    looked at.
    """

    name: str
    state: State
    since: float
    engine: str
    error: str | None = None
    code: str | None = None
    blind: str | None = None
    load_seconds: float | None = None
    attempts: int = 0
    crashes: int = 0
    retry_seconds: float | None = None
    stage: str | None = None
    progress: float | None = None
    elapsed: float | None = None
    memory_bytes: int | None = None
    answering: int = 0
    waiting: int = 0
    slots: int = 1
    pinned: bool = False
    idle_since: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


class ModelHandle:
    """A model; an engine that loads itself when first asked, and says why when it cannot.

    A request takes a lease on the model for as long as it lasts, waiting included: what is leased is not unloaded.

    After a failed load every request gets the reason at once; the first one after `limits.retry_seconds` tries again,
    and each further failure doubles that time, up to MOST_RETRY_SECONDS. After a crash of its worker the next request
    loads it anew at once; when it crashes again before it has answered anything, the pause begins at CRASH_SECONDS and
    doubles. `kept` models do not wait for a request, but load again by themselves after the same pauses. `clock` tells
    seconds that never go back.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        start: Start | None = None,
        *,
        room: Room | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.spec = spec
        self.kept = False
        self._settings = settings
        self._start = start or engines.find(spec.engine)
        self._room = room or Room(settings.limits.memory_bytes)
        self._clock = clock
        self._engine: Engine | None = None
        self._capabilities: Capabilities | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._removed = False
        # Who uses it and who waits for it.
        self._places = Places(spec.slots, spec.waiting)  # for engines that keep none of their own
        self._leases = 0
        self._expecting = 0
        self._rested: float | None = None
        self._idle_since: float | None = None
        self._looked = clock()
        # How loads go and went. Errors kept here are never raised themselves, only copies: a raised error holds its
        # traceback, and with it a request's pictures.
        self._progress = Progress("")
        self._started = 0.0
        self._attempts = 0
        self._crashes = 0
        self._retry_at = 0.0
        self._error: MedserveError | None = None
        self._note: str | None = None
        self._blind: ModelBlind | None = None
        self._since = time()
        self._load_seconds: float | None = None
        self._loaded_at = 0.0
        self._file_bytes = self._estimate = self._heaviest = 0

    # --- what is known of it ---------------------------------------------------------------------------------------

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
        state, places = self.state, self._places_now
        loading = state is State.LOADING
        return Status(
            name=self.name,
            state=state,
            since=self._since,
            engine=self.spec.engine,
            error=self._error.message if self._error else self._note,
            code=self._error.code if self._error else None,
            blind=self._blind.message if self._blind else None,
            load_seconds=self._load_seconds,
            attempts=self._attempts,
            crashes=self._crashes,
            retry_seconds=self._pause if state is State.FAILED else None,
            stage=self._progress.stage or None if loading else None,
            progress=self._progress.done if loading else None,
            elapsed=self._clock() - self._started if loading else None,
            memory_bytes=self._room.weight(self) if state is State.READY else None,
            answering=places.answering,
            waiting=places.waiting + self._expecting,
            slots=self.spec.slots,
            pinned=self.spec.pinned,
            idle_since=self._idle_since if state is State.READY else None,
            facts=dict(self._engine.capabilities.facts) if self._engine else {},
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the model could do when it was last loaded; raises ModelLoading when it never was."""
        if self._capabilities is None:
            raise ModelLoading(f"{self.name} is not loaded yet", param="model", retry_after=self.loaded_in)
        return self._capabilities

    @property
    def alive(self) -> bool:
        return self.state is State.READY

    @property
    def accepting(self) -> bool:
        """Whether a request would be answered: the model is loaded, or at rest, from where the request loads it."""
        return self.alive or (self.state is State.COLD and self._engine is None)

    @property
    def pid(self) -> int | None:
        """The process of the loaded model; None where it has none of its own."""
        worker: object = self._engine
        return worker.pid if isinstance(worker, HasWorker) else None

    @property
    def loaded_in(self) -> float | None:
        """How many more seconds a load is likely to take, going by the last one; None where nothing is known."""
        if self._loading is None or self._load_seconds is None:
            return None
        return max(1.0, self._load_seconds - (self._clock() - self._started))

    @property
    def resting_since(self) -> float | None:
        """See `Resident`."""
        if self._closing is not None:
            return 0.0  # it is on its way out already
        return self._rested if self._engine is not None and not self._leases and not self.spec.pinned else None

    @property
    def free_in(self) -> float | None:
        """See `Resident`."""
        if self.spec.pinned:
            return None
        return self._places_now.seconds(self._leases) if self._engine is not None else self.loaded_in

    @property
    def _places_now(self) -> Places:
        waited: object = self._engine
        return waited.places if isinstance(waited, HasPlaces) else self._places

    @property
    def _pause(self) -> float:
        """Seconds until a load may be tried again."""
        return max(0.0, self._retry_at - self._clock())

    async def weigh(self) -> None:
        """Look again at the memory that the model holds, which `status` then tells."""
        if self.alive:
            await self._room.settle(self)
            self._heaviest = max(self._heaviest, self._room.weight(self) or 0)

    # --- loading ---------------------------------------------------------------------------------------------------

    async def ready(self) -> Engine:
        """The loaded engine, loading it first where needed; raises ModelError with the reason when it cannot be.

        No more requests wait for a load than may wait for an answer; who comes beyond that gets ModelBusy.
        """
        if self._engine is not None and self._engine.alive:
            return self._engine
        if self._engine is not None:
            self._crashed()
        if self._loading is None:
            self.refuse_too_early()
            self._load_now()
        if self._expecting >= self.spec.slots + self.spec.waiting:
            raise ModelBusy(
                f"{self.name} is loading and {self._expecting} requests wait for it, as many as may; come again later",
                retry_after=self.loaded_in,
            )
        self._expecting += 1
        try:
            return await self._loaded()
        finally:
            self._expecting -= 1

    def begin(self) -> None:
        """Load in the background; nothing is done when it is ready, loading, or may not be tried again yet."""
        if self._engine is not None and not self._engine.alive:
            self._crashed()
        if self.state in {State.COLD, State.FAILED} and not self._pause and not self._removed:
            self._load_now()

    def retry(self) -> None:
        """Forget failures and crashes, and load in the background."""
        if self.state in {State.COLD, State.FAILED}:
            self._forget()
            self.begin()

    async def _loaded(self) -> Engine:
        """Wait for the load that goes on; that it is ended by a person is no cancellation of who waits."""
        assert self._loading is not None  # noqa: S101 - the caller has seen it
        loading, waiter = self._loading, asyncio.current_task()
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled() and not (waiter and waiter.cancelling()):
                raise ModelLoading(f"{self.name} was unloaded while it loaded; ask again", param="model") from None
            raise

    def refuse_full(self) -> None:
        """Raise ModelBusy when a request would find no room to wait in; before anything is done for it."""
        if self.alive:
            self._places_now.refuse_full()

    def refuse_too_early(self) -> None:
        """Raise the reason of a failed load for as long as a request may not try again, and of a removed model ever."""
        if self._removed:
            raise UnknownModel(f"{self.name} was removed", param="model")
        if self._error is not None and (left := self._pause):
            raise _copied(self._error, f"; a request may try again in {ceil(left)} seconds", retry_after=left)

    def _load_now(self) -> None:
        self._since, self._started = time(), self._clock()
        self._progress = Progress("beginning")
        self._loading = asyncio.create_task(self._load(), name=f"load {self.name}")
        self._loading.add_done_callback(_looked_at)

    async def _load(self) -> Engine:
        self._attempts += 1
        crashes = self._crashes
        log.info("model.loading", model=self.name, engine=self.spec.engine, attempt=self._attempts)
        try:
            engine = await self._in_time()
        except MemoryShort as error:
            self._attempts -= 1  # there is nothing wrong with it
            self._note = error.message
            log.warning("model.no_room", model=self.name, reason=error.message)
            raise
        except MedserveError as error:
            self._failed(error)
            metrics.load_failed(self.name, error.code)
            log.error("model.failed", model=self.name, code=error.code, reason=error.message)
            error.retry_after = self._pause
            raise
        except Exception as error:
            metrics.load_failed(self.name, ModelFailed.code)
            log.exception("model.failed", model=self.name)
            failure = ModelFailed(f"{self.name} could not be loaded: {type(error).__name__}", param="model")
            self._failed(failure)
            failure.retry_after = self._pause
            raise failure from error
        finally:
            self._loading = None
            self._since = time()
            if self._engine is None and self._closing is None:  # else a worker before this one still holds memory
                self._room.give(self)
        if self._crashes > crashes:
            raise self._crashed_at_once()
        metrics.loaded(self.name, self._load_seconds or 0.0)
        sees = self._blind is None and engine.capabilities.vision is not None
        log.info("model.ready", model=self.name, seconds=round(self._load_seconds or 0, 2), sees=sees)
        return engine

    def _crashed_at_once(self) -> WorkerCrashed:
        """What those who waited for a load are told whose worker ended before it was over; one that is kept goes on."""
        if self.kept:
            self.begin()  # while that load went on, none could be begun
        return WorkerCrashed(f"the worker of {self.name} ended as soon as it was loaded; ask again", param="model")

    async def _in_time(self) -> Engine:
        """The engine, started and tested within `limits.load_seconds`, whatever it may hang on."""
        seconds = self._settings.limits.load_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._started_and_tested()
        except TimeoutError:
            if not limit.expired():
                raise
            raise ModelFailed(
                f"{self.name} was not loaded within {seconds:g} seconds, at the stage: {self._progress.stage}; raise "
                "limits.load_seconds if it needs longer",
                param="model",
            ) from None

    async def _started_and_tested(self) -> Engine:
        await self._left()
        process.ONLOOKER.set(_Onlooker(self))
        files = await in_thread(_file_bytes, self.spec)
        if files != self._file_bytes:  # other weights under the same name: what the old ones took says nothing
            self._file_bytes, self._estimate, self._heaviest = files, files, 0
        if self._need:
            await self._make_room(0)  # before a worker is started for nothing
        self._progress = Progress("starting")
        engine = await self._start(self.spec, self._settings)
        try:
            self._check_habit(engine)
            self._blind = await self._blindness(engine)
            self._settled(engine)
            await self.weigh()
        except BaseException:
            self._detach()
            self._close_later(engine)
            await self._left()
            raise
        return engine

    def _check_habit(self, engine: Engine) -> None:
        """Raise ModelFailed when the settings say how long to think and the engine cannot be told."""
        if self.spec.thinking is not None and not engine.capabilities.thinking:
            raise ModelFailed(
                f"{self.name} cannot be told whether and how long to think; take `thinking` out of its settings",
                param="model",
            )

    def _settled(self, engine: Engine) -> None:
        self._engine, self._capabilities = engine, engine.capabilities
        self._loaded_at = self._clock()
        self._load_seconds = self._loaded_at - self._started
        self._error, self._note, self._attempts = None, None, 0
        self._rest()
        if isinstance(engine, HasWorker):
            self._spawn(self._watch(engine.exited, engine))

    @property
    def _need(self) -> int:
        """Bytes that a load will take: what the settings say, else what it took before, else what is estimated."""
        return self.spec.memory_bytes or self._heaviest or self._estimate

    async def _make_room(self, memory_bytes: int) -> None:
        self._progress = Progress("making room in memory")
        self._estimate = max(self._estimate, memory_bytes)
        await self._room.take(self, self._need)

    def _failed(self, error: MedserveError) -> None:
        """Keep the reason, and put off the next attempt."""
        self._error = _copied(error)
        seconds = self._settings.limits.retry_seconds * 2 ** min(self._attempts - 1, DOUBLINGS)
        self._wait(min(seconds, MOST_RETRY_SECONDS))

    def _wait(self, seconds: float) -> None:
        """Put off the next load; one that is kept is then begun without being asked."""
        self._retry_at = self._clock() + seconds
        if self.kept and seconds:
            self._restart = asyncio.get_running_loop().call_later(seconds + 0.01, self.begin)
        elif self.kept:
            self.begin()

    def _forget(self) -> None:
        self._error = self._note = None
        self._attempts = self._crashes = 0
        self._retry_at = 0.0

    async def _blindness(self, engine: Engine) -> ModelBlind | None:
        """The sight test of an engine that takes images: None when it sees, else why it does not."""
        if engine.capabilities.vision is None or not engine.capabilities.sight_test:
            return None
        self._progress = Progress("testing its sight")
        try:
            first, second = [await raster.read(path.read_bytes(), self._settings.limits) for path in sight.DRAWINGS]
            await sight.check(engine, (first, second))
        except ModelBlind as blind:
            log.error("model.blind", model=self.name, reason=blind.message)
            return _copied(blind)
        return None

    # --- the end of a worker ---------------------------------------------------------------------------------------

    async def _watch(self, exited: Callable[[], Awaitable[int]], engine: Engine) -> None:
        """Learn of a crash when it happens, not when the next request fails."""
        clear_contextvars()  # the log must not tell it of the request that began the load
        await exited()
        if self._engine is engine:
            self._crashed()

    def _crashed(self) -> None:
        """The worker ended by itself: once may happen, again and again is a failure that is not tried without end."""
        engine = self._engine
        calm = self._clock() - self._loaded_at > CALM_SECONDS
        self._crashes = 1 if calm else self._crashes + 1
        pause = CRASH_SECONDS * 2 ** min(self._crashes - 2, DOUBLINGS) if self._crashes > 1 else 0.0
        metrics.crashed(self.name)
        log.warning("model.crashed", model=self.name, crashes=self._crashes)
        self._detach()
        if self._crashes > 1:
            self._error = ModelFailed(
                f"the worker of {self.name} has ended by itself {self._crashes} times without an answer in between; "
                "the log of the service says when, and `medserve doctor` what this machine has",
                param="model",
            )
        else:
            self._note = f"the worker of {self.name} ended by itself; the next request loads it anew"
        if engine is not None:
            self._close_later(engine)
        self._wait(min(pause, MOST_RETRY_SECONDS))

    # --- answering -------------------------------------------------------------------------------------------------

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Answer with the loaded engine; see `Engine.stream`. With `score` the one way to the engine."""
        with self.lease():
            request = self._wished(request)
            engine = await self._for(request)
            answer = observation.answer(self.name, engine, request, self._place(engine))
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    yield chunk
            self._crashes = 0

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """Score with the loaded engine; see `Engine.score`."""
        with self.lease():
            engine = await self._for(request)
            scores = await observation.scores(self.name, engine, request, labels, self._place(engine))
            self._crashes = 0
            return scores

    def _wished(self, request: GenerationRequest) -> GenerationRequest:
        """The request, thinking as the model's settings have it where it does not say itself."""
        usual = self.spec.thinking
        if request.thinking is not None or usual is None:
            return request
        return replace(request, thinking=thinking.within(usual, request.max_tokens))

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

    @asynccontextmanager
    async def _place(self, engine: Engine) -> AsyncIterator[None]:
        """A place in this model's waiting room, where the engine does not keep one itself."""
        if isinstance(engine, HasPlaces):
            yield
            return
        async with self._places.one(None):
            yield

    @contextmanager
    def lease(self) -> Iterator[None]:
        """For as long as it lasts the model is in use, and not unloaded."""
        self._leases += 1
        self._wake()
        try:
            yield
        finally:
            self._leases -= 1
            if not self._leases and self._engine is not None:
                self._rest()
                self._look()

    def _wake(self) -> None:
        self._rested = self._idle_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        """Nobody uses the model now; when that lasts for its idle time, it is unloaded."""
        if self._leases:
            return
        self._wake()
        self._rested, self._idle_since = self._clock(), time()
        seconds = self.spec.idle_seconds
        seconds = self._settings.limits.idle_seconds if seconds is None else seconds
        if seconds and not self.spec.pinned:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._idle, seconds, context=Context())

    def _idle(self, seconds: float) -> None:
        """The timer is cancelled by every lease, so that nobody uses the model when it has run down."""
        if self._engine is not None and not self._leases:
            log.info("model.unloaded", model=self.name, reason="idle", seconds=seconds)
            self._drop()

    def _look(self) -> None:
        """After work, see now and then whether the models have outgrown their room."""
        if self._clock() - self._looked > LOOK_SECONDS:
            self._looked = self._clock()
            self._spawn(self._room.relieve())

    # --- unloading -------------------------------------------------------------------------------------------------

    async def unload(self) -> None:
        """Give all memory back, or stop loading; raises ModelBusy while requests are at work. It forgets failures."""
        self._refuse_at_work()
        if self._engine is not None:
            log.info("model.unloaded", model=self.name, reason="asked")
        await self.close()
        self._forget()

    async def remove(self) -> None:
        """Unload for good; raises ModelBusy while requests are at work."""
        self._refuse_at_work()
        self._removed = True
        await self.close()

    def _refuse_at_work(self) -> None:
        if self._engine is not None and self._leases:
            raise ModelBusy(
                f"{self.name} has requests at work; ask again when they have ended",
                param="model",
                retry_after=self.free_in,
            )

    async def leave(self) -> None:
        """See `Resident`."""
        if self._engine is not None and not self._leases:
            self._drop()
        await self._left()

    async def close(self) -> None:
        """Stop loading and give back everything; the model is cold afterwards."""
        if self._restart is not None:
            self._restart.cancel()
        if (loading := self._loading) is not None:
            if not loading.cancelling():  # a second time would interrupt it while it ends its worker
                loading.cancel()
            await asyncio.wait({loading})
            if self._loading is loading:  # a task that had not begun has not done so itself; a new one is not ours
                self._loading = None
        self._drop()
        await self._left()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self) -> None:
        """Take the engine away from new requests at once, and end it in the background."""
        engine = self._engine
        if engine is not None:
            metrics.unloaded(self.name)
            self._detach()
            self._close_later(engine)

    async def _left(self) -> None:
        """Wait until an engine that was taken away has ended; who stops waiting does not keep it from ending."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _detach(self) -> None:
        self._engine = None
        self._since = time()
        self._wake()

    def _close_later(self, engine: Engine) -> None:
        self._closing = asyncio.create_task(self._close(engine), name=f"unload {self.name}")

    async def _close(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:  # an engine that ends badly must not hold up the one that its memory is for
            log.exception("model.unload_failed", model=self.name)
        finally:
            self._room.give(self)
            self._closing = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Onlooker:
    """What a load tells its handle."""

    def __init__(self, handle: ModelHandle) -> None:
        self._handle = handle

    def progress(self, progress: Progress) -> None:
        self._handle._progress = progress

    async def make_room(self, memory_bytes: int) -> None:
        await self._handle._make_room(memory_bytes)


def _looked_at(task: asyncio.Task[Engine]) -> None:
    """A load that nobody waited for has its reason in the state; asyncio need not complain of it."""
    if not task.cancelled():
        task.exception()


def _file_bytes(spec: ModelSpec) -> int:
    """The least that the weights will take: what their files have."""
    total = 0
    for path in (spec.path, spec.projector):
        with suppress(OSError):
            total += path.stat().st_size if path is not None else 0
    return total


def _copied(error: E, more: str = "", *, retry_after: float | None = None) -> E:
    """An error of the same kind and words, and `more` after them, that no traceback hangs on."""
    return type(error)(error.message + more, param=error.param, retry_after=retry_after)


class Models:
    """All models by name: those that the settings declare, and those that were added since."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._room = Room(settings.limits.memory_bytes)
        self._handles = {spec.name: ModelHandle(spec, settings, room=self._room) for spec in settings.models}
        self._default = settings.default

    def get(self, name: str | None = None) -> ModelHandle:
        """The model of that name, or the default; raises UnknownModel, which says which names exist."""
        try:
            return self._handles[name or self._default]
        except KeyError:
            known = ", ".join(self._handles)
            raise UnknownModel(f"no model has that name; there are: {known}", param="model") from None

    def __iter__(self) -> Iterator[ModelHandle]:
        return iter(tuple(self._handles.values()))

    def preload(self) -> None:
        """Begin to load what the settings want loaded from the start, and keep it so when its worker ends.

        A failure is kept in the model's state.
        """
        for handle in self:
            if handle.spec.preload or (self._settings.preload and handle.name == self._default):
                handle.kept = True
                handle.begin()

    async def weigh(self) -> None:
        """Look again at the memory that every loaded model holds."""
        for handle in self:
            await handle.weigh()

    async def add(self, spec: ModelSpec) -> ModelHandle:
        """One more model, until the service ends; raises InvalidRequest that names the field at fault."""
        _check_secrets(spec)
        await in_thread(_check_files, spec)
        if spec.name in self._handles:
            raise InvalidRequest("a model has that name already; remove it or take another name", param="name")
        if spec.url is not None and not spec.url.startswith(("http://", "https://")):
            raise InvalidRequest("url must begin with http:// or https://", param="url")
        try:
            handle = ModelHandle(spec, self._settings, room=self._room)
        except ModelFailed as error:
            raise InvalidRequest(error.message, param="engine") from None
        self._handles[spec.name] = handle
        log.info("model.added", model=spec.name, engine=spec.engine)
        if spec.preload:
            handle.kept = True
            handle.begin()
        return handle

    async def remove(self, name: str) -> None:
        """Unload a model that was added and forget it; raises InvalidRequest for one that the settings declare."""
        handle = self.get(name)
        if name in {spec.name for spec in self._settings.models}:
            raise InvalidRequest(
                f"{name} is declared in the settings and cannot be removed; unload it, or take it out of the settings "
                "and start again",
                param="name",
            )
        await handle.remove()
        self._handles.pop(name, None)
        metrics.forget(name)
        log.info("model.removed", model=name)

    async def close(self) -> None:
        await asyncio.gather(*(handle.close() for handle in self))


SECRETS = ("key_variable", "key_file", "ca", "python", "arguments")
"""What only the settings may say of a model: with a request, they would send this machine's secrets to any address, or
run any program on it."""


def _check_secrets(spec: ModelSpec) -> None:
    for name in SECRETS:
        if getattr(spec, name):
            raise InvalidRequest(f"{name} can be said in the settings only; declare the model there", param=name)


def _check_files(spec: ModelSpec) -> None:
    """Files that a request names are named in full and exist; where the service was started plays no part."""
    for name, path in (("path", spec.path), ("projector", spec.projector)):
        if path is not None and not path.is_absolute():
            raise InvalidRequest(f"{name} must be absolute, such as /srv/models/weights.gguf", param=name)
        if path is not None and not _is_file(path):
            raise InvalidRequest(f"{name} names no file on the machine of the service", param=name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a folder that is not ours to look into
        return False
