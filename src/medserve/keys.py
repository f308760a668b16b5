"""A key is shown once and kept as its digest; who calls, what the caller may do and how often follow from it alone."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from time import monotonic, time
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from medserve import database
from medserve.database import Database
from medserve.errors import DatabaseFailed, InvalidRequest, KeyRequired, KeyUnknown
from medserve.settings import Settings
from medserve.threads import in_thread

PREFIX = "ms-"
"""How every key begins, so that people and scanners for leaked secrets know one when they see it."""
SECRET_BYTES = 32
LEAST_CHARACTERS = 32
"""What a key from a file must have at least: nobody types that from memory, so it came from a generator."""
LARGEST = 1_000_000
"""The highest limit that a key can be given; one that is higher limits nothing."""

READ_SECONDS = 1.0
"""How often a running service reads the keys anew."""
STALE_SECONDS = 5.0
"""Knowledge of keys that is older than this opens nothing: a key may have been revoked in the meantime."""
NOTED_SECONDS = 60.0
"""How exactly the last use of a key is kept; a write for every request would be work for nothing."""

FILE_KEY = "admin_key_file"
"""Identifier and name of the key that a file holds."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger()


class Scope(StrEnum):
    """What a key may do."""

    USE = "use"
    """Ask models and workflows, run jobs, look at what there is."""
    METRICS = "metrics"
    """Read the metrics."""
    ADMIN = "admin"
    """Add, load, unload and remove models; covers the others."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request. `id` is the owner of what the request leaves behind, and empty where no keys are asked for.

    `per_minute` and `at_once` are the requests that may be made in a minute and be at work at once; None: any number.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    per_minute: int | None = None
    at_once: int | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the caller's key covers `scope`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYONE = Caller("", "", frozenset(Scope))
"""Whoever calls a service that asks for no keys."""


@dataclass(frozen=True)
class Key:
    """A key as it is kept; times are seconds since 1970. The key itself is kept nowhere."""

    caller: Caller
    digest: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    last_used: float | None = None

    def state(self, now: float) -> str:
        """One of valid, expired and revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


def digest_of(secret: bytes) -> str:
    """The SHA-256 of a key, in hexadecimal.

    A fast hash is right here. A password needs a slow one because it can be guessed from lists; 256 random bits cannot,
    however many guesses a second a stolen table allows, and the digest is computed for every request.
    """
    return sha256(secret).hexdigest()


