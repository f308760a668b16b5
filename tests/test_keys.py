"""Keys: shown once, kept as digests, valid until they are not, and never a way for a closed service to open again."""

import asyncio
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from time import time

import pytest
from sqlalchemy import text

from medserve import keys
from medserve.database import Database
from medserve.errors import DatabaseFailed, InvalidRequest, KeyRequired
from medserve.keys import ANYONE, STALE_SECONDS, Keyring, Keys, Scope
from medserve.settings import Settings
from tests import postgres


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a home of their own."""
    return Settings(home=tmp_path / "home")


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_is_shown_once_and_kept_as_its_digest(settings: Settings) -> None:
    """256 random bits go to the caller; the database's files hold only their SHA-256."""
    async with keys.opened(settings) as kept:
        _, secret = await kept.add("clinic")
    files = b"".join(file.read_bytes() for file in settings.home.iterdir())

    assert secret.startswith("ms-")
    assert 46 == len(secret)
    assert sha256(secret.encode()).hexdigest().encode() in files
    assert secret.encode() not in files
    assert secret.removeprefix("ms-").encode() not in files


async def test_what_a_key_was_given_is_listed(settings: Settings) -> None:
    """Scopes, limits and the end of its time, as they were asked for."""
    async with keys.opened(settings) as kept:
        made, _ = await kept.add("batch", [Scope.USE, Scope.METRICS], per_minute=60, at_once=4, seconds=3600.0)
        listed = await kept.listed()

    assert [made] == listed
    assert ("batch", 60, 4) == (made.caller.name, made.caller.per_minute, made.caller.at_once)
    assert frozenset({Scope.USE, Scope.METRICS}) == made.caller.scopes
    assert made.created + 3600 == made.expires


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ward/3", "Müller", "a\n"])
async def test_a_name_that_could_be_misread_is_refused(settings: Settings, name: str) -> None:
    """Names stand in tables and logs."""
    async with keys.opened(settings) as kept:
        with pytest.raises(InvalidRequest, match="letters, digits"):
            await kept.add(name)


async def test_a_name_is_given_once(settings: Settings) -> None:
    """Also after it was revoked: what it did is kept under that name."""
    async with keys.opened(settings) as kept:
        await kept.add("clinic")
        await kept.revoke("clinic")
        with pytest.raises(InvalidRequest, match="choose another name"):
            await kept.add("clinic")


async def test_a_key_without_a_scope_or_with_an_impossible_limit_is_refused(settings: Settings) -> None:
    """Nothing is made then."""
    async with keys.opened(settings) as kept:
        with pytest.raises(InvalidRequest, match="scope"):
            await kept.add("clinic", [])
        with pytest.raises(InvalidRequest, match="between"):
            await kept.add("clinic", per_minute=0)

        assert [] == await kept.listed()


async def test_revoking_says_when_and_only_once(settings: Settings) -> None:
    """The second time changes nothing, and an unknown name is told of."""
    async with keys.opened(settings) as kept:
        await kept.add("clinic")
        first = await kept.revoke("clinic")
        again = await kept.revoke("clinic")
        with pytest.raises(InvalidRequest, match="keys ls"):
            await kept.revoke("surgery")

    assert first.revoked is not None
    assert first.revoked == again.revoked
    assert "revoked" == first.state(time())


async def test_a_forgotten_key_leaves_nothing(settings: Settings) -> None:
    """Its name is free, and where it was the only one, a machine of one's own is open again: that was asked for."""
    async with keys.opened(settings) as kept:
        _, secret = await kept.add("trial")
        ring = Keyring(kept, open_without=True)
        await ring.read()
        assert "trial" == ring.caller(secret.encode()).name
        await kept.forget("trial")
        await ring.read()
        assert ANYONE is ring.caller(None)
        with pytest.raises(InvalidRequest, match="keys ls"):
            await kept.forget("trial")
        await kept.add("trial")


def test_admin_covers_every_scope_and_the_others_only_themselves() -> None:
    """Metrics are no way to the models."""
    admin, metrics = (replace(ANYONE, scopes=frozenset({scope})) for scope in (Scope.ADMIN, Scope.METRICS))

    assert [True, True, True] == [admin.may(scope) for scope in Scope]
    assert [Scope.METRICS] == [scope for scope in Scope if metrics.may(scope)]


async def test_a_service_without_keys_is_open_only_where_that_was_said(settings: Settings) -> None:
    """Loopback is; a network is not."""
    async with keys.opened(settings) as kept:
        local, remote = Keyring(kept, open_without=True), Keyring(kept, open_without=False)
        await local.read()
        await remote.read()

        assert ANYONE is local.caller(None)
        assert ANYONE is local.caller(b"whatever an SDK insists on sending")
        with pytest.raises(KeyRequired, match="medserve keys add"):
            remote.caller(None)


