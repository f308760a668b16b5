"""The lines of a batch: what OpenAI's batch files hold, read strictly and written one a result."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field

from medserve.api import bodies
from medserve.api.bodies import JsonObject, Strict
from medserve.api.errors import body_of, status_of
from medserve.errors import InvalidRequest, MedserveError
from medserve.jobs import Jobs
from medserve.settings import Limits

MEDIA_TYPE = "application/jsonl"
FILE = "input_file_id"
"""The field that is at fault where a line is."""

CustomId = Annotated[str, Field(min_length=1, max_length=512)]


class RequestLine(Strict):
    """One request of a batch file."""

    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: JsonObject


@dataclass(frozen=True)
class Span:
    """Where a request stands in its file, in bytes."""

    start: int
    size: int


def spans(file: Path, limits: Limits) -> list[Span]:
    """Where the lines are that are not empty; raises InvalidRequest for too many, too long, or none. Blocking."""
    found, start = [], 0
    with file.open("rb") as read:
        while line := read.readline(limits.body_bytes + 1):
            if len(line) > limits.body_bytes:
                raise InvalidRequest(f"a line has more than {limits.body_bytes} bytes (limits.body_bytes)", param=FILE)
            if line.strip():
                found.append(Span(start, len(line)))
            start += len(line)
            if len(found) > limits.batch_items:
                raise InvalidRequest(
                    f"there are more than {limits.batch_items} requests (limits.batch_items)", param=FILE
                )
    if not found:
        raise InvalidRequest("the file holds no request; write one JSON object a line", param=FILE)
    return found


def check(file: Path, endpoint: str, limits: Limits) -> int:
    """How many requests a batch file holds; raises InvalidRequest that names the line at fault. Blocking."""
    known: set[str] = set()
    places = spans(file, limits)
    for number, request in enumerate(_requests(file, places), 1):
        if request.url != endpoint:
            raise InvalidRequest(f"line {number}: url is not the endpoint of the batch, {endpoint}", param=FILE)
        if request.custom_id in known:
            raise InvalidRequest(f"line {number}: custom_id is the same as of a line before", param=FILE)
        known.add(request.custom_id)
    return len(places)


def _requests(file: Path, places: list[Span]) -> Iterator[RequestLine]:
    for number, place in enumerate(places, 1):
        try:
            yield read(file, place)
        except InvalidRequest as error:
            raise InvalidRequest(f"line {number}: {error.message}", param=FILE) from None


def read(file: Path, place: Span) -> RequestLine:
    """The request that stands there; raises InvalidRequest. Blocking."""
    with file.open("rb") as opened:
        opened.seek(place.start)
        line = opened.read(place.size)
    return bodies.parsed(line, RequestLine)


def written(custom_id: str, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """A result as a line of an output file: what the request by itself would have been answered with."""
    return {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": uuid4().hex, "body": dict(body)},
        "error": None,
    }


def refused(custom_id: str, error: MedserveError) -> dict[str, Any]:
    """The result of an item that was refused or failed."""
    return written(custom_id, status_of(error), body_of(error).model_dump())


def unanswered(custom_id: str, code: str, message: str) -> dict[str, Any]:
    """The result of an item that got no answer at all."""
    return {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def parsed(data: bytes) -> dict[str, Any]:
    """The object in an answer's body."""
    found: dict[str, Any] = json.loads(data)
    return found


async def results(jobs: Jobs, identifier: str, *, failed: bool | None = None) -> AsyncIterator[bytes]:
    """The results of the items that are done, a page at a time; only those that did or did not fail, where told."""
    after = -1
    while page := await jobs.items(identifier, after=after, failed=failed):
        after = page[-1][0]
        yield "".join(f"{result}\n" for _, result in page).encode()
