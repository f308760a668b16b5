"""A response of the Responses API as it comes to be: typed events in their order, and the object they add up to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any, NamedTuple
from uuid import uuid4

from medserve.api.openai import input_details, logprob_entries
from medserve.errors import MedserveError
from medserve.generation import Chunk, Finish, TokenLogprob, Usage

Event = dict[str, Any]

INCOMPLETE = {"reason": "max_output_tokens"}


class Kind(NamedTuple):
    """A kind of output item: its type, what its one part is, and the word for the part in events."""

    item: str
    part: str
    event: str
    prefix: str


MESSAGE = Kind("message", "output_text", "output_text", "msg")
REASONING = Kind("reasoning", "reasoning_text", "reasoning_text", "rs")


@dataclass
class Item:
    """An output item while it is written, and afterwards."""

    kind: Kind
    place: int
    id: str
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"

    @property
    def part(self) -> dict[str, Any]:
        """The one part that the item's words are in."""
        part: dict[str, Any] = {"type": self.kind.part, "text": self.text}
        return part | {"annotations": [], "logprobs": list(self.logprobs)} if self.kind is MESSAGE else part

    def shown(self, *, empty: bool = False) -> dict[str, Any]:
        """The item as it travels; `empty` before its part was told of."""
        who: dict[str, Any] = {"role": "assistant"} if self.kind is MESSAGE else {"summary": []}
        content = [] if empty else [self.part]
        return {"id": self.id, "type": self.kind.item, "status": self.status, **who, "content": content}


class Writer:
    """Writes one response. `opened`, then `fed` with every chunk, then `ended` or `failed`; each gives its events.

    What the model thinks is an item of its own, before its words. Thinking that nothing opened is known as such only
    when it ends: the text of its item is then taken back in the events and the object that follow, though its pieces
    were sent.
    """

    def __init__(self, envelope: Mapping[str, Any]) -> None:
        self._response = {**envelope, "status": "in_progress", "output": []}
        self._sent = 0
        self._items: list[Item] = []
        self._open: Item | None = None
        self._tokens: list[TokenLogprob] = []

    @property
    def response(self) -> dict[str, Any]:
        """The response as it stands; an item that is being written is in it with what it has."""
        return {**self._response, "output": [item.shown() for item in self._items]}

    def opened(self) -> list[Event]:
        """What every stream begins with."""
        return [self._event(kind, response=self.response) for kind in ("created", "in_progress")]

    def fed(self, chunk: Chunk) -> list[Event]:
        """The events of one more piece of the answer."""
        return list(self._fed(chunk))

    def ended(self, finish: Finish, usage: Usage, reasoning_tokens: int | None) -> list[Event]:
        """The events that close the answer. An answer without a word is an empty message."""
        return list(self._ended(finish, usage, reasoning_tokens))

    def failed(self, error: MedserveError) -> list[Event]:
        """The event that ends a stream whose answer broke off: what was said stays, as incomplete."""
        if self._open is not None:
            self._open.status = "incomplete"
        self._response |= {"status": "failed", "error": {"code": error.code, "message": error.message}}
        return [self._event("failed", response=self.response)]

    # --- items -----------------------------------------------------------------------------------------------------

    def _fed(self, chunk: Chunk) -> Iterator[Event]:
        self._tokens += chunk.logprobs
        if chunk.rethought:
            yield from self._taken_back()
        if chunk.thinking:
            self._tokens.clear()
            yield from self._said(REASONING, chunk.thinking)
        if chunk.text:
            yield from self._said(MESSAGE, chunk.text)

    def _ended(self, finish: Finish, usage: Usage, reasoning_tokens: int | None) -> Iterator[Event]:
        status = "completed" if finish is Finish.STOP else "incomplete"
        if not self._items or (finish is Finish.STOP and self._items[-1].kind is REASONING):
            yield from self._closed("completed")
            yield from self._begun(MESSAGE)
        yield from self._closed(status)
        self._response |= {
            "status": status,
            "completed_at": int(time()) if finish is Finish.STOP else None,
            "incomplete_details": INCOMPLETE if finish is Finish.LENGTH else None,
            "usage": usage_of(usage, reasoning_tokens),
        }
        yield self._event(status, response=self.response)

    def _said(self, kind: Kind, text: str) -> Iterator[Event]:
        if self._open is None or self._open.kind is not kind:
            yield from self._closed("completed")
            yield from self._begun(kind)
        assert self._open is not None  # noqa: S101 - begun above
        self._open.text += text
        more = {"logprobs": self._logprobs()} if kind is MESSAGE else {}
        yield self._of_part("delta", delta=text, **more)

    def _begun(self, kind: Kind) -> Iterator[Event]:
        self._open = item = Item(kind, len(self._items), f"{kind.prefix}_{uuid4().hex}")
        self._items.append(item)
        yield self._event("output_item.added", output_index=item.place, item=item.shown(empty=True))
        yield self._event(
            "content_part.added", item_id=item.id, output_index=item.place, content_index=0, part=item.part
        )

    def _closed(self, status: str) -> Iterator[Event]:
        """The end of the item that is being written, if one is."""
        if self._open is None:
            return
        item = self._open
        more: dict[str, Any] = {}
        if item.kind is MESSAGE:
            self._logprobs()
            more["logprobs"] = list(item.logprobs)
        item.status = status
        yield self._of_part("done", text=item.text, **more)
        yield self._event(
            "content_part.done", item_id=item.id, output_index=item.place, content_index=0, part=item.part
        )
        yield self._event("output_item.done", output_index=item.place, item=item.shown())
        self._open = None

    def _taken_back(self) -> Iterator[Event]:
        """Make thinking of the words so far."""
        thought = "".join(item.text for item in self._items if item.kind is MESSAGE)
        for item in self._items:
            if item.kind is MESSAGE:
                item.text, item.logprobs = "", []
        self._tokens.clear()
        yield from self._closed("completed")
        yield from self._said(REASONING, thought)

    def _logprobs(self) -> list[dict[str, Any]]:
        """The log-probabilities of the tokens since the last piece, which go to the message that is being written."""
        assert self._open is not None  # noqa: S101 - called while one is
        entries = logprob_entries(self._tokens)
        self._tokens.clear()
        self._open.logprobs += entries
        return entries

    # --- events ----------------------------------------------------------------------------------------------------

    def _of_part(self, what: str, **fields: Any) -> Event:
        assert self._open is not None  # noqa: S101 - called while one is
        place = {"item_id": self._open.id, "output_index": self._open.place, "content_index": 0}
        return self._event(f"{self._open.kind.event}.{what}", **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": f"response.{kind}", "sequence_number": self._sent, **fields}
        self._sent += 1
        return event


def usage_of(usage: Usage, reasoning_tokens: int | None) -> dict[str, Any]:
    """Token counts as this dialect names them; `reasoning_tokens` is null where the engine cannot count them."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": input_details(usage),
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt + usage.completion,
    }
