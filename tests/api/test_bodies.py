"""Bodies of requests: reading a large one keeps nobody else waiting."""

from time import process_time

import pytest
from fastapi import Request
from starlette.types import Message

from medserve.api.bodies import MOST_VALUES, Strict, parsed, read_json
from medserve.errors import InvalidRequest
from tests.loops import watched


class Words(Strict):
    """A body of texts."""

    words: list[str]


def sent(body: bytes) -> Request:
    """A request with this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


def signs(size: int) -> bytes:
    """As many commas as need a closer look, and then nothing but texts without a letter."""
    return b'{"words": ["' + b"," * (MOST_VALUES + 1) + b'", ' + b'""' * (size // 2) + b"]}"


async def test_a_body_that_has_to_be_looked_through_is_looked_through_aside() -> None:
    """Eight megabytes of quotation marks take a second to count, in which all streams would stand still."""
    body = signs(8_000_000)
    began = process_time()
    with pytest.raises(InvalidRequest):
        parsed(body, Words)
    quick = process_time() - began

    async with watched() as holds:
        began = process_time()
        with pytest.raises(InvalidRequest):
            await read_json(sent(body), Words)
        took = process_time() - began

    assert took > 3 * quick, "nothing was looked through"
    assert holds.longest < took / 3
