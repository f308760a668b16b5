"""Answers in pieces: sent as they are made, kept alive while nothing comes, and stopped when nobody listens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import structlog
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medserve.api.errors import ClientGone, body_of
from medserve.errors import EngineError, MedserveError

T = TypeVar("T")
Events = AsyncGenerator[dict[str, Any], None]

PING_SECONDS = 10.0
"""A vision encode on a CPU can take a minute; a comment this often keeps proxies from giving up on the stream."""

HEADERS_WAIT_SECONDS = 1.0
"""How long the status line waits for the first piece, so that an early failure can still be told by it."""

PING = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"

log = structlog.get_logger()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client has gone away; raises ClientGone then.

    The body must have been read before.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _ended(task, gone)


async def event_stream(events: Events) -> "EventStream":
    """Events as server-sent events, ended by `[DONE]`, or by an error event when making them failed.

    What fails within the first second, such as a prompt that does not fit, is raised and becomes an ordinary error.
    """
    first = asyncio.ensure_future(_next(events))
    try:
        await asyncio.wait({first}, timeout=HEADERS_WAIT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await _ended(first)
        await events.aclose()
        raise
    return EventStream(first, events)


class EventStream(Response):
    """The answer that carries the events; it watches the connection itself, so every way out passes one `finally`."""

    media_type = "text/event-stream"

    def __init__(self, first: "asyncio.Future[dict[str, Any] | None]", events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pending = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for line in self._lines(gone):
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await _ended(gone, self._pending)
            await self._events.aclose()

    async def _lines(self, gone: "asyncio.Future[None]") -> AsyncGenerator[bytes, None]:
        while True:
            either: set[asyncio.Future[Any]] = {self._pending, gone}
            await asyncio.wait(either, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return
            if not self._pending.done():
                yield PING
                continue
            event = _event(self._pending)
            yield event
            if event is DONE or self._pending.exception() is not None:
                return
            self._pending = asyncio.ensure_future(_next(self._events))


def _event(done: "asyncio.Future[dict[str, Any] | None]") -> bytes:
    try:
        event = done.result()
    except MedserveError as error:
        return f"data: {body_of(error).model_dump_json()}\n\n".encode()
    except Exception as error:
        log.error("stream.failed", exc_info=error)
        told = EngineError("the answer ended early; the log of the service says where")
        return f"data: {body_of(told).model_dump_json()}\n\n".encode()
    # Escaped to ASCII: some clients break lines at U+2028 and its like.
    return DONE if event is None else f"data: {json.dumps(event)}\n\n".encode()


async def _next(events: Events) -> dict[str, Any] | None:
    return await anext(events, None)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and wait until it has stopped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
