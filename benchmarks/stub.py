"""A model's server that answers at once: the least that a gateway can be measured against.

    python -m benchmarks.stub       prints its port and serves until its standard input ends

It speaks as much of OpenAI's chat completions as medserve's engine `openai` asks for. An answer has as many tokens as
`max_tokens` says, and takes no time at all.
"""

import asyncio
import json
import os
import sys
from typing import Any

import httptools

TOKEN = "so "
MODELS = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 131_072}]}


class Answering(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._path = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Called by the parser, as the next two."""
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._path == b"/v1/models":
            self._write(json.dumps(MODELS).encode(), b"application/json")
            return
        asked = json.loads(body)
        tokens = asked["max_tokens"]
        if asked.get("stream"):
            self._write(_events(tokens), b"text/event-stream")
        else:
            self._write(json.dumps(_whole(tokens)).encode(), b"application/json")

    def _write(self, content: bytes, kind: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(content))
        self._transport.write(head + content)


def _envelope(kind: str, choice: dict[str, Any], usage: Any = None) -> dict[str, Any]:
    envelope = {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": 1, "model": "stub"}
    return {**envelope, "choices": [{"index": 0, **choice}], "usage": usage}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}


def _whole(tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": TOKEN * tokens}
    return _envelope("chat.completion", {"message": message, "finish_reason": "length"}, _usage(tokens))


def _events(tokens: int) -> bytes:
    piece = _envelope("chat.completion.chunk", {"delta": {"content": TOKEN}, "finish_reason": None})
    last = _envelope("chat.completion.chunk", {"delta": {}, "finish_reason": "length"}, _usage(tokens))
    events = [*([json.dumps(piece)] * tokens), json.dumps(last), "[DONE]"]
    return "".join(f"data: {event}\n\n" for event in events).encode()


async def main() -> None:
    """Serve, on a free port, until standard input ends."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(os.read, sys.stdin.fileno(), 1)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
