"""Answers in pieces: sent as they are made, kept alive while nothing comes, and stopped when nobody listens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medserve.api.errors import ClientGone, body_of, stopping
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


async def together(streams: Sequence[AsyncGenerator[T, None]], at_once: int) -> AsyncGenerator[tuple[int, T], None]:
    """The pieces of several streams as they come, each with its stream's index; `at_once` of them run at a time.

    The first failure ends them all and is raised.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    filling = asyncio.create_task(_filled(queue, streams, asyncio.Semaphore(at_once)))
    try:
        while (told := await queue.get()) is not None:
            if isinstance(told, BaseException):
                raise told
            yield told
    finally:
        await _ended(filling)


async def _filled(
    queue: "asyncio.Queue[tuple[int, T] | BaseException | None]",
    streams: Sequence[AsyncGenerator[T, None]],
    places: asyncio.Semaphore,
) -> None:
    """Put all pieces into the queue, and then None, or the first failure."""

    async def drain(index: int, stream: AsyncGenerator[T, None]) -> None:
        async with places, aclosing(stream) as pieces:
            async for piece in pieces:
                queue.put_nowait((index, piece))

    end: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for index, stream in enumerate(streams):
                group.create_task(drain(index, stream))
    except BaseExceptionGroup as failed:
        end = failed.exceptions[0]
    queue.put_nowait(end)


async def begun(pieces: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """None once the first piece is there or was waited for long enough, then the pieces; what fails before is raised.

    So a stream whose first event says only that there is an answer can fail in time to be told by the status line.
    """
    async with aclosing(pieces):
        first = asyncio.ensure_future(_next(pieces))
        try:
            await asyncio.wait({first}, timeout=HEADERS_WAIT_SECONDS * 0.9)
            if first.done():
                first.result()
            yield None
            piece = await first
        finally:
            await _ended(first)
        while piece is not None:
            yield piece
            piece = await _next(pieces)


async def event_stream(events: Events) -> "EventStream":
    """Events as server-sent events, ended by `[DONE]`, or by an error event when making them failed.

    An event that has a `type` is sent under it as its name. What fails within the first second, such as a prompt that
    does not fit, is raised and becomes an ordinary error.
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
        self._silent = True
        self._pending = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        sending = asyncio.ensure_future(self._sent(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except asyncio.CancelledError:  # the service ends, and its time for letting answers end is over
            await _ended(sending)
            await send({"type": "http.response.body", "body": _told(stopping())})
            raise
        finally:
            await _ended(gone, sending, self._pending)
            await self._events.aclose()

    async def _sent(self, send: Send) -> None:
        """Send everything; one task does it, because a task for each event costs as much as the event."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        lines = self._lines()
        pinging = asyncio.ensure_future(self._pinged(send))
        try:
            async for line in lines:
                self._silent = False
                await send({"type": "http.response.body", "body": line, "more_body": True})
                await asyncio.sleep(0)  # whoever has much to send lets others run, and hears of the client's leaving
        finally:
            await _ended(pinging)
            await lines.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _pinged(self, send: Send) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(PING_SECONDS)
            if self._silent:
                await send({"type": "http.response.body", "body": PING, "more_body": True})

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        try:
            event = await self._pending
            while event is not None:
                yield _line(event)
                event = await anext(self._events, None)
        except Exception as error:
            yield _told(foreseen(error))
        else:
            yield DONE


def _line(event: dict[str, Any]) -> bytes:
    # Escaped to ASCII: some clients break lines at U+2028 and its like.
    data = f"data: {json.dumps(event)}\n\n"
    return (f"event: {event['type']}\n{data}" if "type" in event else data).encode()


def _told(error: MedserveError) -> bytes:
    return f"data: {body_of(error).model_dump_json()}\n\n".encode()


def foreseen(error: Exception) -> MedserveError:
    """The error as a stream may tell it; one that nobody foresaw is logged and told without its words."""
    if isinstance(error, MedserveError):
        return error
    log.error("stream.failed", exc_info=error)
    return EngineError("the answer ended early; the log of the service says where")


async def _next(pieces: AsyncGenerator[T, None]) -> T | None:
    return await anext(pieces, None)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and wait until it has stopped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
