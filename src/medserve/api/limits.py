"""What is refused at the door: bodies that are too large, names that are not ours, and web pages that are not ours."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medserve.api.errors import refusal


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is one that only this machine reaches."""
    if host.lower() in {"localhost", "localhost."}:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class BodyLimit:
    """ASGI middleware: at most `limit` bytes of request body, counted as they come; beyond it the answer is 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            self._check(_declared(scope))  # before the first byte is taken
            message = await receive()
            read += len(message.get("body", b""))
            self._check(read)
            return message

        await self._app(scope, counted, send)

    def _check(self, size: int) -> None:
        if size > self._limit:
            detail = f"the body is larger than {self._limit} bytes; send less or raise limits.body_bytes"
            raise HTTPException(413, detail, headers={"Connection": "close"})


class LoopbackOnly:
    """ASGI middleware: answers only to loopback's names, and to no web page that came from elsewhere.

    A page on the internet may point a name of its own at 127.0.0.1 and read what it finds there, and may post forms
    to 127.0.0.1 unseen. The first is known by its Host, the second by its Origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stranger = _stranger(scope) if scope["type"] == "http" else None
        await (stranger or self._app)(scope, receive, send)


def _stranger(scope: Scope) -> Response | None:
    """The refusal of a request that comes by a foreign name or from a foreign page."""
    if not is_loopback(_host(f"//{_header(scope, b'host')}")):
        return refusal(421, "this service answers to 127.0.0.1 and localhost only; use one of these in the URL")
    origin = _header(scope, b"origin")
    if origin and not is_loopback(_host(origin)):
        return refusal(403, "pages of other origins may not call this service; serve the page on this machine")
    return None


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
