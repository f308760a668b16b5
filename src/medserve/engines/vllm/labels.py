"""Labels are scored by how likely each next token is, one unbound token at a time: nothing is sampled that is used.

What vLLM shows of log-probabilities comes from the model's raw logits, but for an answer bound by a schema or by
choices: there it has taken away what the grammar forbids before it looks.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum, log
from typing import Any

from medserve.generation import LabelScores, Timings, Usage

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Next:
    """Log-probabilities of what may come next at one place, and what it took to know them."""

    known: Mapping[int, float]
    usage: Usage
    timings: Timings

    def logprob(self, token: int, barred: Collection[int]) -> float:
        """That of a token, of a model that cannot say what is barred."""
        rest = 1.0 - fsum(exp(self.known[other]) for other in barred)
        return self.known[token] - (log(max(rest, exp(self.known[token]))) if barred else 0.0)


Ask = Callable[[Tokens, Collection[int]], Coroutine[Any, Any, Next]]
"""How likely each of some tokens comes next, after the prompt and the tokens of a place."""


async def scored(paths: Mapping[str, Tokens], barred: Collection[int], ask: Ask) -> LabelScores:
    """log P of each label, whose tokens are its path, of a model that cannot say what is barred."""
    nexts = _nexts(paths.values())
    # What all have in common is read first and once; the others find it read, and are answered together.
    root = await ask((), nexts.pop(()).union(barred))
    others = await _together([ask(place, tokens.union(barred)) for place, tokens in nexts.items()])
    known = {(): root, **dict(zip(nexts, others, strict=True))}
    scores = {
        label: fsum(known[path[:length]].logprob(token, barred) for length, token in enumerate(path))
        for label, path in paths.items()
    }
    longest = max((said.timings for said in others), key=_total, default=Timings())
    usage = replace(root.usage, completion=sum(said.usage.completion for said in known.values()))
    return LabelScores(scores, usage, root.timings + longest)


def _nexts(paths: Collection[Tokens]) -> dict[Tokens, set[int]]:
    """The tokens that come next in some path, by the tokens before them."""
    nexts: dict[Tokens, set[int]] = defaultdict(set)
    for path in paths:
        for length, token in enumerate(path):
            nexts[path[:length]].add(token)
    return nexts


async def _together(asked: Sequence[Coroutine[Any, Any, Next]]) -> list[Next]:
    """All answers; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _total(timings: Timings) -> float:
    return timings.prompt + timings.completion
