"""One question, one greedy answer: what the routes share that take a prompt and give back a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated

from fastapi import Response
from pydantic import BaseModel, Field

from medserve.api import reasoning
from medserve.api.bodies import Strict, Words
from medserve.api.conversation import ModelName, Names, Tokens, labelled, refuse_unable, renamed
from medserve.api.reasoning import Thinking, in_tokens
from medserve.errors import InvalidRequest, MedserveError
from medserve.examination import of_engine
from medserve.flags import Flag
from medserve.generation import Finish, GenerationRequest, Message, Result, collect
from medserve.images import Study
from medserve.models import ModelHandle
from medserve.reports import StudyConcern, notice_for
from medserve.settings import Settings
from medserve.text import is_refusal

Prompt = Annotated[Words, Field(min_length=1)]


class Asked(Strict):
    """A prompt for a model; the default model where none is named."""

    prompt: Prompt
    model: ModelName | None = None
    max_tokens: Tokens
    thinking: Thinking | None = None

    def check(self, settings: Settings) -> None:
        """Raise InvalidRequest when there are more words than are taken."""
        check_words(self.prompt, settings, "prompt")

    def tokens(self, handle: ModelHandle) -> int:
        """The answer's length that was asked for, or the usual one where that leaves room for the question.

        Raises InvalidRequest where that leaves nothing to answer with after the thought.
        """
        if "max_tokens" in self.model_fields_set:
            return reasoning.length(in_tokens(self.thinking), self.max_tokens, handle.spec).max_tokens
        return usual_length(self.thinking, self.max_tokens, handle)

    @property
    def names(self) -> Names:
        """What this question calls the fields that the layers below name in their errors."""
        named = "max_tokens" in self.model_fields_set
        return {"messages": "prompt"} | reasoning.names(in_tokens(self.thinking), "max_tokens", named=named)


class Counted(BaseModel):
    """Tokens as the engine counted them; `cached` and `image` are parts of `prompt`."""

    prompt: int
    completion: int
    cached: int
    image: int


class Told(BaseModel):
    """What every answer says of itself: who answered, how it ended, what is noticed about it, and the notice."""

    model: str
    max_tokens: int = Field(description="the most that the answer could have")
    finish_reason: str = Field(description="stop, or length where max_tokens cut the answer off")
    flags: list[Flag]
    concerns: list[StudyConcern] = Field([], description="what the files give cause for")
    thinking: str = Field("", description="what the model thought; it is never part of the answer")
    usage: Counted
    inference_time_ms: float = Field(description="from the question to the end of the answer, loading aside")
    notice: str


@dataclass(frozen=True)
class Answered:
    """An answer as it came, and what it took."""

    result: Result
    told: Told


def usual_length(thinking: int | None, usual: int, handle: ModelHandle) -> int:
    """The usual length of an answer after a thought, and no more than half of the context.

    A default must not refuse a question. Raises InvalidRequest where the thought would take that half whole.
    """
    most = reasoning.length(in_tokens(thinking), None, handle.spec, usual).max_tokens
    most = min(most, handle.capabilities.context // 2)
    if thinking is not None and thinking >= most:
        raise InvalidRequest(
            f"thinking must be less than {most} here: half of the model's context is left to the question",
            param="thinking",
        )
    return most


def check_words(words: str, settings: Settings, param: str) -> None:
    """Raise InvalidRequest when a text is longer than `limits.text_characters`."""
    if len(words) > settings.limits.text_characters:
        raise InvalidRequest(
            f"{param} has {len(words)} characters; at most {settings.limits.text_characters} are taken", param=param
        )


async def answered(
    handle: ModelHandle,
    prompt: str,
    max_tokens: int,
    study: Study | None = None,
    *,
    thinking: int | None = None,
    names: Names,
) -> Answered:
    """Ask a model that is ready: the pictures first, then the words, and the likeliest token at each step.

    Errors name the caller's own fields.
    """
    began = perf_counter()
    try:
        message = Message("user", (*(labelled(study) if study else ()), prompt))
        request = GenerationRequest((message,), max_tokens, thinking=thinking)
        refuse_unable(handle.name, handle.capabilities, request)
        result = await collect(handle.stream(request))
    except MedserveError as error:
        raise renamed(error, names) from None
    took = perf_counter() - began
    facts = dict(handle.capabilities.facts)
    told = Told(
        model=handle.name,
        max_tokens=max_tokens,
        finish_reason=result.finish,
        flags=[*_noticed(result, study), *of_engine(facts)],
        concerns=[StudyConcern(name=one.value, meaning=one.meaning) for one in (study.concerns if study else ())],
        thinking=result.thinking,
        usage=_tokens(result),
        inference_time_ms=round(took * 1000, 1),
        notice=notice_for(facts),
    )
    return Answered(result, told)


def _noticed(result: Result, study: Study | None) -> Sequence[Flag]:
    judged = {
        Flag.EMPTY: not result.text.strip(),
        Flag.REFUSAL: is_refusal(result.text),
        Flag.TRUNCATED: result.finish is Finish.LENGTH,
        Flag.BLIND: study is not None and not result.usage.image,
    }
    return [flag for flag, true in judged.items() if true]


def _tokens(result: Result) -> Counted:
    usage = result.usage
    return Counted(prompt=usage.prompt, completion=usage.completion, cached=usage.cached, image=usage.image)


def sent(answer: BaseModel) -> Response:
    """An answer as it travels; what is no number is null there."""
    return Response(answer.model_dump_json(), media_type="application/json")
