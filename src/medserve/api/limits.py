"""What is refused before any work: bodies too large or too slow, names that are not ours, pages that are not ours."""

import asyncio
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medserve.api.errors import refusal

STALLED_SECONDS = 60.0
"""How long a client may take nothing of its answer."""

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is one that only this machine reaches."""
    if host.lower() in {"localhost", "localhost."}:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class BodyLimit:
    """ASGI middleware: at most `limit` bytes of request body within `seconds`, counted as they come.

    Beyond the bytes the answer is 413, beyond the time 408. Both end the connection.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read, whole = 0, False
        end = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal read, whole
            if whole:  # what may still come is the client's going away, for which an answer waits as long as it takes
                return await receive()
            self._check(_declared(scope))  # before the first byte is taken
            message = await self._in_time(receive, end)
            read += len(message.get("body", b""))
            self._check(read)
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

    async def _in_time(self, receive: Receive, end: float) -> Message:
        try:
            async with asyncio.timeout_at(end):
                return await receive()
        except TimeoutError:
            detail = f"the body did not arrive within {self._seconds:g} seconds; raise limits.request_seconds"
            raise HTTPException(408, detail, headers={"Connection": "close"}) from None

    def _check(self, size: int) -> None:
        if size > self._limit:
            detail = f"the body is larger than {self._limit} bytes; send less or raise limits.body_bytes"
            raise HTTPException(413, detail, headers={"Connection": "close"})


class Unread:
    """ASGI middleware: an answer of which the client takes nothing for `STALLED_SECONDS` is given up.

    A client that asks and never reads would keep its place at the model for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def taken(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send(message)
            except TimeoutError:
                raise _Stalled from None

        try:
            await self._app(scope, receive, taken)
        except _Stalled:
            log.warning("answer.unread", seconds=STALLED_SECONDS)  # the server closes what was not ended


class _Stalled(Exception):
    """The client takes nothing any more."""


class LoopbackOnly:
    """ASGI middleware: answers only to loopback's names, and to no web page that came from elsewhere.

    A page on the internet may point a name of its own at 127.0.0.1 and read what it finds there, and may post forms
    to 127.0.0.1 unseen. The first is known by its Host, the second by its Origin. Pages of `origins` may call.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stranger = self._stranger(scope) if scope["type"] in {"http", "websocket"} else None
        await (stranger or self._app)(scope, receive, send)

    def _stranger(self, scope: Scope) -> Response | None:
        """The refusal of a request that comes by a foreign name or from a foreign page."""
        if not is_loopback(_host(f"//{_header(scope, b'host')}")):
            return refusal(421, "this service answers to 127.0.0.1 and localhost only; use one of these in the URL")
        origin = _header(scope, b"origin")
        foreign = origin and origin not in self._origins and not is_loopback(_host(origin))
        return _foreign() if foreign else None


class OwnPages:
    """ASGI middleware: answers to no web page but those of this service itself and of `origins`.

    A service that other machines reach goes by any name, so that a page is the service's own when its Origin names the
    host that the request was sent to.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        foreign = scope["type"] in {"http", "websocket"} and self._is_foreign(scope)
        await (_foreign() if foreign else self._app)(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        origin = _header(scope, b"origin")
        own = origin.partition("://")[2].lower() == _header(scope, b"host").lower()
        return bool(origin) and not own and origin not in self._origins


def crossing(origins: Collection[str]) -> dict[str, Any]:
    """The arguments of Starlette's CORSMiddleware for pages of `origins`.

    Cookies and the like are not let through: who calls is told by a key, which a browser adds to nothing by itself.
    """
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        "allow_headers": ["*"],  # the SDKs in browsers send a dozen of their own
        "allow_private_network": True,
        "expose_headers": [
            "X-Request-Id",
            "Retry-After",
            "WWW-Authenticate",
            "X-RateLimit-Limit-Requests",
            "X-RateLimit-Remaining-Requests",
            "X-RateLimit-Reset-Requests",
        ],
    }


def _foreign() -> Response:
    return refusal(403, "pages of other origins may not call this service unless the setting origins names theirs")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _declared(scope: Scope) -> int:
    """The Content-Length of the request, 0 when there is none or it is no number."""
    value = _header(scope, b"content-length")
    return int(value) if value.isdecimal() and len(value) < 20 else 0
