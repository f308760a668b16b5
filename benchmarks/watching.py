"""What being seen costs: microseconds that metrics, log and traces add to a request, and to a token of an answer.

    python -m benchmarks.watching 2>/dev/null

Each number is the median over rounds that alternate between the same work watched and not watched.
"""

import argparse
import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from threading import Thread
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from medserve import metrics, observation, telemetry, tracing
from medserve.api.watch import Watch
from medserve.generation import Chunk, Finish, GenerationRequest, Usage
from medserve.generation import Message as Turn
from medserve.settings import Settings

ROUNDS = 15
REQUESTS = 2000
TOKENS = 5000
HEADERS = [(name, b"x" * 20) for name in (b"host", b"user-agent", b"accept", b"content-type", b"content-length")]
ASKED = GenerationRequest((Turn("user", ("What is it?",)),))


class Route:
    """What a router finds."""

    path = "/v1/chat/completions"


async def served(scope: Scope, _receive: Receive, send: Send) -> None:
    """The smallest application."""
    scope["route"] = Route
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Talkative:
    """An engine that writes as fast as it can."""

    name = "talkative"

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        piece = Chunk(text="so ")
        for _ in range(TOKENS):
            yield piece
        yield Chunk(finish=Finish.STOP, usage=Usage(1, TOKENS))


async def requests(app: ASGIApp) -> float:
    """Microseconds a request."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        return None

    began = perf_counter()
    for _ in range(REQUESTS):
        with bound_contextvars(request_id="7b0c7f4e2c334f0e9a510d9a4f0e7c11"):
            await app({"type": "http", "method": "POST", "headers": HEADERS, "path": "/"}, receive, send)
    return (perf_counter() - began) / REQUESTS * 1e6


async def tokens(answer: AsyncGenerator[Chunk, None]) -> float:
    """Microseconds a token."""
    began = perf_counter()
    async with aclosing(answer) as chunks:
        async for _ in chunks:
            pass
    return (perf_counter() - began) / TOKENS * 1e6


async def added(plain: Callable[[], Awaitable[float]], watched: Callable[[], Awaitable[float]]) -> float:
    """What the second costs beyond the first."""
    await watched()
    return median([await watched() - await plain() for _ in range(ROUNDS)])


async def measure(what: str) -> None:
    """One line for requests and one for tokens, as the process is set up now."""
    watch, engine = Watch(served), Talkative()
    each = await added(lambda: requests(served), lambda: requests(watch))
    token = await added(
        lambda: tokens(engine.stream(ASKED)),
        lambda: tokens(observation.answer("talkative", engine, ASKED, nullcontext())),  # type: ignore[arg-type]
    )
    print(f"{what:32} {each:6.1f} us a request {token:6.2f} us a token")


class Sink(BaseHTTPRequestHandler):
    """A collector that forgets what it is sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


async def main() -> None:
    telemetry.configure("error")
    await measure("metrics")
    telemetry.configure("info")
    await measure("metrics and log")
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as sink:
        Thread(target=sink.serve_forever, daemon=True).start()
        tracing.start(Settings(otlp_endpoint=f"http://127.0.0.1:{sink.server_port}"))
        await measure("metrics, log and traces")
        tracing.stop()
        sink.shutdown()
    times = []
    for _ in range(ROUNDS):
        began = perf_counter()
        metrics.exposition([], "")
        times.append((perf_counter() - began) * 1e3)
    print(f"one scrape of one model's series {median(times):6.1f} ms")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__).parse_args()
    asyncio.run(main())
