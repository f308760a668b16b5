"""A stream of server-sent events is read up to its end mark, in time and within bounds."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from medserve.errors import EngineTimeout
from medserve.unix_http import MOST_WHOLE_BYTES, Answer

MOST_LINE_BYTES = 2**24
"""More than any event that is wanted, one with all tokens of a prompt included."""
END_SECONDS = 0.1
"""How long it is waited for the end of a stream that has said its last: it leaves a connection to be used again."""


async def events(response: Answer, deadline: float) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a server-sent stream, up to its end mark.

    Raises EngineTimeout when the deadline passes first, and ValueError for what is no JSON or has no end.
    """
    lines = _lines(response, deadline)
    async for line in lines:
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            break
        if data:
            yield json.loads(data)
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in lines:
                pass


async def _lines(response: Answer, deadline: float) -> AsyncIterator[bytes]:
    """Lines that end in a line feed and nothing else: httpx's own would also split at U+2028 inside an answer."""
    rest, read = bytearray(), 0
    pieces = response.aiter_bytes()
    while True:
        async with until(deadline):
            piece = await anext(pieces, None)
        if piece is None:
            return
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield bytes(rest + line)
            rest.clear()
        rest += last
        read += len(piece)
        if len(rest) > MOST_LINE_BYTES or read > MOST_WHOLE_BYTES:
            raise ValueError("the stream has no end")


@asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Raise EngineTimeout when the deadline, a time of the loop, passes inside."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise EngineTimeout("the answer took longer than limits.answer_seconds; ask for less or raise it") from None
