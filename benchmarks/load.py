"""Requests at a constant rate, however long their answers take: what a closed loop of clients never shows.

A loop that waits for each answer before it asks again slows down with the server, and so hides how long its clients
would have waited. Here every request goes out when it is due, on a connection that is free or a new one.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

LARGEST_LINE = 2**20
IDLE_SECONDS = 2.0
"""After which a connection is not used again: servers close theirs after some seconds, just when one asks."""

Body = Callable[[int], bytes]
"""The body of the n-th request."""


@dataclass(frozen=True)
class Reply:
    """One answer: its status (0 when the connection broke), its headers in small letters, its body, and how long.

    `begun` is when it was sent, `seconds` how long the whole answer took from then, `late` how much later than due the
    request was sent.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    begun: float
    seconds: float
    late: float = 0.0


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Client:
    """HTTP/1.1 with kept connections, to a port of loopback or a unix socket; as little work as can be."""

    port: int = 0
    socket: Path | None = None
    keep: bool = True
    _free: list[tuple[float, Connection]] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: bytes = b"", *, due: float | None = None) -> Reply:
        """One request; a connection that breaks gives an answer with the status 0."""
        begun = perf_counter()
        late = 0.0 if due is None else begun - due
        try:
            status, headers, content = await self._asked(method, path, body)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return Reply(0, {}, b"", begun, perf_counter() - begun, late)
        return Reply(status, headers, content, begun, perf_counter() - begun, late)

    async def close(self) -> None:
        """Close what is kept open."""
        while self._free:
            _, (_, writer) = self._free.pop()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _asked(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self._connection()
        whole = False
        try:
            keep = b"" if self.keep else b"connection: close\r\n"
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n".encode()
            writer.write(head + b"content-type: application/json\r\n" + keep + b"\r\n" + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            content = await _content(reader, headers)
            whole = self.keep and headers.get("connection", "").lower() != "close"
            return int(lines[0].split()[1]), headers, content
        finally:
            if whole:
                self._free.append((perf_counter(), (reader, writer)))
            else:
                writer.close()

    async def _connection(self) -> Connection:
        while self._free:
            since, kept = self._free.pop()
            if perf_counter() - since < IDLE_SECONDS:
                return kept
            kept[1].close()
        if self.socket is not None:
            return await asyncio.open_unix_connection(self.socket, limit=LARGEST_LINE)
        return await asyncio.open_connection("127.0.0.1", self.port, limit=LARGEST_LINE)


async def _content(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(pieces)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


async def constant(client: Client, path: str, body: Body, *, rate: float, seconds: float) -> list[Reply]:
    """POST `rate` requests a second, evenly, for so long; all their answers, in the order of the requests."""
    begun = perf_counter()
    asked = []
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        if (wait := due - perf_counter()) > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(client.ask("POST", path, body(number), due=due)))
    return await asyncio.gather(*asked)


@dataclass(frozen=True)
class Spread:
    """Where the times of many answers lie, in milliseconds."""

    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        cuts = quantiles(seconds, n=100)
        return cls(cuts[49] * 1000, cuts[98] * 1000, max(seconds) * 1000)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """A Markdown table; numbers have two decimals."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |"
