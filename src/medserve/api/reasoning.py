"""How long a model may think is said in several ways by OpenAI's and other clients, and means one thing here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from medserve import thinking
from medserve.api.bodies import Strict
from medserve.api.conversation import DEFAULT_MAX_TOKENS
from medserve.errors import InvalidRequest
from medserve.generation import MAX_OUTPUT_TOKENS
from medserve.planning import THOUGHT
from medserve.settings import ModelSpec

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: dict[Effort, int] = {
    "none": 0,
    "minimal": 256,
    "low": 512,
    "medium": 1024,
    "high": 2048,
    "xhigh": 4096,
    "max": MAX_OUTPUT_TOKENS - DEFAULT_MAX_TOKENS,
}
"""Tokens to think for at each effort. 2048 stands for the 2000 of Google's own notebooks for whole answers with
thoughts; each step is twice the one below it, and the last is all that leaves an answer its usual length."""
USUAL: Effort = "medium"
"""What is meant by thinking without a measure."""
Budget = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS - 1)]
Thinking = Annotated[
    int, Field(ge=0, le=MAX_OUTPUT_TOKENS - 1, description="tokens to think for, a part of the longest answer; 0: none")
]
"""The budget as the routes of our own take it."""


@dataclass(frozen=True)
class Wish:
    """How many tokens to think for and the field that says it. A `firm` number is honoured as it is, or refused."""

    budget: int
    field: str
    firm: bool = False


@dataclass(frozen=True)
class Length:
    """The longest answer and the part of it that may be thought, None where nobody said it; both in tokens."""

    max_tokens: int
    thinking: int | None


class ThinkingOn(Strict):
    """Think, for `budget_tokens` at most; without a number as long as at medium effort."""

    type: Literal["enabled"]
    budget_tokens: Budget | None = None


class ThinkingOff(Strict):
    """Do not think."""

    type: Literal["disabled"]


class TemplateOptions(Strict):
    """What clients of other servers say to a chat template: it switches thinking on, at medium effort, or off."""

    enable_thinking: bool


class Thoughtful(BaseModel):
    """Whether and how long to think, said in at most one of three ways."""

    reasoning_effort: Effort | None = None
    thinking: Annotated[ThinkingOn | ThinkingOff, Field(discriminator="type")] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def wish(self) -> Wish | None:
        """What was said; raises InvalidRequest that names the second of two ways."""
        said = [wish for wish in (self._effort(), self._switch(), self._template()) if wish is not None]
        if len(said) > 1:
            first, second = said[0].field.partition(".")[0], said[1].field.partition(".")[0]
            raise InvalidRequest(f"{second} and {first} both say how long to think; give one", param=second)
        return said[0] if said else None

    def _effort(self) -> Wish | None:
        return of_effort(self.reasoning_effort, "reasoning_effort")

    def _switch(self) -> Wish | None:
        match self.thinking:
            case ThinkingOn(budget_tokens=int(budget)):
                return Wish(budget, "thinking.budget_tokens", firm=True)
            case ThinkingOn():
                return Wish(EFFORTS[USUAL], "thinking")
            case ThinkingOff():
                return Wish(0, "thinking")
            case _:
                return None

    def _template(self) -> Wish | None:
        if self.chat_template_kwargs is None:
            return None
        on = self.chat_template_kwargs.enable_thinking
        return Wish(EFFORTS[USUAL] if on else 0, "chat_template_kwargs.enable_thinking")


def names(wish: Wish | None, limit: str, *, named: bool) -> dict[str, str]:
    """What the layers below call budget and length, and the fields that a caller knows them by.

    `limit` is the field of the length, and `named` says that the caller gave one. A thought that does not fit is then a
    matter of that length where the wish gives way to it, and else of the field that wished for the thought.
    """
    if wish is None:
        return {"max_tokens": limit, THOUGHT: limit}
    gives_way = named and not wish.firm
    return {"max_tokens": limit, "thinking": wish.field, THOUGHT: limit if gives_way else wish.field}


def of_effort(effort: Effort | None, field: str) -> Wish | None:
    """The wish that an effort is, said in a field of this name."""
    return None if effort is None else Wish(EFFORTS[effort], field)


def in_tokens(budget: int | None) -> Wish | None:
    """The wish of the routes of our own, which take a number."""
    return None if budget is None else Wish(budget, "thinking", firm=True)


def length(wish: Wish | None, named: int | None, spec: ModelSpec, usual: int = DEFAULT_MAX_TOKENS) -> Length:
    """How long the answer of a model may be; `named` is what the caller allows for thought and answer together.

    Where he names nothing, the answer keeps its `usual` length and the thought comes on top. Where he does not say
    how long to think, the model's settings may. An effort, and what the settings say, give way: half of the named
    length is left to the answer, and half of the model's context to the question. Raises InvalidRequest for a firm
    budget that leaves no token to answer with.
    """
    if wish is None and spec.thinking is not None:
        wish = Wish(spec.thinking, "model")
    if wish is None:
        return Length(named or usual, None)
    if not wish.firm:
        return _soft(wish.budget, named, spec, usual)
    most = named or min(usual + wish.budget, MAX_OUTPUT_TOKENS)
    if wish.budget >= most:
        raise InvalidRequest(
            f"{wish.field} must be less than the {most} tokens of the whole answer, which thinking is a part of",
            param=wish.field,
        )
    return Length(most, wish.budget)


def _soft(budget: int, named: int | None, spec: ModelSpec, usual: int) -> Length:
    """What a budget that gives way comes to; without a named length it comes on top of the usual one if it can."""
    if named:
        return Length(named, thinking.within(budget, named))
    most = max(usual, min(usual + budget, MAX_OUTPUT_TOKENS, spec.context // 2))
    return Length(most, max(thinking.within(budget, most), min(budget, most - usual)))
