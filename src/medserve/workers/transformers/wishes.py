"""What is asked of the decoder and what it says back, as plain values that know nothing of the network."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medserve.errors import MedserveError
from medserve.generation import GREEDY, Sampling
from medserve.workers.transformers.prompts import Prompt


@dataclass(frozen=True)
class Wish:
    """One answer that is wanted.

    `stop` are texts before which the answer ends, `grammar` is what `Grammars` makes of a schema or of choices,
    `banned` are tokens that are never said. `top_logprobs` asks for the log-probability of each token and of that many
    alternatives at its place.
    """

    prompt: Prompt
    max_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    banned: tuple[int, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at a place: its own spelling and the natural logarithm of its probability there."""

    piece: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token has been written: its id, and what there is to show and to know.

    `text` is what may be shown now: it is held back while half a character or a stop text may be forming, so it can be
    empty, or the text of several tokens. `piece` is the token's own spelling. `logprob` and `top` are from the
    network's raw logits, whatever grammar or sampling did with them; None and empty unless the wish asks for them.
    """

    id: int
    text: str
    piece: str
    logprob: float | None = None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What an answer took: tokens, vision encodes and seconds. `cached` and `image` are parts of `prompt`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    image: int = 0
    encodes: int = 0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0


@dataclass(frozen=True)
class End:
    """The answer has ended; `text` is what was still held back and belongs to it. The last event of a wish."""

    finish: Literal["stop", "length", "cancelled"]
    text: str
    spent: Spent


@dataclass(frozen=True)
class Scores:
    """log P(label | prompt) of each label's tokens together, in the order asked. The last event of a scoring."""

    logprobs: tuple[float, ...]
    spent: Spent


@dataclass(frozen=True)
class Failure:
    """This one request has failed; the others go on. The last event of a wish or a scoring."""

    error: MedserveError


Emit = Callable[[Token | End | Scores | Failure], None]
"""Called in the model's thread for every event; it must return at once and must not raise."""


class Ticket:
    """A request that was handed in. After `cancel` at most one more token is written before End("cancelled") comes."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Any thread may call it, any number of times; harmless once the request has ended."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()
