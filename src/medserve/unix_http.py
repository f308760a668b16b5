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

CONNECT_SECONDS = 10.0
AGAIN_SECONDS = 0.005
"""How long it is waited when the listener has as many connections waiting as it takes."""
PIECE_BYTES = 2**18


class Answer(Protocol):
    """An answer of which the head is there, as httpx shows it too."""

    @property
    def status_code(self) -> int: ...
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
    ) -> AsyncIterator["_Answer"]:
        """The answer once its head is there; leaving the context hangs up, whatever has still to come.

        Raises httpx.TransportError when the server cannot be reached or hangs up first.
        """
        if self.is_closed:
            raise httpx.ConnectError("the client was closed")
        reader, writer = await self._connection()
        try:
            writer.writelines(_request(method, url, json, headers or {}))
            await writer.drain()
            answer = _Answer(reader)
            await answer.begin()
            yield answer
        except OSError as error:
            raise httpx.ReadError("the server hung up") from error
        finally:
            writer.transport.abort()  # what was not sent yet is not wanted any more

    async def post(self, url: str, *, json: Any = None) -> "_Answer":
        """The whole answer."""
        return await self._whole("POST", url, json)

    async def get(self, url: str) -> "_Answer":
        """The whole answer."""
        return await self._whole("GET", url, None)

    async def aclose(self) -> None:
        """Ask nothing any more."""
        self.is_closed = True

    async def _whole(self, method: str, url: str, json: Any) -> "_Answer":
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
        opened = socket.socket(socket.AF_UNIX)
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


def _request(method: str, url: str, json: Any, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    body = b"" if json is None else json_text.dumps(json).encode()
    told = {"host": "worker", "connection": "close", "content-length": str(len(body)), **headers}
    if body:
        told["content-type"] = "application/json"
    lines = [f"{method} {url} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1"), body


class _Answer:
    """One answer while it is read."""

    status_code = 0

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._headed = self._whole = False
        self._content: bytes | None = None

    @property
    def content(self) -> bytes:
        """The whole body, once it was read."""
        assert self._content is not None  # noqa: S101 - `aread` comes first
        return self._content

    def json(self) -> Any:
        """The whole body as JSON; raises ValueError when it is none."""
        return json_text.loads(self.content)

    async def begin(self) -> None:
        """Read up to the end of the head."""
        while not self._headed:
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
            self._content = b"".join([piece async for piece in self.aiter_bytes()])
        return self._content

    async def _feed(self) -> None:
        data = await self._reader.read(PIECE_BYTES)
        if not data:
            raise httpx.RemoteProtocolError("the server hung up in the middle of its answer")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise httpx.RemoteProtocolError("the server does not speak HTTP") from error

    def on_headers_complete(self) -> None:
        """Called by the parser, as the next two."""
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._whole = True
