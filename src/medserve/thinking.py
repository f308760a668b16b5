"""Thinking in two stages: a model is made to think for so many tokens and no more, and then made to answer.

The first stage begins the model's turn with the mark that opens a thought, and ends where the model closes it or its
budget is spent. The second begins with that very thought, closed, and only to it do the wishes about the answer apply:
its prefix, stop texts, schema, choices and log-probabilities. What was read and written for the first stage is the
beginning of the second, so an engine that keeps what it has read goes on from there.

That the model thinks when the system's words say so, and which marks it writes, is Google's documentation of MedGemma
1.5; that a turn can be made to begin with them is our own.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from medserve.generation import Chunk, GenerationRequest, Message, Result, Timings, Usage
from medserve.text import CLOSING, LABEL, OPENING, neutralise

INSTRUCTION = "SYSTEM INSTRUCTION: think silently if needed."
"""What MedGemma 1.5 was trained to think at; a system message of the caller's own follows it."""


@dataclass(frozen=True)
class Stage(GenerationRequest):
    """One of the two questions that make an answer with thinking. Only this module makes them.

    The model's turn is made to begin with `begun`, in which the marks of thinking are control tokens, and after it with
    the prefix.
    """

    begun: str = ""


def beginning(request: GenerationRequest) -> str:
    """What the model's turn is made to begin with, the prefix last; here alone marks of thinking are control tokens."""
    return opened(request) + neutralise(request.prefix)


def answers_a_thought(request: GenerationRequest) -> bool:
    """Whether it is the second stage, whose prompt is that of the first with what was written then."""
    return opened(request).endswith(CLOSING)


def banned(request: GenerationRequest) -> tuple[str, ...]:
    """The marks that must not be written: none may open where thinking is forbidden, nor close where it is over."""
    if request.thinking != 0:
        return ()
    return (OPENING, CLOSING) if answers_a_thought(request) else (OPENING,)


def opened(request: GenerationRequest) -> str:
    """The marks, and the thought between them, that stand before all that this answer will say."""
    return request.begun if isinstance(request, Stage) else ""


def first_stage(request: GenerationRequest) -> Stage:
    """The thought alone: as long as `request.thinking` allows, and bound by nothing that is asked of the answer."""
    assert request.thinking  # noqa: S101 - only who may think is asked to
    return _stage(
        request,
        OPENING + LABEL,
        max_tokens=request.thinking,
        thinking=None,
        prefix="",
        stop=(CLOSING,),
        schema=None,
        choices=(),
        top_logprobs=None,
    )


def second_stage(request: GenerationRequest, thought: Result) -> Stage:
    """The answer after a thought, which is closed whether the model had come to its end or not."""
    begun = OPENING + LABEL + neutralise(thought.thinking) + CLOSING
    return _stage(request, begun, max_tokens=max(1, request.max_tokens - thought.usage.completion), thinking=0)


def together(thought: Result, last: Chunk) -> Chunk:
    """The last piece of the second stage, telling of both; the prompt, which both stages have, counts once."""
    first, second = thought.usage, last.usage or Usage()
    usage = replace(
        first,
        completion=first.completion + second.completion,
        encodes=first.encodes + second.encodes,
        thinking=first.completion,
    )
    return replace(last, usage=usage, timings=thought.timings + (last.timings or Timings()))


def instructed(request: GenerationRequest) -> GenerationRequest:
    """The same conversation with the words in its system message at which the model thinks."""
    system, *turns = request.messages
    if system.role != "system":
        return replace(request, messages=(Message("system", (INSTRUCTION,)), *request.messages))
    return replace(request, messages=(Message("system", (INSTRUCTION + " ", *system.parts)), *turns))


def within(budget: int, max_tokens: int) -> int:
    """A budget that was not fixed for these `max_tokens`: half of them are kept for the answer."""
    return min(budget, max_tokens // 2)


def _stage(request: GenerationRequest, begun: str, **changes: Any) -> Stage:
    told = instructed(request)
    values = {field.name: getattr(told, field.name) for field in fields(GenerationRequest)}
    return Stage(**(values | changes), begun=begun)
