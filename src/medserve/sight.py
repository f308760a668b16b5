"""A model that cannot tell two different pictures apart is found out when it is loaded, not by a patient.

Models have been served blind for months because a projector file was missing or ignored: they answer fluently about
pictures they never saw. So two drawings are shown, with the same question, and a model passes only if both prompts
held image tokens and the two answers differ in their words or in the log-probabilities of their tokens.
"""

from dataclasses import dataclass
from pathlib import Path

from medserve.engines import Engine
from medserve.errors import ModelBlind
from medserve.generation import GenerationRequest, Message, Result, collect
from medserve.images import Image

DRAWINGS = tuple(Path(__file__).parent / "demo" / name for name in ("sight-a.png", "sight-b.png"))
QUESTION = "Describe the image."
TOKENS = 8
LIKENESS = 1e-6
"""Log-probabilities closer than this are the same: equal prompts differ by less, different pictures by far more."""


@dataclass(frozen=True)
class Sight:
    """What the test found: tokens that one picture took, and how far the two answers lay apart."""

    image_tokens: int
    distance: float


async def check(engine: Engine, drawings: tuple[Image, Image]) -> Sight:
    """Show both drawings to the engine; raises ModelBlind with the reason when it cannot have seen them."""
    first, second = [await _describe(engine, drawing) for drawing in drawings]
    tokens = min(first.usage.image, second.usage.image)
    if not tokens:
        raise ModelBlind(
            f"{engine.name} counted no image tokens for a test picture; check that the vision projector belongs to it",
            param="model",
        )
    distance = _distance(first, second)
    if distance <= LIKENESS:
        raise ModelBlind(
            f"{engine.name} gave the same answer to two different test pictures; it cannot be used on images. "
            "Check that the vision projector belongs to these weights",
            param="model",
        )
    return Sight(tokens, distance)


async def _describe(engine: Engine, drawing: Image) -> Result:
    detail = 0 if engine.capabilities.logprobs else None
    message = Message("user", (drawing, QUESTION))
    thinking = 0 if engine.capabilities.thinking else None  # a thought would fill all its tokens
    wish = GenerationRequest((message,), max_tokens=TOKENS, top_logprobs=detail, thinking=thinking)
    return await collect(engine.stream(wish))


def _distance(first: Result, second: Result) -> float:
    """0 for answers that cannot be told apart; else the largest difference of log-probability, or 1 for other words."""
    if (first.text, first.thinking) != (second.text, second.thinking):
        return 1.0
    pairs = zip(first.logprobs, second.logprobs, strict=False)
    return max((abs(one.logprob - other.logprob) for one, other in pairs), default=0.0)
