"""HTTP to one server elsewhere, over TCP or TLS: what is said goes to that server alone, and nothing is said twice.

It is to the general client what `unix_http` is: a few hundred lines less between a request and its socket. There are no
redirects, so that a key never follows one to another host, no cookies, no proxies of the environment, no packed bodies.
Connections are kept and used again. A request is sent anew only where connecting failed, when nothing of it had been
sent; whether it may be repeated after that only its caller can know. What fails raises the errors of httpx.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import uniform
from time import monotonic
from typing import Any

import httpx

from medserve.addresses import Address
from medserve.unix_http import PIECE_BYTES, Arriving, send, written

CONNECT_SECONDS = 10.0
PAUSES = (0.1, 0.3)
"""Seconds, about, before it is tried again to connect: a server that restarts, or a lost packet."""
KEPT_SECONDS = 3.0
"""How long an unused connection is trusted: common servers close theirs after five seconds, without a word."""
KEPT_CONNECTIONS = 64
SOON_SECONDS = 1.0
"""A connection that is closed so soon after a stream was not kept, whatever the head of the answer said."""


class Wire(asyncio.StreamReader):
    """What a server sends, and how many bytes of it came since the last answer had been read."""

    came = 0
    ended: Callable[[], None] | None = None

    def feed_data(self, data: Any) -> None:
        """Called by asyncio when bytes come."""
        self.came += len(data)
        super().feed_data(data)

    def feed_eof(self) -> None:
        """Called by asyncio when the server has closed the connection."""
        super().feed_eof()
        if self.ended is not None:
            self.ended()


@dataclass(frozen=True)
class Connection:
    """An open way to the server, and since when nobody uses it; None where nobody has used it yet."""

    wire: Wire
    writer: asyncio.StreamWriter
    since: float | None = None

    @property
    def usable(self) -> bool:
        """Whether the server has not closed it meanwhile, as far as one can know, and said nothing unasked.

        Servers may say why they close; read after the next request, that would be taken for its answer.
        """
        gone = self.wire.at_eof() or self.writer.is_closing() or self.wire.came
        return not gone and self.since is not None and monotonic() - self.since < KEPT_SECONDS


async def nothing() -> Mapping[str, str]:
    """The headers of who need not say who he is."""
    return {}


@dataclass
class TcpClient:
    """Asks the server at one address, below its path. `showing` gives the headers that identify us, anew each time."""

    address: Address
    context: ssl.SSLContext | None = None
    showing: Callable[[], Awaitable[Mapping[str, str]]] = nothing
    is_closed: bool = False
    _free: list[Connection] = field(default_factory=list)
    _streams_close: bool = False

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Arriving]:
        """The answer once its head is there; leaving the context before its end hangs up.

        Raises httpx.ConnectError or ConnectTimeout while nothing was sent, other httpx.TransportErrors afterwards.
        """
        if self.is_closed:
            raise httpx.ConnectError("the client was closed")
        told = {"host": self.address.authority, "accept-encoding": "identity", "user-agent": "medserve"}
        told |= {**(headers or {}), **await self.showing()}
        request = await written(method, self.address.path.rstrip("/") + url, json, told)
        connection = await self._connection()
        used = connection.since is not None
        answer = Arriving(connection.wire)
        try:
            # It is not waited for the request to have left: a server may refuse it before it has read all of it.
            await send(connection.writer, *request)
            await answer.begin()
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise httpx.RemoteProtocolError("the server packed its answer although it was asked not to")
            yield answer
        except OSError as error:
            raise httpx.ReadError("the server hung up") from error
        finally:
            if used and not answer.read_bytes:
                self._streams_close = True
            self._done(connection, answer)

    async def post(self, url: str, *, json: Any = None) -> Arriving:
        """The whole answer."""
        return await self._whole("POST", url, json)

    async def get(self, url: str) -> Arriving:
        """The whole answer."""
        return await self._whole("GET", url, None)

    async def aclose(self) -> None:
        """Ask nothing any more, and close what is open."""
        self.is_closed = True
        for connection in self._free:
            connection.writer.transport.abort()
        self._free.clear()

    async def _whole(self, method: str, url: str, json: Any) -> Arriving:
        async with self.stream(method, url, json=json) as answer:
            await answer.aread()
            return answer

    async def _connection(self) -> Connection:
        """The connection used last that can still be used, or a new one."""
        while self._free:
            connection = self._free.pop()
            connection.wire.ended = None
            if connection.usable:
                return connection
            connection.writer.transport.abort()
        for pause in PAUSES:
            try:
                return await self._opened()
            except httpx.ConnectError as error:
                if isinstance(error.__cause__, ssl.SSLError):  # it will not be another's certificate a moment later
                    raise
                await asyncio.sleep(uniform(0.5, 1.5) * pause)  # noqa: S311 - so that many do not come at once
        return await self._opened()

    async def _opened(self) -> Connection:
        loop, wire = asyncio.get_running_loop(), Wire(limit=PIECE_BYTES)
        protocol = asyncio.StreamReaderProtocol(wire)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                transport, _ = await loop.create_connection(
                    lambda: protocol, self.address.host, self.address.port, ssl=self.context
                )
        except TimeoutError:
            raise httpx.ConnectTimeout("the server takes no connections") from None
        except OSError as error:  # a certificate that is not trusted is one too
            raise httpx.ConnectError("the server cannot be reached") from error
        return Connection(wire, asyncio.StreamWriter(transport, protocol, wire, loop))

    def _done(self, connection: Connection, answer: Arriving) -> None:
        wire, transport = connection.wire, connection.writer.transport
        streamed = "content-length" not in answer.headers
        over = answer.reusable and wire.came == answer.read_bytes and not transport.get_write_buffer_size()
        kept = over and not self.is_closed and not (streamed and self._streams_close)
        if kept and len(self._free) < KEPT_CONNECTIONS:
            free = Connection(wire, connection.writer, monotonic())
            wire.came = 0
            wire.ended = lambda: self._closed(free, streamed=streamed)
            self._free.append(free)
        else:
            transport.abort()  # what was not read yet, or not sent, is not wanted any more

    def _closed(self, free: Connection, *, streamed: bool) -> None:
        """The server closed a connection that nobody used. llama-server does after every stream that it promised to
        keep one for; the next request could be lost on it, so that such a promise is not believed again."""
        free.wire.ended = None
        if free in self._free:
            self._free.remove(free)
            soon = free.since is not None and monotonic() - free.since < SOON_SECONDS
            self._streams_close = self._streams_close or (streamed and soon)
        free.writer.transport.abort()  # asyncio would keep its half open until the next request
