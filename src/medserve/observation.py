"""What is seen of an answer while it is made: counted for the metrics and timed for the traces, in one place.

Nothing here looks at what is asked or answered; only numbers, names that the operator gave, and codes go out.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from medserve import metrics, tracing
from medserve.engines import Engine
from medserve.generation import Chunk, Finish, GenerationRequest, LabelScores
from medserve.images import Study
from medserve.tracing import Span

Place = AbstractAsyncContextManager[object]
"""What is entered before a model is asked; waiting for it belongs to the answer."""


async def answer(model: str, engine: Engine, request: GenerationRequest, place: Place) -> AsyncGenerator[Chunk, None]:
    """The chunks of `engine.stream(request)`, unchanged; `model` is the name that it is declared under."""
    seen = metrics.Answer(model, len(request.images))
    outcome = str(Finish.CANCELLED)
    with tracing.span(f"chat {model}", _asked(model, request), kind="client", current=False) as span:
        try:
            async with place, aclosing(engine.stream(request)) as chunks:
                while True:
                    with span.current():
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    if chunk.text or chunk.thinking:
                        seen.wrote()
                    seen.usage = chunk.usage or seen.usage
                    outcome = str(chunk.finish or outcome)
                    yield chunk
        except Exception as error:
            outcome = tracing.kind_of(error)
            raise
        finally:
            seen.ended(outcome)
            span.set(
                {
                    "gen_ai.response.finish_reasons": [outcome],
                    "gen_ai.response.time_to_first_chunk": seen.first_seconds,
                    **_used(seen.usage),
                }
            )


async def scores(
    model: str, engine: Engine, request: GenerationRequest, labels: Sequence[str], place: Place
) -> LabelScores:
    """`engine.score(request, labels)`, unchanged; `model` is the name that it is declared under."""
    with tracing.span(f"score {model}", _asked(model, request), kind="client") as span:
        async with place:
            result = await engine.score(request, labels)
        metrics.took(model, result.usage, len(request.images))
        span.set({"medserve.labels": len(labels), **_used(result.usage)})
    return result


class Told(Protocol):
    """What is told of a report: its flags, and whether a person must look."""

    @property
    def flags(self) -> Iterable[str]: ...
    @property
    def needs_review(self) -> bool: ...


W = TypeVar("W", bound="Named")
R = TypeVar("R", bound=Told)
P = ParamSpec("P")

Making = Callable[Concatenate[W, Study, Engine, P], Coroutine[Any, Any, R]]


class Named(Protocol):
    """What has a name of its own, as a workflow has."""

    @property
    def name(self) -> str: ...


def examination(make: Making[W, P, R]) -> Making[W, P, R]:
    """The same making of a report from a workflow, a study and an engine, seen."""

    @wraps(make)
    async def seen(workflow: W, study: Study, engine: Engine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began = perf_counter()
        asked: tracing.Attributes = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": workflow.name,
            "gen_ai.request.model": engine.name,
            "medserve.pictures": len(study.images),
        }
        with tracing.span(f"invoke_workflow {workflow.name}", asked) as span:
            report = await make(workflow, study, engine, *args, **kwargs)
            flags = [str(flag) for flag in report.flags]
            span.set({"medserve.flags": flags, "medserve.needs_review": report.needs_review})
        metrics.reported(workflow.name, flags, needs_review=report.needs_review, seconds=perf_counter() - began)
        return report

    return seen


@asynccontextmanager
async def job(kind: str, identifier: str) -> AsyncIterator[None]:
    """Around the work of a job."""
    with tracing.span(f"job {kind}", {"medserve.job.kind": kind, "medserve.job.id": identifier}):
        yield


@contextmanager
def step(name: str) -> Iterator[Span]:
    """Around one question of a workflow; the name is one of the workflow's own and holds no word of a caller's."""
    with tracing.span(f"step {name}", {"medserve.step": name}) as span:
        yield span


def _asked(model: str, request: GenerationRequest) -> tracing.Attributes:
    sampling = request.sampling
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "medserve",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.seed": sampling.seed,
        "medserve.pictures": len(request.images),
    }


def _used(usage: metrics.Usage | None) -> tracing.Attributes:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.output_tokens": usage.completion,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "medserve.usage.image_tokens": usage.image,
        "medserve.vision_encodes": usage.encodes,
    }
