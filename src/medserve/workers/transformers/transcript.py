"""Turns tokens into text that may be shown: never half a character, never the beginning of what ends the answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no character, or not yet."""
REMEMBERED = 32_768
"""Tokens whose spelling is remembered."""
UNDECIDED = 8
"""Tokens that can be bytes of a character in the making, which has four at most; after so many it is none."""


class Spelling:
    """How tokens are spelt, alone and together; what is asked often is remembered."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.piece = lru_cache(REMEMBERED)(self._piece)
        self._one = lru_cache(REMEMBERED)(self._together)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens together, control tokens left out."""
        return self._one(tuple(ids)) if len(ids) == 1 else self._together(ids)

    def _together(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _piece(self, token: int) -> str:
        """A token's own spelling; a control token's is its name."""
        return str(self._tokenizer.decode([token]))


class Transcript:
    """The text of one answer while it is written.

    Its pieces add up to what the tokenizer makes of all the tokens. One case excepted: in a run of bytes that breaks
    off inside a character, the tokenizer would spell the characters before it as unknown too, which have been shown.
    """

    def __init__(self, spelling: Spelling, stops: Sequence[str]) -> None:
        self._spelling = spelling
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._shown = 0
        self._context = 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that may be shown after one more token; `stopped` is set when a stop text has appeared."""
        self._ids.append(token)
        return self._release(self._spelt(last=False))

    def finish(self) -> str:
        """What was held back and belongs to the answer after all."""
        if self.stopped:
            return ""
        shown = self._release(self._spelt(last=True)) + self._held
        self._held = ""
        return shown

    def _spelt(self, *, last: bool) -> str:
        """The new characters that are whole.

        A token's spelling can depend on the tokens before it (bytes that make a character together), so the last
        piece that was shown is spelt again with each new token.
        """
        before = self._spelling.text(self._ids[self._context : self._shown])
        text = self._spelling.text(self._ids[self._context :])
        if text.endswith(UNKNOWN) and not last and len(self._ids) - self._shown < UNDECIDED:
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def _release(self, text: str) -> str:
        """The part of what is held, and of `text`, that no stop text can begin in."""
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop text begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
