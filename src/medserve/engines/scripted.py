"""Answers from a list, word for word: what tests speak to, and what replays a recorded report."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from medserve.engines import Capabilities
from medserve.errors import EngineError, NotSupported
from medserve.generation import Chunk, Finish, GenerationRequest, LabelScores, Timings, Usage
from medserve.imaging.preprocess import VisionInput
from medserve.settings import ModelSpec, Settings
from medserve.text import split_thinking

PIECE = 7
"""Characters of one piece of a streamed answer: small and odd, so that readers meet words cut in two."""
VISION = VisionInput(896)
IMAGE_TOKENS = 256
CONTEXT = 131_072
REMEMBERED = 256
"""Requests that are kept for looking at; a script that serves for long must not hold every picture it was shown."""


async def start(model: ModelSpec, settings: Settings) -> "Scripted":
    """The engine that says the model's `replies` in their order."""
    context = model.context if "context" in model.model_fields_set else CONTEXT
    return Scripted(model.replies, name=model.name, context=context)


@dataclass(frozen=True)
class Reply:
    """One answer. Given a `question`, it answers only that one, which is compared with the last turn's words.

    A plain text is cut by the request's limits as a model's answer would be, and its thinking by the request's budget:
    without one it is said as it stands, and left out where thinking is forbidden. A reply with a `finish` is a record
    and stays as it is, its usage and label log-probabilities included.
    """

    text: str
    thinking: str = ""
    finish: Finish | None = None
    question: str | None = None
    label_logprobs: Mapping[str, float] | None = field(default=None, hash=False)
    usage: Usage | None = None
    timings: Timings = field(default_factory=Timings)


class Scripted:
    """An engine that has its answers already; `history` holds the latest requests it was asked."""

    def __init__(
        self, replies: Iterable[str | Reply] | Mapping[str, str], *, name: str = "scripted", context: int = CONTEXT
    ) -> None:
        self.name = name
        self._context = context
        self.history: deque[GenerationRequest] = deque(maxlen=REMEMBERED)
        self.replies = _replies(replies)
        self._unsaid = list(self.replies)
        self._said: tuple[GenerationRequest, Reply] | None = None
        self._open = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            context=self._context,
            vision=VISION,
            image_tokens=IMAGE_TOKENS,
            schema=True,
            choices=True,
            score=any(reply.label_logprobs is not None for reply in self.replies),
            prefix=True,
            thinking=True,
            sight_test=False,
            facts=(("engine", "scripted"), ("weights", "scripted")),
        )

    @property
    def alive(self) -> bool:
        return self._open

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The next answer in small pieces; raises EngineError when there is none, or none of the choices."""
        if request.top_logprobs is not None:
            raise NotSupported("the scripted engine knows no log-probabilities of tokens", param="top_logprobs")
        reply = self._next(request)
        if request.choices and split_thinking(reply.text).text.removeprefix(request.prefix) not in request.choices:
            raise EngineError("the next reply of the script is none of the choices; mend the script")
        whole = _limited(reply, request)
        for thinking in _cut(whole.thinking):
            yield Chunk(thinking=thinking)
        for text in _cut(whole.text):
            yield Chunk(text=text)
            await asyncio.sleep(0)  # let others run, as between a real model's tokens
        yield Chunk(finish=whole.finish, usage=whole.usage, timings=whole.timings)

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """The recorded log-probabilities that belong to this request; raises NotSupported when there are none."""
        said = self._said
        # A question that was just answered in words has its words and its scores from one record.
        reply = said[1] if said and said[0] == request else self._next(request)
        recorded = reply.label_logprobs or {}
        if missing := [label for label in labels if label not in recorded]:
            raise NotSupported(f"the script holds no log-probability of {len(missing)} of the labels", param="labels")
        return LabelScores({label: recorded[label] for label in labels})

    async def close(self) -> None:
        self._open = False

    def _next(self, request: GenerationRequest) -> Reply:
        self.history.append(request)
        reply = next((reply for reply in self._unsaid if reply.question in (None, question_of(request))), None)
        if reply is None:
            raise EngineError(
                f"the script of {len(self.replies)} replies has none left for this request; "
                "add a reply, or compare the questions with those that were recorded"
            )
        self._unsaid.remove(reply)
        self._said = request, reply
        return reply


def question_of(request: GenerationRequest) -> str:
    """The words of the last turn."""
    return "".join(part for part in request.messages[-1].parts if isinstance(part, str))


def _replies(given: Iterable[str | Reply] | Mapping[str, str]) -> tuple[Reply, ...]:
    if isinstance(given, Mapping):
        return tuple(Reply(text, question=question) for question, text in given.items())
    return tuple(Reply(reply) if isinstance(reply, str) else reply for reply in given)


def _limited(reply: Reply, request: GenerationRequest) -> Reply:
    """The reply as this request lets it be: with its prefix, up to a stop text and up to the limit, in words."""
    if reply.finish is not None:
        return replace(reply, usage=reply.usage or _counted(request, reply))
    if request.thinking is not None:
        return _thoughtful(reply, request, request.thinking)
    said = reply.text if reply.text.startswith(request.prefix) else request.prefix + reply.text
    stopped = min((said.find(stop) for stop in request.stop if stop in said), default=len(said))
    words, finish = _first_words(said[:stopped], request.max_tokens)
    taken = split_thinking(words)
    whole = replace(reply, text=taken.text, thinking=reply.thinking + taken.thinking, finish=finish)
    return replace(whole, usage=_counted(request, whole))


def _thoughtful(reply: Reply, request: GenerationRequest, budget: int) -> Reply:
    """The reply with as many words of its thinking as may be thought, and then the answer, whatever was left out."""
    parts = split_thinking(reply.text)
    thought, _ = _first_words(reply.thinking + parts.thinking, budget)
    spent = len(thought.split())
    free = replace(request, thinking=None, max_tokens=request.max_tokens - spent)
    answer = replace(_limited(replace(reply, text=parts.text, thinking=""), free), thinking=thought)
    return replace(answer, usage=replace(_counted(request, answer), thinking=spent if budget else None))


def _first_words(text: str, limit: int) -> tuple[str, Finish]:
    """The text up to so many words: a word is at least one token, so no model could have said more."""
    words = text.split()
    if len(words) <= limit:
        return text, Finish.STOP
    end = 0
    for word in words[:limit]:
        end = text.index(word, end) + len(word)
    return text[:end], Finish.LENGTH


def _counted(request: GenerationRequest, reply: Reply) -> Usage:
    """Words stand for tokens, and every picture for as many as MedGemma's."""
    said = " ".join(part for message in request.messages for part in message.parts if isinstance(part, str))
    image = IMAGE_TOKENS * len(request.images)
    completion = len(reply.text.split()) + len(reply.thinking.split())
    return Usage(len(said.split()) + image, completion, 0, image, len(request.images))


def _cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
