"""Nobody comes in unasked: every request shows a key before a byte of its body is read, and every answer is marked."""

import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from medserve.api.errors import answer_of
from medserve.api.rates import Guesses, Turnstile
from medserve.errors import KeyUnknown, MedserveError
from medserve.keys import ANYONE, Caller, Keyring

OPEN = frozenset({"/livez", "/readyz", "/v1/health/live", "/v1/health/ready"})
"""What answers without a key: probes ask it, and it tells nothing but that."""
HSTS = (b"strict-transport-security", b"max-age=31536000")
CAREFUL: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
"""What every answer tells a browser, unless its route says otherwise: answers may hold what belongs to a patient."""

_CLEAN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SAYS_NOTHING = re.compile(r"[0-9A-Fa-f-]{16,64}")

log = structlog.get_logger()


def request_id(given: bytes | None) -> str:
    """The caller's own name for the request where it is short and clean, else a new one of 32 hexadecimal digits."""
    return given.decode("ascii") if given is not None and _CLEAN.fullmatch(given) else secrets.token_hex(16)


def logged_id(name: str) -> str:
    """A request's id as the log has it: itself where it is a UUID or the like, else the begin of its SHA-256.

    No word that a caller chose goes to the log: it might be a patient's name.
    """
    return name if _SAYS_NOTHING.fullmatch(name) else sha256(name.encode()).hexdigest()[:32]


class Marked:
    """ASGI middleware: every answer has the request's id and the headers that keep browsers careful.

    The id is bound to the log, and stands in the request's state, as `logged_id` has it.
    """

    def __init__(self, app: ASGIApp, tls: bool = False) -> None:
        self._app = app
        self._careful = (*CAREFUL, HSTS) if tls else CAREFUL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = request_id(_header(scope, b"x-request-id"))
        logged = logged_id(name)
        scope.setdefault("state", {})["request_id"] = logged

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self._with_marks(message.get("headers", ()), name)
            await send(message)

        with bound_contextvars(request_id=logged):
            await self._app(scope, receive, marked)

    def _with_marks(self, headers: Iterable[tuple[bytes, bytes]], name: str) -> list[tuple[bytes, bytes]]:
        own = [header for header in headers if header[0].lower() != b"x-request-id"]
        told = {key.lower() for key, _ in own}
        return [*own, (b"x-request-id", name.encode()), *(mark for mark in self._careful if mark[0] not in told)]


class Door:
    """ASGI middleware: asks for a key on every path but the four of `OPEN`, and holds each key to its limits.

    The key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. A request counts as at work until its answer has
    ended, streams included. Whether the key covers the route is the route's own question (`access.needs`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turnstile = Turnstile()
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if _is_open(scope):
            state["caller"] = ANYONE
            await self._app(scope, receive, send)
            return
        caller = None
        try:
            caller = self._caller(scope)
            passage = self._turnstile.enter(caller)
        except MedserveError as error:
            left = self._turnstile.headers(caller) if caller is not None else ()
            await answer_of(error)(scope, receive, _with(send, left))
            return
        state["caller"] = caller
        with passage:
            await self._app(scope, receive, _with(send, passage.headers))

    def _caller(self, scope: Scope) -> Caller:
        """Whose key the request shows; raises KeyRequired, RateLimited or DatabaseFailed.

        A key that was revoked or has expired was somebody's: it is no guess.
        """
        ring: Keyring = scope["app"].state.keyring
        try:
            return ring.caller(shown(scope["headers"]))
        except KeyUnknown:
            address = scope["client"][0] if scope.get("client") else ""
            if self._guesses.wrong(address):
                log.warning("keys.guessed", address=address)
            raise


def shown(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request shows, None when it shows none.

    `X-API-Key` goes before `Authorization`, which a proxy in front may use for itself. Of several headers of one name
    no two programs take the same, so that they are no key at all.
    """
    named = [value.strip() for name, value in headers if name == b"x-api-key"]
    bearers = [value.strip() for name, value in headers if name == b"authorization"]
    if named:
        return named[0] if len(named) == 1 else b""
    if len(bearers) != 1:
        return b"" if bearers else None
    scheme, _, secret = bearers[0].partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else None


def guarded(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, which now says how keys are shown, and that a service without keys asks for none."""
    ways = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document.setdefault("components", {})["securitySchemes"] = ways
    document["security"] = [*({way: []} for way in ways), {}]
    for path in OPEN & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []
    return document


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in OPEN and scope.get("method") in {"GET", "HEAD"}


def _with(send: Send, headers: tuple[tuple[bytes, bytes], ...]) -> Send:
    """`send`, whose answers carry more headers."""
    if not headers:
        return send

    async def more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return more


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
