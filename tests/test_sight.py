"""No blind model passes: neither one that counts no image tokens nor one that says the same of everything."""

import pytest

from medserve import sight
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import ModelBlind
from medserve.generation import Finish, Result, TokenLogprob, Usage
from tests.pictures import picture

SEEN = Usage(300, 4, 0, 256, 1)


def says(text: str, usage: Usage = SEEN) -> Reply:
    return Reply(text, finish=Finish.STOP, usage=usage)


async def test_two_different_answers_are_sight() -> None:
    """A model that describes two drawings differently has seen them."""
    seen = await sight.check(Scripted([says("a round lesion"), says("a chest")]), (picture(1), picture(2)))

    assert sight.Sight(256, 1.0) == seen


async def test_the_same_answer_twice_is_blindness() -> None:
    """Defect 000-1: for most of its life that system's model never saw a picture, and nobody noticed."""
    with pytest.raises(ModelBlind, match="same answer to two different"):
        await sight.check(Scripted([says("a lesion"), says("a lesion")]), (picture(1), picture(2)))


async def test_no_image_tokens_is_blindness() -> None:
    """Fluent and different answers count for nothing if no picture was in the prompt."""
    blind = Usage(40, 4)

    with pytest.raises(ModelBlind, match="no image tokens"):
        await sight.check(Scripted([says("a lesion", blind), says("a chest", blind)]), (picture(1), picture(2)))


@pytest.mark.parametrize(("second", "distance"), [(-0.5, 0.0), (-0.9, 0.4)])
def test_equal_words_are_compared_by_their_probabilities(second: float, distance: float) -> None:
    """Two pictures may be described alike and still have been seen: the log-probabilities then differ."""
    one, other = (Result("a lesion", logprobs=(TokenLogprob("a", value),)) for value in (-0.5, second))

    assert pytest.approx(distance) == sight._distance(one, other)
