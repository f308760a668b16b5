"""The database is made, migrated and written to as promised, on SQLite and on PostgreSQL."""

import asyncio
import stat
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, insert, select, text

from medserve.database import Database, keys, metadata, now
from medserve.errors import DatabaseFailed, InvalidRequest
from medserve.settings import Settings

pytestmark = pytest.mark.anyio


def key(name: str) -> dict[str, object]:
    return {"id": name, "name": name, "digest": name, "scopes": "[]", "created": 1.0}


async def test_the_migrations_make_the_tables_that_the_code_knows(settings: Settings) -> None:
    """Nobody changes a table and forgets the migration."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    database = await Database.opened(settings)
    async with database.begin() as connection:
        assert [] == await connection.run_sync(differences)
    await database.close()


async def test_gateways_that_start_together_do_not_hinder_each_other(settings: Settings) -> None:
    """Eight of them find no tables at the same time; the tables are made once."""
    together = await asyncio.gather(*(Database.opened(settings) for _ in range(8)))
    async with together[0].reading() as connection:
        assert [] == (await connection.execute(select(keys))).all()
    for database in together:
        await database.close()


async def test_what_is_raised_undoes_the_transaction(settings: Settings) -> None:
    """All of it or nothing."""
    database = await Database.opened(settings)

    async def write_and_fail() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(keys).values(key("a")))
            raise KeyError

    with pytest.raises(KeyError):
        await write_and_fail()
    async with database.reading() as connection:
        assert 0 == (await connection.execute(select(func.count()).select_from(keys))).scalar()
    await database.close()


async def test_many_writers_of_two_gateways_wait_for_each_other(settings: Settings) -> None:
    """A reader that becomes a writer is what SQLite refuses with "database is locked"; here nobody is refused."""
    databases = [await Database.opened(settings) for _ in range(2)]

    async def write(number: int) -> None:
        async with databases[number % 2].begin() as connection:
            count = (await connection.execute(select(func.count()).select_from(keys))).scalar()
            assert count is not None
            await connection.execute(insert(keys).values(key(f"k{number}")))

    await asyncio.gather(*map(write, range(60)))
    async with databases[0].reading() as connection:
        assert 60 == (await connection.execute(select(func.count()).select_from(keys))).scalar()
    for database in databases:
        await database.close()


async def test_the_clock_is_the_same_for_all(settings: Settings) -> None:
    """Leases are held against the database's clock, in Unix seconds as a process counts them."""
    database = await Database.opened(settings)
    async with database.reading() as connection:
        told = (await connection.execute(select(now()))).scalar()
    assert told == pytest.approx(time.time(), abs=5)
    await database.close()


async def test_sqlite_is_durable_and_for_this_user_only(tmp_path: Path) -> None:
    """Write-ahead log, every commit on disk, deleted data overwritten, and no rights for others."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    database = await Database.opened(Settings(home=home))
    async with database.reading() as connection:
        told = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1} == told
    assert 0o700 == stat.S_IMODE(home.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    await database.close()


async def test_a_folder_of_other_files_is_not_closed_to_others(tmp_path: Path) -> None:
    """Whoever names /srv for a home by mistake does not find everybody locked out of it."""
    home = tmp_path / "srv"
    home.mkdir(mode=0o755)
    (home / "somebody").touch()
    with pytest.raises(InvalidRequest, match="MEDSERVE_HOME"):
        await Database.opened(Settings(home=home))
    untouched = stat.S_IMODE(home.stat().st_mode), [path.name for path in home.iterdir()]
    (home / "models").mkdir()  # as `medserve pull` leaves it
    database = await Database.opened(Settings(home=home))
    await database.close()

    assert (0o755, ["somebody"]) == untouched
    assert 0o700 == stat.S_IMODE(home.stat().st_mode)


async def test_a_volume_that_was_just_made_can_be_a_home(tmp_path: Path) -> None:
    """As in a container: the file system's own folder is nobody's file."""
    home = tmp_path / "volume"
    home.mkdir(mode=0o755)
    (home / "lost+found").mkdir(mode=0o700)
    database = await Database.opened(Settings(home=home))
    await database.close()

    assert 0o700 == stat.S_IMODE(home.stat().st_mode)


async def test_a_newer_database_is_left_alone(settings: Settings) -> None:
    """An older program that wrote into it would break it; the error says what to do."""
    database = await Database.opened(settings)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(DatabaseFailed, match="newer medserve"):
        await Database.opened(settings)


@pytest.mark.parametrize("url", ["mysql://a@b/c", "sqlite://", "sqlite:///:memory:", "nonsense", "postgresql"])
async def test_a_url_that_leads_nowhere_is_refused(tmp_path: Path, url: str) -> None:
    """At the start, with the setting's name and without the URL: it may hold a password."""
    with pytest.raises(InvalidRequest) as refused:
        await Database.opened(Settings(home=tmp_path, database=url))
    assert "database" == refused.value.param


async def test_a_server_that_is_not_there_is_an_error_without_its_password(tmp_path: Path) -> None:
    """The driver's own words may quote the whole address."""
    address = f"postgresql://medserve:geheim@/nothing?host={tmp_path}"
    with pytest.raises(DatabaseFailed) as failed:
        await Database.opened(Settings(home=tmp_path, database=address))
    assert "geheim" not in failed.value.message


async def test_a_failing_statement_is_told_without_its_values(settings: Settings) -> None:
    """An order may hold what a patient would not tell."""
    database = await Database.opened(settings)
    with pytest.raises(DatabaseFailed) as failed:
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": "geheim"})
    assert "geheim" not in failed.value.message
    assert failed.value.__cause__ is None
    await database.close()
