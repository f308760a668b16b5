"""A real service with a script for a model, and one inside the test whose engine is as slow as the test wants."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn

from medserve import engines, telemetry
from medserve.api import create_app
from medserve.engines import Capabilities
from medserve.errors import MedserveError
from medserve.generation import Chunk, Finish, GenerationRequest, LabelScores, Usage
from medserve.imaging.preprocess import VisionInput
from medserve.settings import Limits, ModelSpec, Settings
from tests.serving import Service, serving

SCRIPT = """
[[models]]
name = "script"
engine = "scripted"
replies = [{replies}]

[limits]
body_bytes = 40_000_000
"""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model says "Round." ten thousand times."""
    config = tmp_path_factory.mktemp("service") / "medserve.toml"
    config.write_text(SCRIPT.format(replies=", ".join(['"Round."'] * 10_000)))
    with serving(environment={"MEDSERVE_CONFIG": str(config)}) as running:
        yield running


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on the real engine and the demonstration model, for all tests that leave it running."""
    with serving(environment={"MEDSERVE_HOME": str(tmp_path_factory.mktemp("home"))}) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A plain HTTP client of that service."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


async def settled(true: Callable[[], bool]) -> bool:
    """Whether something comes to hold within five seconds."""
    for _ in range(500):
        if true():
            return True
        await asyncio.sleep(0.01)
    return False


@dataclass
class Slow:
    """An engine that takes its time and counts what runs; `failure` comes after as many pieces as it is told."""

    name: str = "slow"
    pieces: int = 1000
    before_first: float = 0.0
    between: float = 0.01
    failure: Exception | None = None
    running: int = 0
    finished: int = 0
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(context=4096, vision=VisionInput(64)))
    alive: bool = True

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        try:
            await asyncio.sleep(self.before_first)
            for _ in range(self.pieces):
                yield Chunk(text="so ")
                await asyncio.sleep(self.between)
            if self.failure is not None:
                raise self.failure
            yield Chunk(finish=Finish.STOP, usage=Usage(3, self.pieces))
            self.finished += 1
        finally:
            self.running -= 1

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        raise NotImplementedError

    async def close(self) -> None:
        self.alive = False


@dataclass
class Gateway:
    """The application on a real port inside the test's own event loop."""

    client: httpx.AsyncClient
    engine: Slow


@asynccontextmanager
async def gateway(
    engine: Slow, monkeypatch: pytest.MonkeyPatch, *, start: MedserveError | float = 0.0
) -> AsyncIterator[Gateway]:
    """The application with `engine` as its only model, which takes `start` seconds to load, or fails to."""

    async def started(_model: ModelSpec, _settings: Settings) -> Slow:
        if isinstance(start, MedserveError):
            raise start
        await asyncio.sleep(start)
        return engine

    engine.capabilities = Capabilities(context=4096, vision=VisionInput(64), sight_test=False)
    telemetry.configure("critical")
    monkeypatch.setattr(engines, "find", lambda _name: started)
    settings = Settings(models=(ModelSpec(name="slow"),), limits=Limits(hold_seconds=0.3))
    config = uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as client:
                yield Gateway(client, engine)
        finally:
            server.should_exit = True
            await serving
