"""The promises of planning: what fits is let through, and what does not is told how much would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.errors import ContextOverflow
from medserve.planning import SLACK, fewest_tokens, plan


def test_a_full_series_fits_into_medgemmas_context() -> None:
    """85 slices of 256 tokens with their labels, as the model's recipe has it."""
    room = plan(85, context=131_072, image_tokens=256, label_tokens=5, text=300, answer=2048)

    assert 85 * 261 + 300 + 2048 + SLACK == room.needed(85)


def test_too_many_slices_are_told_how_many_would_fit() -> None:
    """The number in the message is the largest that fits."""
    with pytest.raises(ContextOverflow, match="28 would fit") as caught:
        plan(85, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)

    assert "images" == caught.value.param
    plan(28, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)
    with pytest.raises(ContextOverflow):
        plan(29, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)


@pytest.mark.parametrize(
    ("pictures", "text", "answer", "param"),
    [(0, 10, 3000, "max_tokens"), (0, 3000, 10, "messages"), (1, 10, 1900, "max_tokens")],
)
def test_words_or_answers_that_are_too_long_are_named(pictures: int, text: int, answer: int, param: str) -> None:
    """Sending fewer slices is no remedy where the words alone are too many."""
    with pytest.raises(ContextOverflow) as caught:
        plan(pictures, context=2048, image_tokens=256, text=text, answer=answer)

    assert param == caught.value.param
    assert "would fit" not in caught.value.message


def test_a_text_has_at_least_a_token_and_at_most_its_characters() -> None:
    """An estimate that never refuses what fits."""
    assert [0, 1, 1, 2] == [fewest_tokens("x" * length) for length in (0, 1, 8, 9)]


@given(
    pictures=st.integers(0, 200),
    context=st.integers(256, 131_072),
    tokens=st.integers(1, 1024),
    text=st.integers(0, 5000),
    answer=st.integers(1, 8192),
)
def test_what_is_said_to_fit_fits(pictures: int, context: int, tokens: int, text: int, answer: int) -> None:
    """Never a token over the context, and never a picture less than there is room for."""
    try:
        room = plan(pictures, context=context, image_tokens=tokens, text=text, answer=answer)
    except ContextOverflow:
        return
    assert room.needed(pictures) <= context
    assert pictures <= room.pictures
    assert room.needed(room.pictures + 1) > context