class Keys:
    """The keys in the database."""

    def __init__(self, kept: Database) -> None:
        self._database = kept

    async def add(
        self,
        name: str,
        scopes: Iterable[Scope] = (Scope.USE,),
        *,
        per_minute: int | None = None,
        at_once: int | None = None,
        seconds: float | None = None,
    ) -> tuple[Key, str]:
        """A new key that is valid for `seconds`, and the secret that is shown this once; raises InvalidRequest."""
        secret, now = PREFIX + secrets.token_urlsafe(SECRET_BYTES), time()
        caller = Caller(uuid4().hex, _named(name), frozenset(scopes), _bounded(per_minute), _bounded(at_once))
        if not caller.scopes:
            raise InvalidRequest("a key without a scope opens nothing; give one", param="scope")
        key = Key(caller, digest_of(secret.encode()), now, None if seconds is None else now + seconds)
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(database.keys).values(_row(key)))
        except IntegrityError:
            told = f"a key called {name} exists, or did before it was revoked; choose another name"
            raise InvalidRequest(told, param="name") from None
        return key, secret

    async def revoke(self, name: str) -> Key:
        """The key, which from now on opens nothing; raises InvalidRequest when there is none of that name."""
        key = next((key for key in await self.listed() if key.caller.name == name), None)
        if key is None:
            raise _unknown()
        if key.revoked is not None:
            return key
        revoked = replace(key, revoked=time())
        async with self._database.begin() as connection:
            table = database.keys
            await connection.execute(update(table).where(table.c.id == key.caller.id).values(revoked=revoked.revoked))
        return revoked

    async def forget(self, name: str) -> None:
        """Remove all that is kept of a key, so that its name is free; raises InvalidRequest when there is none."""
        async with self._database.begin() as connection:
            gone = await connection.execute(delete(database.keys).where(database.keys.c.name == name))
        if not gone.rowcount:
            raise _unknown()

    async def listed(self) -> list[Key]:
        """Every key there is and was, the oldest first."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(database.keys).order_by(database.keys.c.created))
            return [_key(row) for row in rows.mappings()]

    async def note(self, used: dict[str, float]) -> None:
        """Keep when keys were last used, by identifier."""
        table = database.keys
        async with self._database.begin() as connection:
            for identifier, when in used.items():
                await connection.execute(update(table).where(table.c.id == identifier).values(last_used=when))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Keys]:
    """The keys of these settings, for as long as the context lasts."""
    kept = await Database.opened(settings)
    try:
        yield Keys(kept)
    finally:
        await kept.close()


async def any_valid(settings: Settings) -> bool:
    """Whether a caller could show a key that is valid now; raises InvalidRequest when the file with one is unfit."""
    if settings.admin_key_file is not None:
        await in_thread(_from_file, settings.admin_key_file)
        return True
    async with opened(settings) as keys:
        return any(key.state(time()) == "valid" for key in await keys.listed())


class Keyring:
    """What a running service knows of the keys: read anew every second, so that no request waits for the database.

    Once there has been a key, the service asks for one, also when the last is revoked: it never opens by itself, but
    when every key was made to be forgotten. `open_without` says whether anyone may call while there never was one.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        open_without: bool,
        file: Path | None = None,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], float] = time,
    ) -> None:
        self._keys = keys
        self._open_without = open_without
        self._file = file
        self._clock = clock
        self._now = now
        self._known: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._used: dict[str, float] = {}

    @asynccontextmanager
    async def watched(self) -> AsyncIterator["Keyring"]:
        """The ring, kept up to date for as long as the context lasts; the first reading must succeed."""
        await self.read()
        watching = asyncio.create_task(self._watch(), name="keys")
        try:
            yield self
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def read(self) -> None:
        """Read the keys anew."""
        began = self._clock()
        known = {key.digest: key for key in await self._keys.listed()}
        if self._file is not None:
            key = await in_thread(_from_file, self._file)
            known[key.digest] = key
        self._known, self._read_at = known, began

    def caller(self, secret: bytes | None) -> Caller:
        """Whose key this is; raises KeyRequired, which is KeyUnknown for a key that never was one here.

        Raises DatabaseFailed when what is known of keys is too old.
        """
        if self._clock() - self._read_at > STALE_SECONDS:
            raise DatabaseFailed("the keys cannot be read at the moment; the log of the service says why")
        if not self._known and self._open_without:
            return ANYONE
        if secret is None:
            raise KeyRequired(
                "this service asks for a key: send it as `Authorization: Bearer KEY`; `medserve keys add` makes one"
            )
        key = self._found(digest_of(secret))
        now = self._now()
        if (state := key.state(now)) != "valid":
            raise KeyRequired(f"the key is {state}; ask whoever runs this service for another")
        self._used[key.caller.id] = now
        return key.caller

    def _found(self, digest: str) -> Key:
        key = self._known.get(digest)
        # What the time of the search tells is about the digest, from which nobody gets to the key; the comparison that
        # decides takes the same time whatever differs.
        if key is None or not compare_digest(key.digest, digest):
            raise KeyUnknown("the key is not known here; `medserve keys ls` shows the names of those that are")
        return key

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                await self.read()
                await self._note()
            except Exception as error:  # the next second may be better; until then the ring grows stale
                log.error("keys.unreadable", exc_info=error)

    async def _note(self) -> None:
        """Write down the uses that are news; those of a key from a file are nowhere to be written."""
        kept = {key.caller.id: key.last_used or 0.0 for key in self._known.values()}
        fresh = {
            identifier: when
            for identifier, when in self._used.items()
            if identifier != FILE_KEY and when - kept.get(identifier, when) >= NOTED_SECONDS
        }
        self._used.clear()
        if fresh:
            await self._keys.note(fresh)


def _from_file(file: Path) -> Key:
    """The key that a file holds, such as a secret mounted into a container; raises InvalidRequest."""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise InvalidRequest(f"admin_key_file cannot be read: {error.strerror}", param=FILE_KEY) from None
    if len(secret) < LEAST_CHARACTERS or len(secret.split()) != 1:
        told = (
            f"admin_key_file must hold one key of at least {LEAST_CHARACTERS} characters; make one with: "
            "openssl rand -hex 32"
        )
        raise InvalidRequest(told, param=FILE_KEY)
    return Key(Caller(FILE_KEY, FILE_KEY, frozenset({Scope.ADMIN})), digest_of(secret), 0.0)


def _unknown() -> InvalidRequest:
    return InvalidRequest("no key has that name; `medserve keys ls` shows all", param="name")


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest("a key's name has 1 to 64 letters, digits and . _ - only", param="name")
    return name


def _bounded(limit: int | None) -> int | None:
    if limit is not None and not 1 <= limit <= LARGEST:
        raise InvalidRequest(f"a key's limit is between 1 and {LARGEST}; leave it out for none", param="limit")
    return limit


def _row(key: Key) -> dict[str, Any]:
    caller = key.caller
    return {
        "id": caller.id,
        "name": caller.name,
        "digest": key.digest,
        "scopes": json.dumps(sorted(caller.scopes)),
        "per_minute": caller.per_minute,
        "at_once": caller.at_once,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "last_used": key.last_used,
    }


def _key(row: Any) -> Key:
    scopes = frozenset(json.loads(row["scopes"])) & frozenset(Scope)  # a newer version may know more
    caller = Caller(row["id"], row["name"], scopes, row["per_minute"], row["at_once"])
    return Key(caller, row["digest"], row["created"], row["expires"], row["revoked"], row["last_used"])
