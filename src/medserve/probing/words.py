"""A server that answers no plain question, or counts no tokens, is not used: nothing it does could be checked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import exp

from medserve.errors import InvalidRequest, MedserveError, ModelFailed
from medserve.generation import TokenLogprob
from medserve.probing.manner import Manner
from medserve.probing.questions import asked
from medserve.probing.trial import Heard, Trial

ALTERNATIVES = 2


async def plain(trial: Trial) -> None:
    """The model's own greedy answer, which the others are held against; with counts, and log-probabilities if any.

    The server's reason is passed on when even that fails.
    """
    failed: MedserveError | None = None
    answered = False
    for manner, detail in product((Manner(), Manner(whole=True)), (ALTERNATIVES, None)):
        try:
            own = await trial.ask(asked(top_logprobs=detail), manner)
        except InvalidRequest as error:
            failed = error
            continue
        answered = True
        if own.counted:
            _learn(trial, own, manner)
            return
    if failed is not None and not answered:
        raise failed
    raise ModelFailed("the server tells no counts of tokens, without which nothing that it sees can be checked")


def _learn(trial: Trial, own: Heard, manner: Manner) -> None:
    told = _plausible(own.logprobs, ALTERNATIVES)
    trial.own = own
    trial.found = replace(
        trial.found,
        manner=manner,
        abilities=frozenset({"logprobs"}) if told else frozenset(),
        record={
            "probed_counts": "told, but not in streams: answers come whole" if manner.whole else "told in streams",
            "probed_cached": "told" if own.cached is not None else "not told: counted as 0",
            "probed_logprobs": "honoured" if told else "not honoured",
        },
    )


def _plausible(logprobs: Sequence[TokenLogprob], alternatives: int) -> bool:
    """Whether these can be log-probabilities of likeliest tokens: some servers send empty ones, or zeros."""
    return bool(logprobs) and all(
        len(entry.top) == alternatives
        and entry.logprob <= 0
        and sum(exp(min(value, 1.0)) for _, value in entry.top) <= 1 + 1e-3
        for entry in logprobs
    )
