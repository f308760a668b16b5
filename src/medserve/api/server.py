"""The server in front of the application: no head of a request is endless, in bytes or in time, and no rest of one."""

import asyncio
import gc
import signal
from math import ceil
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medserve.settings import Settings

HEAD_BYTES = 64 * 2**10
"""What the lines before a body may have together. The parser itself knows no bound."""
HEAD_SECONDS = 20.0
"""How long these lines may take, from the first byte on or from the opening of the connection."""
LINGER_SECONDS = 10.0
"""How long a client may go on sending a body that was answered before it ended; until then its bytes are dropped.

Closing at once would take the answer away from a client that reads only after it has sent.
"""
BACKLOG = 2048

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    """How `app` is served.

    There is no limit on connections: uvicorn's would refuse probes too, and work is limited by model and by key.
    """
    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",  # no route speaks it
        access_log=False,  # a path may hold what a caller put there
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        proxy_headers=bool(settings.proxies),  # otherwise anybody on this machine could pass for any address
        forwarded_allow_ips=list(settings.proxies),
        timeout_graceful_shutdown=ceil(settings.limits.drain_seconds),
    )


class Server(uvicorn.Server):
    """Drains when it is told to end, and then ends as any process that has done its work: with status 0.

    uvicorn's own would raise the signal again, by which the process dies before it has cleared up.
    """

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to listen, with all that was made until now left out of the search for garbage from then on.

        To look through it takes a tenth of a second and more, in which nobody is answered, and it never is garbage.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal; a second Ctrl-C ends the draining."""
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)


class Bounded(HttpToolsProtocol):
    """A connection whose requests begin within bounds; what is late or too long is closed."""

    head_bytes = HEAD_BYTES
    head_seconds = HEAD_SECONDS
    linger_seconds = LINGER_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._heading = True
        self._head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._heading:
            self._head += len(data)
        super().data_received(data)
        if self._heading and self._head > self.head_bytes:
            self._end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heading = True
        self._set_timer(self.head_seconds)

    def on_headers_complete(self) -> None:
        self._unset_timer()
        self._heading = False
        self._head = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._unset_timer()
        self._heading = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._heading and self.cycle.response_complete:
            self._set_timer(self.linger_seconds)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(seconds, self._late)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._end(_TOO_LATE if self._heading else b"")

    def _end(self, answer: bytes) -> None:
        """Close the connection, with an answer where none is on its way."""
        self._unset_timer()
        if self.transport.is_closing():
            return
        if answer and getattr(self.cycle, "response_complete", True):  # None before the first request
            self.transport.write(answer)
        self.transport.close()
