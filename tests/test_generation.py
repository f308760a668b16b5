"""Requests are valid once built, and what scores and pieces add up to is plain arithmetic."""

from collections.abc import AsyncGenerator
from math import exp, inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.errors import InvalidRequest
from medserve.generation import (
    Chunk,
    Finish,
    GenerationRequest,
    LabelScores,
    Message,
    Sampling,
    Usage,
    collect,
)
from tests.pictures import picture

ASK = (Message("user", ("Hello?",)),)
LOGPROB = st.floats(-700, 0, allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", nan),
        ("temperature", -0.1),
        ("temperature", inf),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", nan),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_sampling_is_refused_outside_its_range(field: str, value: float) -> None:
    """The error names the parameter; NaN lies in no range."""
    with pytest.raises(InvalidRequest) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]

    assert field == caught.value.param


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -5}),
        ("max_tokens", {"max_tokens": 10**9}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("schema", {"schema": {}, "choices": ("a",)}),
        ("choices", {"choices": ("",)}),
        ("stop", {"stop": ("",)}),
        ("stop", {"stop": ("x",) * 17}),
    ],
)
def test_a_request_is_refused_outside_its_range(field: str, request_: dict[str, Any]) -> None:
    """Before any work is done for it."""
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest(ASK, **request_)

    assert field == caught.value.param


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (Message("system", ("Be brief.",)),),
        (Message("assistant", ("Hello.",)),),
        (Message("user", ("a",)), Message("user", ("b",))),
        (Message("user", ("a",)), Message("assistant", ("b",))),
        (Message("user", ("a",)), Message("system", ("b",)), Message("user", ("c",))),
        (Message("user", ("  ",)),),
        (Message("system", (picture(),)), Message("user", ("a",))),
    ],
)
def test_turns_must_alternate_and_end_with_the_user(messages: tuple[Message, ...]) -> None:
    """Gemma's template knows no other order, and a picture stands in a user's turn."""
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest(messages)

    assert "messages" == caught.value.param


def test_a_picture_alone_is_a_question() -> None:
    """Words may be missing where there is something to look at."""
    assert 1 == len(GenerationRequest((Message("user", (picture(),)),)).images)


@given(st.dictionaries(st.text(min_size=1), LOGPROB, min_size=1))
def test_label_probabilities_add_up_to_one(logprobs: dict[str, float]) -> None:
    """However unlikely the labels are together."""
    scores = LabelScores(logprobs)

    assert pytest.approx(1.0) == sum(scores.probabilities.values())
    assert max(logprobs.values()) == logprobs[scores.best]


def test_the_mass_is_what_the_labels_have_together() -> None:
    """A small mass says that the model wanted to answer something else."""
    assert pytest.approx(exp(-1) + exp(-2)) == LabelScores({"a": -1.0, "b": -2.0}).mass


async def test_chunks_add_up_to_the_result() -> None:
    """Text and thinking are joined, and the last chunk's counts stand."""

    async def chunks() -> AsyncGenerator[Chunk, None]:
        yield Chunk(thinking="hm")
        yield Chunk("a ")
        yield Chunk("b")
        yield Chunk(finish=Finish.STOP, usage=Usage(3, 2))

    result = await collect(chunks())

    assert ("a b", "hm", Finish.STOP, Usage(3, 2)) == (result.text, result.thinking, result.finish, result.usage)
