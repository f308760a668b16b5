"""What must outlive the process lies in SQL: a SQLite file unless told otherwise, PostgreSQL by its URL.

A transaction that has ended is on disk (SQLite: write-ahead log with `synchronous=FULL`). Tables are made and changed
by the migrations in `migrations/`, at the start and in one transaction; gateways that start together wait for one
another.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    event,
    or_,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from medserve.errors import DatabaseFailed, InvalidRequest
from medserve.settings import Settings
from medserve.threads import in_thread

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30.0
"""How long a transaction waits for another process's that writes to the same SQLite file."""
CONNECT_SECONDS = 10
LODGERS = ("id", "medserve.db", "jobs", "models", "workflows", "schemas", "calibrations", "certificates")
"""What lies in a home, each from when it is first needed: by any of them a folder is known as one."""
EMPTY = ("lost+found",)
"""What a file system that was just made holds by itself."""
SQLITE_CONNECTIONS = 4
"""Each is a thread; writers take turns anyway."""
_READING = "medserve_reading"
_MIGRATING = 7_304_125_990
"""The number of PostgreSQL's advisory lock that whoever migrates holds; any number that nobody else uses."""

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("started", Float(53)),
    Column("ended", Float(53)),
    Column("expires", Float(53)),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("step", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("cancelling", Boolean, nullable=False),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("order", Text, nullable=False),
    Column("result", Text),
    Column("folder", Text),
    Column("files", Integer, nullable=False),
    Column("home", Text),
    Column("gateway", Text),
    Column("claim", Text),
    Column("lease", Float(53)),
    Index(None, "state", "created"),
    Index(None, "owner", "created"),
)
"""One row a job. `order` and `result` are JSON; `home` and `folder` say where its files lie; `gateway`, `claim` and
`lease` (until when, by the database's clock) say who works on it. Times are Unix seconds."""

job_items = Table(
    "job_items",
    metadata,
    Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("failed", Boolean, nullable=False),
    Column("result", Text, nullable=False),
)
"""What a job of many items has done so far; `result` is JSON, `place` counts from 0."""

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False),
    Column("home", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Index(None, "owner", "created"),
)
"""Files that were uploaded to be named later; the content lies in `folder` below the home."""

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("per_minute", Integer),
    Column("at_once", Integer),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
    Column("revoked", Float(53)),
    Column("last_used", Float(53)),
)
"""API keys: `digest` is the SHA-256 of the key in hex, `scopes` a JSON list. Times are Unix seconds."""


class now(FunctionElement[float]):  # noqa: N801 - as SQLAlchemy writes its functions
    """The database's own clock in Unix seconds, one for all gateways; it goes on during a transaction."""

    inherit_cache = True
    type = Float(53)


