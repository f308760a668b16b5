"""HTTP to a process of our own over its unix socket, at a tenth of what a client for the whole internet costs.

A connection carries one request: llama.cpp's listener keeps a thread for every open one. There are no redirects,
cookies, proxies, names to look up or TLS, and what fails raises the errors of httpx, so that callers know one kind.
"""

import asyncio
import json as json_text
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import httptools
import httpx

from medserve import serialised

CONNECT_SECONDS = 10.0
AGAIN_SECONDS = 0.005
"""How long it is waited when the listener has as many connections waiting as it takes."""
PIECE_BYTES = 2**18
MOST_HEAD_BYTES = 2**18
MOST_WHOLE_BYTES = 2**28
"""More than any answer that is wanted whole: who sends more does not know what it was asked."""


class NoSocket(httpx.ConnectError):
    """This process can open no further connection; of the server that says nothing."""


class Answer(Protocol):
    """An answer of which the head is there, as httpx shows it too."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...
    def json(self) -> Any: ...
    def aiter_bytes(self) -> AsyncIterator[bytes]: ...
    async def aread(self) -> bytes: ...


class Asking(Protocol):
    """What an engine asks its server with: this module's `UnixClient`, or httpx's for servers elsewhere."""

    @property
    def is_closed(self) -> bool: ...
    def stream(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Answer]: ...
    async def post(self, url: str, *, json: Any = None) -> Answer: ...
    async def get(self, url: str) -> Answer: ...
    async def aclose(self) -> None: ...


@dataclass
class UnixClient:
    """Asks the server that listens at one unix socket."""

    path: str
    is_closed: bool = False

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator["Arriving"]:
        """The answer once its head is there; leaving the context hangs up, whatever has still to come.

        Raises httpx.TransportError when the server cannot be reached or hangs up first.
        """
        if self.is_closed:
            raise httpx.ConnectError("the client was closed")
        request = await written(method, url, json, {"host": "worker", "connection": "close", **(headers or {})})
        reader, writer = await self._connection()
        try:
            await send(writer, *request)
            await writer.drain()
            answer = Arriving(reader)
            await answer.begin()
            yield answer
        except OSError as error:
            raise httpx.ReadError("the server hung up") from error
        finally:
            writer.transport.abort()  # what was not sent yet is not wanted any more

    async def post(self, url: str, *, json: Any = None) -> "Arriving":
        """The whole answer."""
        return await self._whole("POST", url, json)

    async def get(self, url: str) -> "Arriving":
        """The whole answer."""
        return await self._whole("GET", url, None)

    async def aclose(self) -> None:
        """Ask nothing any more."""
        self.is_closed = True

    async def _whole(self, method: str, url: str, json: Any) -> "Arriving":
        async with self.stream(method, url, json=json) as answer:
            await answer.aread()
            return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with suppress(BlockingIOError):
            return await self._opened()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while True:
                    await asyncio.sleep(AGAIN_SECONDS)
                    with suppress(BlockingIOError):
                        return await self._opened()
        except TimeoutError:
            raise httpx.ConnectTimeout("the server takes no connections") from None

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # By hand, because it never waits, and asyncio takes a full queue for a connection (uvloop does not).
        try:
            opened = socket.socket(socket.AF_UNIX)
        except OSError as error:
            raise NoSocket("this process has as many files open as it may") from error
        try:
            opened.setblocking(False)
            opened.connect(self.path)
            return await asyncio.open_unix_connection(sock=opened, limit=PIECE_BYTES)
        except BlockingIOError:
            opened.close()
            raise
        except OSError as error:
            opened.close()
            raise httpx.ConnectError("nobody listens") from error


async def written(method: str, url: str, json: Any, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """The head and the body of a request, as they are sent."""
    body = b"" if json is None else await serialised.written(json)
    told = {**headers, "content-length": str(len(body))}
    if body:
        told["content-type"] = "application/json"
    lines = [f"{method} {url} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1"), body


async def send(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    """Hand a request over a piece at a time: a hundred megabytes of pictures at once would hold up everybody else."""
    writer.write(head + body[:PIECE_BYTES])
    for start in range(PIECE_BYTES, len(body), PIECE_BYTES):
        await asyncio.sleep(0)
        if writer.is_closing():  # the server has hung up; what it said before, if anything, is still to be read
            return
        writer.write(body[start : start + PIECE_BYTES])


class Arriving:
    """One answer while it is read. Its headers have names in small letters."""

    status_code = 0

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self.read_bytes = 0
        self._headed = self._whole = self._kept = False
        self._content: bytes | None = None

    @property
    def content(self) -> bytes:
        """The whole body, once it was read."""
        assert self._content is not None  # noqa: S101 - `aread` comes first
        return self._content

    def json(self) -> Any:
        """The whole body as JSON; raises ValueError when it is none."""
        return json_text.loads(self.content)

    @property
    def reusable(self) -> bool:
        """Whether the answer has been read to its end, and the server keeps the connection open for another."""
        return self._whole and self._kept

    async def begin(self) -> None:
        """Read up to the end of the head."""
        while not self._headed:
            if self.read_bytes > MOST_HEAD_BYTES:
                raise httpx.RemoteProtocolError("the head of the answer has no end")
            await self._feed()
        self.status_code = self._parser.get_status_code()

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body in pieces as they come."""
        while True:
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            elif self._whole:
                return
            else:
                await self._feed()

    async def aread(self) -> bytes:
        """The whole body."""
        if self._content is None:
            content = bytearray()
            async for piece in self.aiter_bytes():
                content += piece
                if len(content) > MOST_WHOLE_BYTES:
                    raise httpx.RemoteProtocolError("the answer has no end")
            self._content = bytes(content)
        return self._content

    async def _feed(self) -> None:
        data = await self._reader.read(PIECE_BYTES)
        if not data and self._headed and self._ends_with_connection:
            self._whole = True
            return
        if not data:
            raise httpx.RemoteProtocolError("the server hung up in the middle of its answer")
        self.read_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise httpx.RemoteProtocolError("the server does not speak HTTP") from error

    @property
    def _ends_with_connection(self) -> bool:
        """Whether only the connection's end tells the body's (RFC 9112, 6.3)."""
        return not self.headers.keys() & {"content-length", "transfer-encoding"}

    def on_message_begin(self) -> None:
        """Called by the parser, as the next four. An answer that nobody asked for makes the connection useless."""
        if self._whole:
            raise httpx.RemoteProtocolError("the server said more than it was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < httpx.codes.OK:  # it only says that the answer will come (RFC 9110, 15.2)
            self.headers.clear()
            return
        self._headed = True
        self._kept = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._whole = self._headed
