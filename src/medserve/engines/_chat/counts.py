"""A text's tokens are counted once, and no words of a prompt lie around for it."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import sha256

KEPT = 4096


class TextCounts:
    """The counts of the latest texts, kept by their hashes."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    async def of(self, text: str, count: Callable[[], Awaitable[int]]) -> int:
        """The count of this text, which `count` makes where it is not known."""
        key = sha256(text.encode()).digest()
        if key in self._counts:
            return self._counts[key]
        self._counts[key] = number = await count()
        while len(self._counts) > KEPT:
            self._counts.popitem(last=False)
        return number
