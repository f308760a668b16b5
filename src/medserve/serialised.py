"""A value becomes JSON a text at a time, so that a request with a hundred pictures in it holds up nobody else."""

from json import JSONEncoder, dumps
from typing import Any

from medserve.threads import in_thread

LARGE = 2**20
"""Characters in a value from which on it is written in a thread: below that it takes some milliseconds at most."""


async def written(value: Any) -> bytes:
    """The value as JSON in ASCII; raises TypeError or ValueError for what cannot be written so."""
    return await in_thread(_large, value) if _characters(value) > LARGE else dumps(value).encode()


def _large(value: Any) -> bytes:
    """`json.dumps` in as many steps as there are texts: in one, it would not let go of the interpreter in between."""
    return b"".join([text.encode() for text in JSONEncoder().iterencode(value)])


def _characters(value: Any) -> int:
    """How many characters the texts in it have, which is about what it takes as JSON."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(map(_characters, value.values()))
        case list() | tuple():
            return sum(map(_characters, value))
        case _:
            return 0
