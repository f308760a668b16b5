"""Servers that somebody else might run: the real worker behind a TCP port, as it is or as a lesser server would be."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from medserve.engines._worker import WorkerEngine
from medserve.settings import ModelSpec
from medserve.unix_http import UnixClient


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def port_of(engine: WorkerEngine) -> AsyncIterator[int]:
    """A TCP port that leads to the worker's socket, as if the server were somebody else's."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(engine._child.facts["socket"])
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with listening(connect) as port:
        yield port


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0, **how: Any
) -> AsyncIterator[int]:
    """The port of loopback, any free one or this, at which each connection is served so, until the context ends."""
    tasks: set[asyncio.Task[Any]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", port, **how)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.001)  # connections close a moment later


@dataclass
class Request:
    """One request as a server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


async def read(reader: asyncio.StreamReader) -> Request:
    """The next request of a connection."""
    head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, json.loads(content) if content else None)


def whole(status: int, said: Any, **headers: str) -> bytes:
    """An answer in one piece; `retry_after="1"` is the header Retry-After."""
    content = said if isinstance(said, bytes) else json.dumps(said).encode()
    told = {"content-length": str(len(content)), "connection": "close", **headers}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name.replace('_', '-')}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class Between:
    """What stands before the worker, and all that came to it."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(name="remote", engine="openai", url=self.url)

    def asked(self) -> Iterator[Any]:
        """The bodies of the questions."""
        return (request.body for request in self.requests if request.path == "/v1/chat/completions")


Change = Callable[[Request], bytes | None]
"""What a lesser server does with a request: changes it in place, or answers it itself."""


@asynccontextmanager
async def between(engine: WorkerEngine, change: Change = lambda _: None) -> AsyncIterator[Between]:
    """The worker's own chat route behind somebody who changes or answers some requests."""
    stands = Between()
    worker = UnixClient(engine._child.facts["socket"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read(reader)
        stands.requests.append(request)
        if (answer := change(request)) is not None:
            writer.write(answer)
            await writer.drain()
            return
        async with worker.stream(request.method, request.path, json=request.body) as said:
            writer.write(b"HTTP/1.1 %d Said\r\nconnection: close\r\n\r\n" % said.status_code)
            async for piece in said.aiter_bytes():
                writer.write(piece)
                await writer.drain()

    async with listening(serve) as port:
        stands.url = f"http://127.0.0.1:{port}"
        yield stands