@compiles(now, "sqlite")
def _now_in_sqlite(_element: now, _compiler: Any, **_given: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_in_postgresql(_element: now, _compiler: Any, **_given: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


class Database:
    """One per process; open it with `opened`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer; queueing here is fair, where its own waiting is a lottery.
        self._writing = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def opened(cls, settings: Settings) -> "Database":
        """The database of these settings, its tables brought up to date.

        Makes `settings.home` (0700) where it does not exist. Raises InvalidRequest for a URL that leads nowhere,
        DatabaseFailed when it does not answer or belongs to a newer version.
        """
        await in_thread(moved_in, settings.home)
        database = cls(_engine(await in_thread(_url, settings)))
        try:
            await database._migrate()
        except BaseException:
            await database.close()
            raise
        return database

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; it is on disk when the block has ended, and undone when the block raises.

        Not to be nested. Raises DatabaseFailed, whose words quote no value.
        """
        async with AsyncExitStack() as stack:
            if self._writing is not None:
                await stack.enter_async_context(self._writing)
            await stack.enter_async_context(_translated())
            yield await stack.enter_async_context(self._engine.begin())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads: it sees one state of the data and waits for no writer."""
        async with _translated(), self._engine.connect() as connection:
            await connection.execution_options(**{_READING: True})
            async with connection.begin():
                yield connection

    async def alone(self, connection: AsyncConnection, number: int) -> None:
        """Wait until no other transaction that asked for `number` is open; of SQLite's writers there is one anyway."""
        if self._writing is None:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    async def close(self) -> None:
        """Give every connection back."""
        await self._engine.dispose()

    async def _migrate(self) -> None:
        async with self.begin() as connection:
            await self.alone(connection, _MIGRATING)
            await connection.run_sync(upgrade)


def prepared(folder: Path) -> Path:
    """The folder, made where it does not exist, and for this user's eyes only. Blocking."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise InvalidRequest(
            f"the folder of the setting home cannot be used: {error.strerror}; choose another with MEDSERVE_HOME, "
            "such as a new folder inside it",
            param="home",
        ) from None
    return folder


def moved_in(home: Path) -> Path:
    """`prepared` for the setting home, which may be any folder by mistake: one of other files is not closed to others.

    Blocking; raises InvalidRequest.
    """
    with suppress(OSError):  # what cannot be looked into is told of below
        open_to_others = home.is_dir() and home.stat().st_mode & 0o077
        found = {file.name for file in home.iterdir()} - set(EMPTY) if open_to_others else set()
        if found and found.isdisjoint(LODGERS):
            raise InvalidRequest(
                "the folder of the setting home holds other files, and others may look into it; name a folder of "
                "medserve's own with MEDSERVE_HOME, or close it: chmod 700",
                param="home",
            )
    return prepared(home)


def newest_first(query: Select[Any], table: Table, limit: int, behind: tuple[float, str] | None) -> Select[Any]:
    """The query's rows by when they were made, `limit` at most; those `behind` one, told by its time and its id."""
    created, identifier = table.c.created, table.c.id
    if behind is not None:
        query = query.where(or_(created < behind[0], and_(created == behind[0], identifier < behind[1])))
    return query.order_by(created.desc(), identifier.desc()).limit(limit)


def upgrade(connection: Connection) -> None:
    """Bring the tables behind an open transaction up to date. Blocking."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise DatabaseFailed(
            "the database was made by a newer medserve than this one; start that version, or name another database",
            param="database",
        ) from None


def _url(settings: Settings) -> URL:
    try:
        url = make_url(settings.database or f"sqlite:///{settings.home / 'medserve.db'}")
    except (ArgumentError, ValueError):
        raise InvalidRequest("the setting database is no URL; write sqlite:///FILE", param="database") from None
    match url.get_backend_name():
        case "sqlite" if url.database and url.database != ":memory:":
            return _sqlite(Path(url.database))
        case "postgresql":
            return url.set(drivername="postgresql+psycopg")
        case _:
            raise InvalidRequest(
                "the setting database must be sqlite:///FILE or postgresql://USER@HOST/NAME", param="database"
            )


def _sqlite(file: Path) -> URL:
    """The file exists afterwards and only this user may read it; SQLite gives its companions the same rights."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise InvalidRequest(f"the database file cannot be used: {error.strerror}", param="database") from None
    return URL.create("sqlite+aiosqlite", database=str(file))


def _engine(url: URL) -> AsyncEngine:
    # Statements and their values never reach an error's words: a job's order may hold what a patient would not tell.
    try:
        if url.get_backend_name() == "postgresql":
            return create_async_engine(
                url, hide_parameters=True, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS}
            )
        engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=SQLITE_CONNECTIONS,
            max_overflow=0,
            connect_args={"timeout": BUSY_SECONDS},
        )
    except ModuleNotFoundError:
        raise InvalidRequest(
            "PostgreSQL needs an extra that is not installed: pip install 'medserve[postgres]'", param="database"
        ) from None
    event.listen(engine.sync_engine, "connect", _connected)
    event.listen(engine.sync_engine, "begin", _begun)
    return engine


def _connected(connection: Any, _record: Any) -> None:
    """Transactions are begun by us (`_begun`): the driver's own habit is to begin them late and as readers."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # acknowledged is on disk
        "foreign_keys=ON",
        "secure_delete=ON",  # what is deleted is overwritten
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begun(connection: Connection) -> None:
    """A reader that turns into a writer can be refused at once, without any waiting; so a writer begins as one."""
    reading = connection.get_execution_options().get(_READING)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """The driver's errors in words of our own; what breaks a rule of the tables (IntegrityError) is its caller's."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        kind = type(error.orig).__name__
        raise DatabaseFailed(
            f"the database did not do its work ({kind}); look whether it runs and has room", param="database"
        ) from None
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise DatabaseFailed(
            f"the database cannot be reached ({type(error).__name__}); look whether it runs", param="database"
        ) from None
