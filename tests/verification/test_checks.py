"""Each comparison fails for what it is there to find, passes what is right, and says when there is too little."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.certificates import Check, Outcome
from medserve.generation import Message
from medserve.intervals import wilson
from medserve.verification import checks
from medserve.verification.observing import Answer, Eyes, Prompted
from medserve.verification.questions import Conversation
from medserve.verification.yardstick import Expected

PICTURE = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
TALK = (Conversation("words", (Message("user", ("Hello",)),)), Conversation("system", (Message("user", ("Hi",)),)))
EXPECTED = Expected(
    sees=True,
    size=8,
    image_tokens=16,
    pictures=(PICTURE,),
    prompts=((2, 6, 10), (2, 6, None, 11)),
    lengths=(3, 21),
    versions={},
)


def answer(best: str, probability: float) -> Answer:
    """Yes or no, the best of them with this probability."""
    other = "no" if best == "yes" else "yes"
    return Answer(best, {best: float(np.log(probability)), other: float(np.log1p(-probability))})


def labels(subject: list[Answer], reference: list[Answer], pictures: int = 10) -> Check:
    return checks.labels(subject, reference, pictures=pictures, scored=True)


def value(check: Check, name: str) -> float | None:
    return next(one.value for one in check.measures if one.name == name)


def test_equal_answers_pass() -> None:
    """With the interval's lower end, and no divergence."""
    said = [answer("yes", 0.9)] * 60

    check = labels(said, said)

    assert Outcome.PASSED is check.outcome
    assert wilson(60, 60)[0] == value(check, "share that agrees, at least (95 %)")
    assert 0 == value(check, "median divergence from the reference")


def test_one_picture_is_not_enough_and_it_is_said_how_many_are() -> None:
    """Six answers that all agree leave it open whether nine of ten do."""
    check = labels([answer("yes", 0.9)] * 6, [answer("yes", 0.9)] * 6, pictures=1)

    assert Outcome.NOT_DONE is check.outcome
    assert "at least 6 pictures, not 1" in check.reason
    assert 35 == checks.enough(1.0)


@settings(deadline=None)  # the machine may be under load
@given(st.floats(0.905, 1.0))
def test_as_many_answers_as_are_called_enough_are_enough(share: float) -> None:
    """And a tenth fewer are not."""
    n = checks.enough(share)

    assert n is not None
    assert wilson(share * n, n)[0] >= checks.LEAST_AGREEMENT
    few = int(n / 1.11)
    assert wilson(share * few, few)[0] < checks.LEAST_AGREEMENT


def test_no_number_of_answers_shows_what_is_not_so() -> None:
    """A share at the limit is never surely above it."""
    assert checks.enough(checks.LEAST_AGREEMENT) is None


def test_answers_that_often_differ_fail() -> None:
    """Here a third of them, though the probabilities hardly do."""
    right = [answer("yes", 0.501)] * 90
    said = [answer("no", 0.501)] * 30 + right[30:]

    check = labels(said, right)

    assert Outcome.FAILED is check.outcome
    assert "60 of 90" in check.reason


def test_other_probabilities_fail_although_the_answers_agree() -> None:
    """KL(0.99 || 0.8) is 0.157 nats."""
    check = labels([answer("yes", 0.8)] * 60, [answer("yes", 0.99)] * 60)

    assert Outcome.FAILED is check.outcome
    assert pytest.approx(0.99 * np.log(0.99 / 0.8) + 0.01 * np.log(0.01 / 0.2)) == value(
        check, "median divergence from the reference"
    )


@settings(deadline=None)  # the machine may be under load
@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=2, max_size=5))
def test_divergence_is_never_negative_and_nothing_for_equals(pairs: list[tuple[float, float]]) -> None:
    """Gibbs' inequality holds for what is computed, too."""
    one = Answer("0", {str(index): a for index, (a, _) in enumerate(pairs)})
    other = Answer("0", {str(index): b for index, (_, b) in enumerate(pairs)})

    check = labels([one] * 40, [other] * 40)
    same = labels([one] * 40, [one] * 40)

    assert (value(check, "median divergence from the reference") or 0.0) >= 0
    assert 0 == value(same, "worst divergence from the reference")


