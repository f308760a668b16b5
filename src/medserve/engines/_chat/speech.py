"""An answer is told without its thinking, whether a model marks that, or a server tells it apart by itself."""

from dataclasses import replace

from medserve import thinking
from medserve.engines._chat.piece import Piece
from medserve.generation import Chunk, GenerationRequest, Timings, TokenLogprob, Usage
from medserve.text import CLOSING, ThinkingSplitter


class Speech:
    """The chunks that the pieces of one answer make; `known` is what the pieces told beside words."""

    def __init__(self, request: GenerationRequest) -> None:
        self.known = Piece()
        self._splitter = ThinkingSplitter()
        self._splitter.feed(thinking.opened(request))
        self._unopened = _Unopened()
        self._begun = request.prefix
        self._alternatives = request.top_logprobs
        self._held: tuple[TokenLogprob, ...] = ()

    def chunk(self, piece: Piece) -> Chunk:
        """What can be told after one more piece; nothing yet is an empty chunk."""
        self.known = self.known.plus(piece)
        thinks = self._splitter.truncated
        words, thought = self._splitter.feed(self._spoken(piece))
        chunk = self._unopened.seen(words, piece.thinking + thought)
        # Tokens wait for the words that they make, and are not told of where those are a thought or its marks.
        self._held += tuple(replace(entry, top=entry.top[: self._alternatives]) for entry in piece.logprobs)
        if chunk.text:
            chunk = replace(chunk, logprobs=self._held)
        if chunk.text or chunk.thinking or chunk.rethought or thinks or self._splitter.truncated:
            self._held = ()
        return chunk

    def last(self, usage: Usage) -> Chunk:
        """What was held back, and what the answer took."""
        chunk = self._unopened.seen(*self._splitter.finish(), last=True)
        timings = self.known.timings or Timings()
        return replace(chunk, logprobs=self._held, finish=self.known.finish, usage=usage, timings=timings)

    def _spoken(self, piece: Piece) -> str:
        """The forced beginning is said with the first word, when it is certain that an answer will follow."""
        if not piece.text and not piece.finish:
            return ""
        begun, self._begun = self._begun, ""
        return begun + piece.text


class _Unopened:
    """Finds a closing mark of thinking that nothing opened: all that was said before it was thinking."""

    def __init__(self) -> None:
        self._held = ""

    def seen(self, text: str, thinking: str, *, last: bool = False) -> Chunk:
        """The chunk that more text and thinking make; what may be the beginning of a mark is kept for the next."""
        before, mark, after = (self._held + text).rpartition(CLOSING)
        longest = 0 if last else min(len(CLOSING) - 1, len(after))
        cut = next((size for size in range(longest, 0, -1) if after.endswith(CLOSING[:size])), 0)
        self._held = after[len(after) - cut :]
        return Chunk(
            after[: len(after) - cut],
            before.replace(CLOSING, "") + thinking if mark else thinking,
            rethought=bool(mark),
        )
