"""Both databases, for real: every test of jobs that touches one runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from medserve.database import Database
from medserve.jobs import Jobs, Rhythm, Runner
from medserve.models import Models
from medserve.settings import Limits, Settings
from tests import postgres

QUICK = Rhythm(look=0.05, lease=20.0, sweep=0.2)

Opened = Callable[..., AbstractAsyncContextManager[Jobs]]


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Postgres]:
    """A PostgreSQL for all tests, each with a database of its own."""
    with postgres.running() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    running: postgres.Postgres = request.getfixturevalue("server")
    return running.database()


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database=url)


@pytest.fixture
def opened(settings: Settings) -> Opened:
    """Opens a gateway's jobs; several at once are several gateways."""

    @asynccontextmanager
    async def open_them(
        runner: Runner | None = None, *, rhythm: Rhythm = QUICK, started: bool = True, **limits: Any
    ) -> AsyncIterator[Jobs]:
        chosen = settings.model_copy(update={"limits": Limits(**limits)})
        database = await Database.opened(chosen)
        models = Models(chosen)
        jobs = await Jobs.opened(database, models, chosen, {"work": runner or done}, rhythm)
        try:
            if started:
                jobs.start()
            yield jobs
        finally:
            await jobs.close()
            await models.close()
            await database.close()

    return open_them


async def done(work: Any, _models: Models, _settings: Settings) -> dict[str, Any]:
    """A runner that has nothing to do."""
    return {"order": dict(work.order)}