def test_answers_in_words_are_compared_without_a_divergence() -> None:
    """An engine that scores no labels tells only what it preferred; the reason stands where the number would."""
    said = [Answer("yes", {"yes": -0.1})] * 60

    check = checks.labels(said, said, pictures=10, scored=False)

    assert Outcome.PASSED is check.outcome
    missing = next(one for one in check.measures if one.name == "median divergence from the reference")
    assert (None, "the engine does not tell the probabilities of all labels") == (missing.value, missing.reason)


def test_silence_is_no_agreement() -> None:
    """A model that goes on thinking has not answered, and nor has the reference then."""
    check = checks.labels([Answer("", {})] * 60, [Answer("", {})] * 60, pictures=10, scored=False)

    assert Outcome.FAILED is check.outcome
    assert 0 == value(check, "answers that agree")


def test_equal_pixels_pass_and_one_grey_level_is_forgiven() -> None:
    """Pillow and torchvision round a resize differently by one level here and there."""
    nearly = PICTURE.copy()
    nearly[0, 0, 0] ^= 1

    check = checks.pixels(["photograph"], [nearly], EXPECTED)

    assert Outcome.PASSED is check.outcome
    assert 1 == value(check, "photograph: largest difference")


def test_other_pixels_fail_with_how_far_they_are_off() -> None:
    """Here the order of colours."""
    check = checks.pixels(["photograph"], [np.ascontiguousarray(PICTURE[..., ::-1])], EXPECTED)

    assert Outcome.FAILED is check.outcome
    assert "photograph: largest difference" in check.reason


def test_pixels_of_another_size_fail() -> None:
    """They cannot even be compared."""
    check = checks.pixels(["photograph"], [PICTURE[:4]], EXPECTED)

    assert Outcome.FAILED is check.outcome
    assert "8 x 4 pixels, not 8 x 8" in check.reason


def test_pixels_that_nobody_shows_are_not_needed() -> None:
    """A server of somebody else's is judged by its answers."""
    check = checks.pixels(["photograph"], [None], EXPECTED)

    assert (Outcome.NOT_DONE, False) == (check.outcome, check.needed)


def test_equal_tokens_pass() -> None:
    """Ids and counts."""
    read = [Prompted((2, 6, 10), 3), Prompted((2, 6, None, 11), 21)]

    assert Outcome.PASSED is checks.template(TALK, read, EXPECTED).outcome


def test_the_first_token_that_differs_is_told() -> None:
    """By its place and the two ids, and not by the words of the conversation."""
    read = [Prompted((2, 6, 10), 3), Prompted((2, 6, None, 10), 21)]

    check = checks.template(TALK, read, EXPECTED)

    assert Outcome.FAILED is check.outcome
    assert "system: at place 3 id 10 is read, not 11" in check.reason


def test_a_prompt_that_is_cut_short_differs_at_its_end() -> None:
    """The shorter one has ended there."""
    check = checks.template(TALK, [Prompted((2, 6), 2), Prompted((2, 6, None, 11), 21)], EXPECTED)

    assert "at place 2 id the end is read, not 10" in check.reason


def test_where_ids_are_not_shown_their_number_is_compared() -> None:
    """A doubled beginning of sequence is found by that."""
    right = [Prompted(None, 3), Prompted(None, 21)]
    doubled = [Prompted(None, 4), Prompted(None, 22)]

    assert Outcome.PASSED is checks.template(TALK, right, EXPECTED).outcome
    assert "4 tokens are read, not 3" in checks.template(TALK, doubled, EXPECTED).reason


def test_a_build_that_does_not_see_fails_with_the_reason() -> None:
    """What the sight test said stands in the certificate."""
    check = checks.sees(Eyes(fault="it was loaded without its vision part"), EXPECTED)

    assert (Outcome.FAILED, "it was loaded without its vision part") == (check.outcome, check.reason)


def test_a_picture_of_the_wrong_number_of_tokens_fails() -> None:
    """Its pooling is then another."""
    assert Outcome.FAILED is checks.sees(Eyes(64, 1.0), EXPECTED).outcome
    assert Outcome.PASSED is checks.sees(Eyes(16, 1.0), EXPECTED).outcome


def test_a_model_without_a_vision_part_need_not_see() -> None:
    """MedGemma 27B is made for texts alone, too."""
    blind = replace(EXPECTED, sees=False)

    assert not checks.sees(Eyes(), blind).needed
    assert not checks.pixels([], [], blind).needed
