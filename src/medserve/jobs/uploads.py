"""Files that are uploaded first and named later, as OpenAI's batches do; they lie in the vault until they expire."""

import re
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, insert, select

from medserve.database import Database, files, newest_first
from medserve.errors import InvalidRequest, UnknownFile
from medserve.jobs.vault import Vault
from medserve.threads import in_thread, shielded

_ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True)
class Upload:
    """An uploaded file: its size in bytes, and from when until when (Unix seconds) it lies here."""

    id: str
    purpose: str
    bytes: int
    created: float
    expires: float


class Uploads:
    """The uploaded files of one database, as the gateway with this vault sees them."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def add(self, file: Path, owner: str, purpose: str, seconds: float) -> Upload:
        """Keep a copy of a file for some seconds; it is on disk when this returns."""
        size = (await in_thread(file.stat)).st_size
        moment = time()
        upload = Upload(f"file-{uuid4().hex}", purpose, size, moment, moment + seconds)
        await shielded(self._keep(file, owner, upload))
        return upload

    async def _keep(self, file: Path, owner: str, upload: Upload) -> None:
        folder = await in_thread(self._vault.keep, [file])
        try:
            async with self._database.begin() as connection:
                await connection.execute(
                    insert(files).values(
                        id=upload.id,
                        owner=owner,
                        purpose=upload.purpose,
                        bytes=upload.bytes,
                        created=upload.created,
                        expires=upload.expires,
                        home=self._vault.home,
                        folder=folder,
                    )
                )
        except BaseException:
            await in_thread(self._vault.remove, folder)
            raise

    async def get(self, identifier: str, owner: str) -> Upload:
        """The owner's file; raises UnknownFile."""
        return _upload(await self._row(identifier, owner))

    async def path(self, identifier: str, owner: str) -> Path:
        """Where the owner's file lies; raises UnknownFile, and InvalidRequest where that is another machine."""
        row = await self._row(identifier, owner)
        found = await in_thread(self._vault.files, row["folder"], 1) if row["home"] == self._vault.home else None
        if found is None:
            raise InvalidRequest("the file lies with another gateway; upload it to this one", param="input_file_id")
        return found[0]

    async def listed(self, owner: str, limit: int, after: str | None) -> list[Upload]:
        """The owner's files, newest first; `after` goes on behind that file, or raises UnknownFile."""
        query = select(files).where(files.c.owner == owner, files.c.expires > time())
        last = None if after is None else await self._row(after, owner, "after")
        behind = None if last is None else (last["created"], last["id"])
        async with self._database.reading() as connection:
            rows = await connection.execute(newest_first(query, files, limit, behind))
            return [_upload(row) for row in rows.mappings()]

    async def delete(self, identifier: str, owner: str) -> None:
        """Delete the owner's file; raises UnknownFile. Jobs that were made of it have their own copy."""
        row = await self._row(identifier, owner)
        async with self._database.begin() as connection:
            await connection.execute(delete(files).where(files.c.id == identifier))
        if row["home"] == self._vault.home:
            await in_thread(self._vault.remove, row["folder"])

    async def expire(self) -> None:
        """Delete what has expired."""
        old = files.c.expires < time()
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(files.c.id, files.c.folder, files.c.home).where(old))).all()
        if not rows:
            return
        async with self._database.begin() as connection:
            await connection.execute(delete(files).where(files.c.id.in_([row.id for row in rows])))
        for row in rows:
            if row.home == self._vault.home:
                await in_thread(self._vault.remove, row.folder)

    async def named(self, folders: list[str]) -> set[str]:
        """Those of the folders in which an uploaded file lies."""
        async with self._database.reading() as connection:
            return set((await connection.execute(select(files.c.folder).where(files.c.folder.in_(folders)))).scalars())

    async def _row(self, identifier: str, owner: str, param: str = "id") -> Any:
        row = None
        if _ID.fullmatch(identifier):
            wanted = select(files).where(files.c.id == identifier, files.c.owner == owner, files.c.expires > time())
            async with self._database.reading() as connection:
                row = (await connection.execute(wanted)).mappings().first()
        if row is None:
            raise UnknownFile("there is no such file, or it has expired; GET /v1/files lists yours", param=param)
        return row


def _upload(row: Any) -> Upload:
    return Upload(row["id"], row["purpose"], row["bytes"], row["created"], row["expires"])
