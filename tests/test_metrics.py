"""What is counted adds up, and no label is ever a caller's own word."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve import metrics, observation
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import EngineError
from medserve.generation import Chunk, Finish, GenerationRequest, LabelScores, Message, Usage, collect
from tests.pictures import picture

ASKED = GenerationRequest((Message("user", (picture(), "What is it?")),))
ROOT = Path(__file__).parents[1]
TWO = Usage(prompt=600, completion=3, cached=300, image=512, encodes=1)


def seen(engine: Scripted, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
    """An answer of `engine` as a model of its name gives it."""
    return observation.answer(engine.name, engine, request, nullcontext())


def value(name: str, **labels: str) -> float:
    """A sample as it would be scraped; 0 when there is none."""
    return metrics.REGISTRY.get_sample_value(f"medserve_{name}", labels) or 0.0


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A name that no other test counts under."""
    return f"model-of-{request.node.name}".replace("[", "-").rstrip("]")


async def test_an_answer_is_counted_with_its_tokens_and_times(model: str) -> None:
    """Tokens by kind, the outcome, one first piece and the pieces after it."""
    engine = Scripted([Reply("It is round.", finish=Finish.STOP, usage=TWO)], name=model)

    result = await collect(seen(engine, ASKED))

    assert "It is round." == result.text
    assert 1 == value("answers_total", model=model, outcome="stop")
    assert (600, 3, 300, 512) == tuple(
        value(f"{kind}_tokens_total", model=model) for kind in ("prompt", "completion", "cached", "image")
    )
    assert 1 == value("time_to_first_token_seconds_count", model=model)
    assert 1 == value("inter_token_latency_seconds_count", model=model)  # "It is r" and "ound."
    assert 1 == value("answer_duration_seconds_count", model=model)


async def test_a_picture_that_was_not_encoded_again_counts_as_reused(model: str) -> None:
    """What the cache of pictures saved can be read off."""
    shown = GenerationRequest((Message("user", (picture(1), picture(2), "Compare.")),))
    engine = Scripted([Reply("Alike.", finish=Finish.STOP, usage=TWO)], name=model)

    await collect(seen(engine, shown))

    assert (2, 1, 1) == tuple(
        value(f"{name}_total", model=model) for name in ("pictures", "vision_encodes", "pictures_reused")
    )


async def test_a_failed_answer_counts_under_its_code_and_not_its_words(model: str) -> None:
    """The script is empty, which its engine says in words that stay out."""
    with pytest.raises(EngineError):
        await collect(seen(Scripted([], name=model), ASKED))

    assert 1 == value("answers_total", model=model, outcome=EngineError.code)


async def test_an_answer_whose_reader_left_counts_as_cancelled(model: str) -> None:
    """The stream is closed after its first piece."""
    stream = seen(Scripted(["It is round and blue."], name=model), ASKED)
    await anext(stream)
    await stream.aclose()

    assert 1 == value("answers_total", model=model, outcome="cancelled")


async def test_the_scoring_of_labels_counts_its_tokens(model: str) -> None:
    """A workflow's scored questions are work like others."""

    class Scoring(Scripted):
        async def score(self, request: GenerationRequest, labels: object) -> LabelScores:
            return LabelScores({"A": -0.1}, usage=TWO)

    await observation.scores(model, Scoring([], name=model), ASKED, ["A"], nullcontext())

    assert 600 == value("prompt_tokens_total", model=model)


async def test_one_request_adds_up_what_its_answers_took(model: str) -> None:
    """Also of answers that were made in tasks of their own; another request's stay out of it."""

    async def request(answers: int) -> metrics.Tally:
        tally = metrics.Tally()
        metrics.TALLY.set(tally)
        for _ in range(answers):
            engine = Scripted([Reply("Yes.", finish=Finish.STOP, usage=TWO)], name=model)
            await asyncio.create_task(collect(seen(engine, ASKED)))
        return tally

    first, second = await asyncio.gather(request(2), request(1))

    assert metrics.Tally(model, 1200, 6, 600, 1024) == first
    assert metrics.Tally(model, 600, 3, 300, 512) == second


def test_a_removed_model_takes_its_series_along(model: str) -> None:
    """Names that come and go do not add up."""
    metrics.loaded(model, 2.5)
    metrics.load_failed(model, "weights_missing")
    metrics.crashed(model)
    metrics.forget(model)

    text, _ = metrics.exposition([], "")

    assert model not in text.decode()


@given(st.text(max_size=20))
def test_a_method_that_http_does_not_know_is_no_label(method: str) -> None:
    """Anyone can send any word there."""
    metrics.answered("/livez", method, 405, 0.001)

    labels = {
        sample.labels["method"]
        for family in metrics.REQUESTS.collect()
        for sample in family.samples
        if sample.name == "medserve_http_requests_total"
    }
    assert labels <= metrics.METHODS | {metrics.OTHER_METHOD}


async def test_a_report_is_counted_with_its_flags() -> None:
    """Once under each flag, and under whether a person must look."""
    report = SimpleNamespace(flags=["empty", "blind"], needs_review=True)

    @observation.examination
    async def make(*_: Any) -> SimpleNamespace:
        return report

    study = SimpleNamespace(images=())
    made = await make(SimpleNamespace(name="flagged"), study, Scripted([]))  # type: ignore[arg-type]

    assert made is report
    assert 1 == value("reports_total", workflow="flagged", needs_review="true")
    assert (1, 1, 0) == tuple(
        value("quality_flags_total", workflow="flagged", flag=flag) for flag in ("empty", "blind", "truncated")
    )


NAMED = re.compile(r"medserve_[a-z_]+")
NOW = {
    "medserve_model_state",
    "medserve_model_blind",
    "medserve_model_memory_bytes",
    "medserve_answers_in_progress",
    "medserve_answers_waiting",
    "medserve_answer_slots",
    "medserve_jobs",
    "medserve_gpu_memory_used_bytes",
    "medserve_gpu_memory_total_bytes",
    "medserve_gpu_utilisation_ratio",
}
"""What is read off when it is asked for; the route's own tests see most of it."""


@pytest.mark.parametrize("page", ["docs/observability.md", "deploy/grafana/medserve.json"])
def test_the_page_and_the_dashboard_name_metrics_that_exist(page: str) -> None:
    """And the page names all there are."""
    known = {
        f"{family.name}{'_total' if family.type == 'counter' else '_info' if family.type == 'info' else ''}"
        for family in metrics.REGISTRY.collect()
        if family.name.startswith("medserve_")
    } | NOW
    named = {name.removesuffix("_bucket") for name in NAMED.findall((ROOT / page).read_text())}

    assert set() == named - known
    if page.startswith("docs"):
        assert set() == known - named
