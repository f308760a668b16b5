"""A model loads itself when it is first asked, rests when nobody asks, and is never taken from under a request.

It is cold, loading, ready or failed. It leaves `ready` when it has been idle for its time, when another needs its
memory, when a person says so, or when its worker ends.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic, time
from typing import Any

import structlog
from structlog.contextvars import clear_contextvars

from medserve import engines, metrics, observation, planning, thinking
from medserve.engines import Capabilities, Counts, Engine, HasPlaces, HasWorker, Start
from medserve.errors import (
    MedserveError,
    MemoryShort,
    ModelBusy,
    ModelFailed,
    ModelLoading,
    UnknownModel,
    WorkerCrashed,
)
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.models.demand import Demand
from medserve.models.loading import Load, Loaded
from medserve.models.occupancy import Occupancy
from medserve.models.setbacks import Setbacks
from medserve.models.status import State, Status
from medserve.places import Places
from medserve.residency import Room
from medserve.settings import ModelSpec, Settings

log = structlog.get_logger()

UNKNOWN_IMAGE_TOKENS = 256
"""What a picture is taken to cost where a server does not say it: MedGemma's number."""
LOOK_SECONDS = 10.0
"""How often, at most, it is looked after an answer whether the models have outgrown their room."""


class ModelHandle:
    """A model; an engine that loads itself when first asked, and says why when it cannot.

    A request takes a lease on the model for as long as it lasts, waiting included: what is leased is not unloaded.

    After a failed load every request gets the reason at once, until the pause is over that `Setbacks` asks for; the
    first one after it tries again. `kept` models do not wait for a request, but load again by themselves after the same
    pauses. `clock` tells seconds that never go back.
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
        self._clock = clock
        self._room = room or Room(settings.limits.memory_bytes)
        self._demand = Demand(spec.memory_bytes)
        self._setbacks = Setbacks(spec.name, settings.limits.retry_seconds, clock)
        self._occupancy = Occupancy(_idle_seconds(spec, settings), self._idle, clock)
        self._places = Places(spec.slots, spec.waiting)  # for engines that keep none of their own
        self._new_load = partial(
            Load,
            spec,
            settings,
            start or engines.find(spec.engine),
            take=partial(self._room.take, self),
            demand=self._demand,
            clock=clock,
        )
        self._since = time()
        self._looked = clock()
        self._expecting = 0
        self._removed = False
        # The load that goes on, the engine that comes of it, what is known from then on, and the engine's end.
        self._load: Load | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._engine: Engine | None = None
        self._loaded: Loaded | None = None
        self._closing: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

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
        return State.FAILED if self._setbacks.code else State.COLD

    @property
    def status(self) -> Status:
        state, places, setbacks, loaded = self.state, self._places_now, self._setbacks, self._loaded
        load = self._load if state is State.LOADING else None
        return Status(
            name=self.name,
            state=state,
            since=self._since,
            engine=self.spec.engine,
            error=setbacks.reason,
            code=setbacks.code,
            blind=loaded.blind.message if loaded and loaded.blind else None,
            load_seconds=loaded.seconds if loaded else None,
            attempts=setbacks.attempts,
            crashes=setbacks.crashes,
            retry_seconds=setbacks.pause if state is State.FAILED else None,
            stage=load.at.stage or None if load else None,
            progress=load.at.done if load else None,
            elapsed=load.elapsed if load else None,
            memory_bytes=self._room.weight(self) if state is State.READY else None,
            answering=places.answering,
            waiting=places.waiting + self._expecting,
            slots=self.spec.slots,
            pinned=self.spec.pinned,
            idle_since=self._occupancy.idle_since if state is State.READY else None,
            facts=dict(self._engine.capabilities.facts) if self._engine else {},
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the model could do when it was last loaded; raises ModelLoading when it never was."""
        if self._loaded is None:
            raise ModelLoading(f"{self.name} is not loaded yet", param="model", retry_after=self.loaded_in)
        return self._loaded.capabilities

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
        if self._load is None or self._loaded is None:
            return None
        return max(1.0, self._loaded.seconds - self._load.elapsed)

    @property
    def resting_since(self) -> float | None:
        """See `Resident`."""
        if self._closing is not None:
            return 0.0  # it is on its way out already
        return None if self.spec.pinned else self._occupancy.resting_since

    @property
    def free_in(self) -> float | None:
        """See `Resident`."""
        if self.spec.pinned:
            return None
        return self._places_now.seconds(self._occupancy.leases) if self._engine is not None else self.loaded_in

    @property
    def _places_now(self) -> Places:
        waited: object = self._engine
        return waited.places if isinstance(waited, HasPlaces) else self._places

    async def weigh(self) -> None:
        """Look again at the memory that the model holds, which `status` then tells."""
        if self.alive:
            await self._room.settle(self)
            self._demand.weighed(self._room.weight(self) or 0)

    # --- loading ---------------------------------------------------------------------------------------------------

    async def ready(self) -> Engine:
        """The loaded engine, loading it first where needed; raises ModelError with the reason when it cannot be.

        No more requests wait for a load than may wait for an answer; who comes beyond that gets ModelBusy.
        """
        if self._engine is not None and self._engine.alive:
            return self._engine
        if self._engine is not None:
            self._crashed(self._engine)
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
            return await self._expected()
        finally:
            self._expecting -= 1

    def begin(self) -> None:
        """Load in the background; nothing is done when it is ready, loading, or may not be tried again yet."""
        if self._engine is not None and not self._engine.alive:
            self._crashed(self._engine)
        if self.state in {State.COLD, State.FAILED} and not self._setbacks.pause and not self._removed:
            self._load_now()

    def retry(self) -> None:
        """Forget failures and crashes, and load in the background."""
        if self.state in {State.COLD, State.FAILED}:
            self._setbacks.forget()
            self.begin()

    def refuse_full(self) -> None:
        """Raise ModelBusy when a request would find no room to wait in; before anything is done for it."""
        if self.alive:
            self._places_now.refuse_full()

    def refuse_too_early(self) -> None:
        """Raise the reason of a failed load for as long as a request may not try again, and of a removed model ever."""
        if self._removed:
            raise UnknownModel(f"{self.name} was removed", param="model")
        self._setbacks.refuse_too_early()

    async def _expected(self) -> Engine:
        """Wait for the load that goes on; that it is ended by a person is no cancellation of who waits."""
        assert self._loading is not None  # noqa: S101 - the caller has seen it
        loading, waiter = self._loading, asyncio.current_task()
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled() and not (waiter and waiter.cancelling()):
                raise ModelLoading(f"{self.name} was unloaded while it loaded; ask again", param="model") from None
            raise

    def _load_now(self) -> None:
        self._since = time()
        self._load = self._new_load()
        self._loading = asyncio.create_task(self._carry_out(self._load), name=f"load {self.name}")
        self._loading.add_done_callback(_looked_at)

    async def _carry_out(self, load: Load) -> Engine:
        """The load from its beginning to the state it leaves behind, which is ready, failed or, without room, cold."""
        self._setbacks.begun()
        crashes = self._setbacks.crashes
        log.info("model.loading", model=self.name, engine=self.spec.engine, attempt=self._setbacks.attempts)
        try:
            async with load.in_time():
                engine, loaded = await self._started(load)
        except MemoryShort as error:
            self._setbacks.no_room(error)
            log.warning("model.no_room", model=self.name, reason=error.message)
            raise
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
            self._load = self._loading = None
            self._since = time()
            if self._engine is None and self._closing is None:  # else a worker before this one still holds memory
                self._room.give(self)
        if self._setbacks.crashes > crashes:
            raise self._crashed_at_once()
        metrics.loaded(self.name, loaded.seconds)
        sees = loaded.blind is None and engine.capabilities.vision is not None
        log.info("model.ready", model=self.name, seconds=round(loaded.seconds, 2), sees=sees)
        return engine

    async def _started(self, load: Load) -> tuple[Engine, Loaded]:
        """The engine, started when the one before has left, tested, weighed, and from then on this model's."""
        await self._left()
        engine = await load.start()
        try:
            loaded = await load.test(engine)
            self._settled(engine, loaded)
            await self.weigh()
        except BaseException:
            self._end(engine)
            await self._left()
            raise
        return engine, loaded

    def _settled(self, engine: Engine, loaded: Loaded) -> None:
        self._engine, self._loaded = engine, loaded
        self._setbacks.loaded()
        self._occupancy.rest()
        if isinstance(engine, HasWorker):
            self._spawn(self._watch(engine.exited, engine))

    def _failed(self, error: MedserveError) -> None:
        """Keep the reason, and put off the next attempt, of which the error then tells."""
        metrics.load_failed(self.name, error.code)
        self._again_in(self._setbacks.failed(error))
        error.retry_after = self._setbacks.pause

    def _again_in(self, seconds: float) -> None:
        """After a setback a model that is kept is loaded without being asked."""
        if self.kept and seconds:
            self._restart = asyncio.get_running_loop().call_later(seconds + 0.01, self.begin)
        elif self.kept:
            self.begin()

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
            self._setbacks.answered()

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """Score with the loaded engine; see `Engine.score`."""
        with self.lease():
            engine = await self._for(request)
            scores = await observation.scores(self.name, engine, request, labels, self._place(engine))
            self._setbacks.answered()
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
        if request.images and self._loaded is not None and self._loaded.blind is not None:
            raise self._loaded.blind.copied()
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
        try:
            with self._occupancy.lease():
                yield
        finally:
            if self._engine is not None and not self._occupancy.leases:
                self._occupancy.rest()
                self._look()

    def _look(self) -> None:
        """After work, see now and then whether the models have outgrown their room."""
        if self._clock() - self._looked > LOOK_SECONDS:
            self._looked = self._clock()
            self._spawn(self._room.relieve())

    # --- the end of a worker ---------------------------------------------------------------------------------------

    async def _watch(self, exited: Callable[[], Awaitable[int]], engine: Engine) -> None:
        """Learn of a crash when it happens, not when the next request fails."""
        clear_contextvars()  # the log must not tell it of the request that began the load
        await exited()
        if self._engine is engine:
            self._crashed(engine)

    def _crashed(self, engine: Engine) -> None:
        """The worker ended by itself; whether that is a failure, and when it is loaded again, `Setbacks` says."""
        pause = self._setbacks.crashed()
        metrics.crashed(self.name)
        log.warning("model.crashed", model=self.name, crashes=self._setbacks.crashes)
        self._end(engine)
        self._again_in(pause)

    def _crashed_at_once(self) -> WorkerCrashed:
        """What those who waited for a load are told whose worker ended before it was over; one that is kept goes on."""
        if self.kept:
            self.begin()  # while that load went on, none could be begun
        return WorkerCrashed(f"the worker of {self.name} ended as soon as it was loaded; ask again", param="model")

    # --- unloading -------------------------------------------------------------------------------------------------

    async def unload(self) -> None:
        """Give all memory back, or stop loading; raises ModelBusy while requests are at work. It forgets failures."""
        self._refuse_at_work()
        if self._engine is not None:
            log.info("model.unloaded", model=self.name, reason="asked")
        await self.close()
        self._setbacks.forget()

    async def remove(self) -> None:
        """Unload for good; raises ModelBusy while requests are at work."""
        self._refuse_at_work()
        self._removed = True
        await self.close()

    def _refuse_at_work(self) -> None:
        if self._engine is not None and self._occupancy.leases:
            raise ModelBusy(
                f"{self.name} has requests at work; ask again when they have ended",
                param="model",
                retry_after=self.free_in,
            )

    async def leave(self) -> None:
        """See `Resident`."""
        if not self._occupancy.leases:
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
                self._load = self._loading = None
        self._drop()
        await self._left()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _idle(self) -> None:
        """Nobody has used the model for its idle time."""
        log.info("model.unloaded", model=self.name, reason="idle", seconds=self._occupancy.idle_seconds)
        self._drop()

    def _drop(self) -> None:
        """Unload it, where it is loaded, in the background."""
        if self._engine is not None:
            metrics.unloaded(self.name)
            self._end(self._engine)

    def _end(self, engine: Engine) -> None:
        """Take an engine away from new requests at once, and end it in the background."""
        self._engine = None
        self._since = time()
        self._occupancy.end_rest()
        self._closing = asyncio.create_task(self._close(engine), name=f"unload {self.name}")

    async def _close(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:  # an engine that ends badly must not hold up the one that its memory is for
            log.exception("model.unload_failed", model=self.name)
        finally:
            self._room.give(self)
            self._closing = None

    async def _left(self) -> None:
        """Wait until an engine that was taken away has ended; who stops waiting does not keep it from ending."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _idle_seconds(spec: ModelSpec, settings: Settings) -> float:
    """After how long without a request the model is unloaded; 0 is never."""
    if spec.pinned:
        return 0.0
    return settings.limits.idle_seconds if spec.idle_seconds is None else spec.idle_seconds


def _looked_at(task: asyncio.Task[Engine]) -> None:
    """A load that nobody waited for has its reason in the state; asyncio need not complain of it."""
    if not task.cancelled():
        task.exception()
