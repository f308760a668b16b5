"""Small real HTTP servers on loopback: one that answers what a test chooses, and remembers everything it was asked."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]


@dataclass
class Answering:
    """A server that gives every request the same answer. `connections` counts also those that said nothing."""

    port: int = 0
    requests: list[Asked] = field(default_factory=list)
    connections: int = 0
    _status: int = 200
    _headers: dict[str, str] = field(default_factory=dict)
    _body: bytes = b""
    _pause: float = 0.0
    _trickle: float = 0.0
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        pause: float = 0.0,
        trickle: float = 0.0,
    ) -> None:
        """What to answer from now on; `trickle` is the pause after each byte."""
        self._status, self._headers, self._body = status, dict(headers or {}), body
        self._pause, self._trickle = pause, trickle

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection with one request."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """Hang up on everyone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            self.requests.append(Asked(head[0].split(" ")[1], fields))
            await asyncio.sleep(self._pause)
            headers = {"Content-Length": str(len(self._body)), "Connection": "close", **self._headers}
            if "Transfer-Encoding" in headers:
                del headers["Content-Length"]
            lines = [f"HTTP/1.1 {self._status} Answer", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            await self._send(writer)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        step = 1 if self._trickle else max(1, len(self._body))
        for start in range(0, len(self._body), step):
            writer.write(self._body[start : start + step])
            await writer.drain()
            await asyncio.sleep(self._trickle)


@asynccontextmanager
async def answering(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Answering]:
    """A server on a free port."""
    made = Answering()
    server = await asyncio.start_server(made.serve, host, port)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.stop()