async def test_the_right_key_opens_and_no_other_does(settings: Settings) -> None:
    """Near misses and the digest itself are no keys."""
    async with keys.opened(settings) as kept:
        key, secret = await kept.add("clinic")
        ring = Keyring(kept, open_without=True)
        await ring.read()

        assert key.caller == ring.caller(secret.encode())
        for wrong in (b"", secret[:-1].encode(), secret.encode() + b"x", key.digest.encode(), secret.upper().encode()):
            with pytest.raises(KeyRequired, match="not known"):
                ring.caller(wrong)


async def test_a_revoked_or_expired_key_opens_nothing_and_the_service_stays_closed(settings: Settings) -> None:
    """The last key's end opens no door to everybody."""
    async with keys.opened(settings) as kept:
        _, first = await kept.add("first")
        _, second = await kept.add("second", seconds=60.0)
        await kept.revoke("first")
        ring = Keyring(kept, open_without=True, now=lambda: time() + 61)
        await ring.read()

        for secret, words in ((first, "revoked"), (second, "expired")):
            with pytest.raises(KeyRequired, match=words):
                ring.caller(secret.encode())
        with pytest.raises(KeyRequired):
            ring.caller(None)


async def test_what_is_known_of_keys_grows_too_old_to_open_anything(settings: Settings) -> None:
    """When the database fails, a key that was revoked meanwhile must not go on working."""
    clock = Clock()
    async with keys.opened(settings) as kept:
        _, secret = await kept.add("clinic")
        ring = Keyring(kept, open_without=True, clock=clock)
        await ring.read()
        clock.now += STALE_SECONDS - 0.1
        assert "clinic" == ring.caller(secret.encode()).name
        clock.now += 0.2

        for shown in (secret.encode(), None):
            with pytest.raises(DatabaseFailed, match="cannot be read"):
                ring.caller(shown)


async def test_a_watched_ring_survives_a_failing_database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on trying, and knows the keys again when the database does."""
    monkeypatch.setattr(keys, "READ_SECONDS", 0.02)
    database = await Database.opened(settings)
    kept = Keys(database)
    async with Keyring(kept, open_without=False).watched() as ring:
        async with database.begin() as connection:
            await connection.execute(text("ALTER TABLE keys RENAME TO gone"))
        await asyncio.sleep(0.1)
        async with database.begin() as connection:
            await connection.execute(text("ALTER TABLE gone RENAME TO keys"))
        _, secret = await kept.add("clinic")
        await asyncio.sleep(0.3)

        assert "clinic" == ring.caller(secret.encode()).name
    await database.close()


async def test_when_a_key_was_last_used_is_kept(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the minute, so that unused keys can be found and revoked."""
    monkeypatch.setattr(keys, "READ_SECONDS", 0.02)
    async with keys.opened(settings) as kept:
        _, secret = await kept.add("clinic")
        async with Keyring(kept, open_without=False).watched() as ring:
            ring.caller(secret.encode())
            await asyncio.sleep(0.2)
        (key,) = await kept.listed()

    assert key.last_used is not None
    assert 10 > time() - key.last_used


async def test_a_file_holds_one_more_key_for_admin(settings: Settings, tmp_path: Path) -> None:
    """As a container's secret, which counts anew once it is replaced."""
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef" * 2 + "\n")
    async with keys.opened(settings) as kept:
        ring = Keyring(kept, open_without=True, file=file)
        await ring.read()
        assert ring.caller(b"0123456789abcdef" * 2).may(Scope.ADMIN)
        with pytest.raises(KeyRequired):
            ring.caller(None)

        file.write_text("fedcba9876543210" * 2)
        await ring.read()
        with pytest.raises(KeyRequired):
            ring.caller(b"0123456789abcdef" * 2)
        assert "admin_key_file" == ring.caller(b"fedcba9876543210" * 2).id


@pytest.mark.parametrize("content", ["", "swordfish", "two words " * 10])
async def test_a_file_with_something_guessable_is_refused(settings: Settings, tmp_path: Path, content: str) -> None:
    """A fast hash is for random keys only; the refusal quotes nothing."""
    file = tmp_path / "secret"
    file.write_text(content)
    with pytest.raises(InvalidRequest, match="openssl rand") as refused:
        await keys.any_valid(settings.model_copy(update={"admin_key_file": file}))

    assert "swordfish" not in refused.value.message


async def test_keys_live_in_postgresql_as_well(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, found twice, used, noted and revoked: several gateways share them there."""
    monkeypatch.setattr(keys, "READ_SECONDS", 0.02)
    with postgres.running() as server:
        async with keys.opened(settings.model_copy(update={"database": server.database()})) as kept:
            _, secret = await kept.add("clinic", [Scope.ADMIN], per_minute=60, seconds=3600.0)
            with pytest.raises(InvalidRequest, match="choose another name"):
                await kept.add("clinic")
            async with Keyring(kept, open_without=False).watched() as ring:
                assert ring.caller(secret.encode()).may(Scope.METRICS)
                await asyncio.sleep(0.3)
                (noted,) = await kept.listed()
                await kept.revoke("clinic")
                await asyncio.sleep(0.3)
                with pytest.raises(KeyRequired, match="revoked"):
                    ring.caller(secret.encode())

    assert noted.last_used is not None
