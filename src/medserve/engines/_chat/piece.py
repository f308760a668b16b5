"""What one event of a stream says, in one form for every dialect; what no server would say is no answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from medserve.generation import Finish, Timings, TokenLogprob

MOST_TOKENS = 2**40
"""A server that counts more does not count."""


@dataclass(frozen=True)
class Piece:
    """What one event of a stream says, whatever the dialect; numbers are None where it says nothing of them."""

    text: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    image: int | None = None
    encodes: int = 0
    timings: Timings | None = None

    def plus(self, later: "Piece") -> "Piece":
        """The counts known after a later event; text and log-probabilities are not kept."""
        return Piece(
            finish=later.finish or self.finish,
            prompt=_known(later.prompt, self.prompt),
            completion=_known(later.completion, self.completion),
            cached=_known(later.cached, self.cached),
            image=_known(later.image, self.image),
            encodes=self.encodes + later.encodes,
            timings=later.timings or self.timings,
        )


def _known(later: int | None, earlier: int | None) -> int | None:
    return earlier if later is None else later


def read(data: Mapping[str, Any]) -> Piece:
    """An event of OpenAI's chat dialect, in which llama-server also tells its timings.

    Raises ValueError, KeyError, TypeError or AttributeError for what is none.
    """
    usage, timings = data.get("usage") or {}, data.get("timings") or {}
    choice = (data.get("choices") or [{}])[0]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    delta = choice.get("delta") or {}
    return Piece(
        text=_text(delta.get("content") or ""),
        # Two names that servers have for what they took for thinking themselves.
        thinking=_text(delta.get("reasoning_content") or delta.get("reasoning") or ""),
        logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or ()),
        finish=_finish(choice.get("finish_reason")),
        prompt=_count(usage.get("prompt_tokens")),
        completion=_count(usage.get("completion_tokens")),
        cached=_count(cached),
        timings=seconds(timings) if timings else None,
    )


def seconds(timings: Mapping[str, Any]) -> Timings:
    """llama.cpp's own measurement, which it gives in milliseconds."""
    return Timings(timings.get("prompt_ms", 0.0) / 1000, timings.get("predicted_ms", 0.0) / 1000)


def _logprobs(content: Sequence[Mapping[str, Any]]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(*_likely(entry), tuple(_likely(other) for other in entry.get("top_logprobs") or ()))
        for entry in content
    )


def _likely(entry: Mapping[str, Any]) -> tuple[str, float]:
    """A token and its log-probability; raises ValueError or TypeError where the server says something else."""
    logprob = entry["logprob"]
    if not isinstance(logprob, (int, float)) or isnan(logprob):
        raise ValueError("a log-probability is no number")
    return _text(entry["token"]), logprob


def _text(said: Any) -> str:
    """What a server says as text; raises ValueError for what is none, half a character included."""
    if not isinstance(said, str):
        raise ValueError("a text is none")
    said.encode()
    return said


def _count(said: Any) -> int | None:
    """A number of tokens, None where the server tells none; raises ValueError for what is no number."""
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int) or said > MOST_TOKENS:
        raise ValueError("a number of tokens is none")
    return said if said >= 0 else None


def _finish(reason: str | None) -> Finish | None:
    return None if reason is None else Finish.LENGTH if reason == "length" else Finish.STOP
