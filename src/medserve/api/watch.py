"""Every request is counted, timed and told of in one line of the log, by its route's template and never by its path."""

from time import perf_counter
from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medserve import metrics, tracing
from medserve.metrics import Tally

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

log = structlog.get_logger()

SILENT: "TelemetryConfig" = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""For every FastAPI application: its own telemetry would tell paths, queries and the words of errors."""

TRACEPARENT = b"traceparent"
NOT_ANSWERED = 499
"""What a request counts as whose client left before there was a status."""


class Watch:
    """ASGI middleware: metrics, a span and an access line for each request.

    It stands outside of what answers bugs, so that it sees their status, and inside of what gives requests their
    names, so that its line carries them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Request(scope, receive, send).served_by(self._app)
        else:
            await self._app(scope, receive, send)


class _Request:
    """One request while it is answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._tally = Tally()
        self._status = NOT_ANSWERED
        self._whole = self._gone = False
        self._trace = ""

    async def served_by(self, app: ASGIApp) -> None:
        began = perf_counter()
        method = metrics.method_of(self._scope["method"])
        tally = metrics.TALLY.set(self._tally)
        metrics.REQUESTS_OPEN.inc()
        caller = next((value for name, value in self._scope["headers"] if name == TRACEPARENT), b"")
        try:
            with tracing.span(
                method, {"http.request.method": method}, kind="server", traceparent=caller.decode("latin-1")
            ) as span:
                self._trace = span.trace
                await app(self._scope, self._received, self._sent)
                self._told(span, method)
        finally:
            metrics.REQUESTS_OPEN.dec()
            metrics.TALLY.reset(tally)
            seconds = perf_counter() - began
            metrics.answered(self._route, method, self._status, seconds)
            self._log(method, seconds)

    @property
    def _route(self) -> str:
        """The template of the route that was found, "" where there was none."""
        return str(getattr(self._scope.get("route"), "path", ""))

    async def _received(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._whole:
            self._gone = True
        return message

    async def _sent(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif not message.get("more_body", False):
            self._whole = True
        await self._send(message)

    def _told(self, span: tracing.Span, method: str) -> None:
        if route := self._route:
            span.name(f"{method} {route}")
        span.set({"http.route": route or None, "http.response.status_code": self._status})
        if self._status >= 500:
            span.failed(str(self._status))

    def _log(self, method: str, seconds: float) -> None:
        tally = self._tally
        caller = self._scope.get("state", {}).get("caller")
        facts = {
            "key": caller.id if caller is not None else "",
            "model": tally.model,
            "prompt_tokens": tally.prompt,
            "completion_tokens": tally.completion,
            "cached_tokens": tally.cached,
            "image_tokens": tally.image,
            "gone": self._gone,
            "trace": self._trace,
        }
        log.info(
            "http.request",
            method=method,
            route=self._route or None,
            status=self._status,
            ms=round(seconds * 1000, 1),
            **{name: fact for name, fact in facts.items() if fact},
        )
