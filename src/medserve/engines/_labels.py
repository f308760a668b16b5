"""What all engines that score labels have in common: which labels make no sense, and the tokens of the others."""

from collections.abc import Awaitable, Callable, Sequence

from medserve.errors import InvalidRequest
from medserve.generation import GenerationRequest


def refuse_senseless(labels: Sequence[str]) -> None:
    """Raise InvalidRequest where no label could be told from the others."""
    if not labels or not all(labels) or len(set(labels)) < len(labels):
        raise InvalidRequest("labels must be different texts, none of them empty", param="labels")


def refuse_thinking(request: GenerationRequest) -> None:
    """Raise InvalidRequest where it is wished: a label is a whole answer."""
    if request.thinking:
        raise InvalidRequest("labels are scored without thinking; set it to 0 or leave it out", param="thinking")


async def tokens_after(
    prefix: str, stem: str, label: str, tokens: Callable[[str], Awaitable[tuple[int, ...]]]
) -> tuple[int, ...]:
    """The tokens of a label after the stem of a prefix, which is what of the prefix stands at the end of the prompt.

    The two are tokenised together, so that "Answer: " and "yes" make the tokens that the model knows.
    """
    whole, known = await tokens(prefix + label), await tokens(stem)
    if whole[: len(known)] == known:
        return whole[len(known) :]
    return await tokens(prefix[len(stem) :] + label)  # the two grow together; then the label stands for itself
