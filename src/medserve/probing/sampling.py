"""A wish about how tokens are drawn counts as followed where an answer changed by it as it had to."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medserve.generation import Finish, Sampling
from medserve.probing.manner import SAMPLERS
from medserve.probing.questions import RANDOM, asked
from medserve.probing.trial import Heard, Trial, Unseen

AGAIN = 2
"""How often a draw is repeated before it is believed that it was no chance."""
SEEDS = range(7, 13)
COLDEST = 0.01
HOTTEST = 2.0
"""Drawn at this temperature, an answer of a few tokens is not the likeliest one unless something else makes it so."""
NARROW: Mapping[str, Mapping[str, Any]] = {"top_p": {"top_p": 0.001}, "top_k": {"top_k": 1}, "min_p": {"min_p": 1.0}}
"""Values of each at which only the likeliest token is left."""


async def followed(trial: Trial) -> str:
    """What is asked of the choice of tokens changes an answer as it must; says what does and what does not.

    `presence_penalty` and `frequency_penalty` are OpenAI's own and may change nothing in a short answer: they are
    taken at the server's word.
    """
    trial.follows("presence_penalty", "frequency_penalty")
    own, again = await trial.heard(asked(RANDOM)), await trial.heard(asked(RANDOM))
    if own.text != again.text:
        raise Unseen("the likeliest answer is not the same each time, so that nothing can be held against it")
    hot = await _drawn(trial, own)
    if hot is not None:
        for name, narrow in NARROW.items():
            await _narrowed(trial, own, replace(hot, **narrow), name)
    await _penalised(trial, own)
    await _stopped(trial, own)
    honoured = trial.found.manner.honoured
    yes = [name for name in (*SAMPLERS, "stop") if name in honoured]
    no = [name for name in (*SAMPLERS, "stop") if name not in honoured]
    return f"honoured: {', '.join(yes) or 'none'}" + (f"; not honoured: {', '.join(no)}" if no else "")


async def _drawn(trial: Trial, own: Heard) -> Sampling | None:
    """Drawn hot, an answer is not the likeliest, drawn cold it is, and one seed gives one answer.

    Returns what gave another answer, None where nothing did.
    """
    for seed in SEEDS:
        hot = Sampling(temperature=HOTTEST, seed=seed)
        first = await trial.heard_if_any(asked(RANDOM, sampling=hot))
        if first is not None and first.text != own.text:
            return hot if await _follows(trial, own, first, hot) else None
    return None


async def _follows(trial: Trial, own: Heard, first: Heard, hot: Sampling) -> bool:
    """Whether it is the temperature that made the first answer another; on the way, whether the seed is followed."""
    cold = await trial.heard_if_any(asked(RANDOM, sampling=replace(hot, temperature=COLDEST)))
    if cold is None or cold.text != own.text:
        return False
    trial.follows("temperature")
    others = [await trial.heard_if_any(asked(RANDOM, sampling=hot)) for _ in range(AGAIN)]
    if all(other is not None and other.text == first.text for other in others):
        trial.follows("seed")
    return True


async def _narrowed(trial: Trial, own: Heard, narrow: Sampling, name: str) -> None:
    """Narrowed to the likeliest token, the very draw that gave another answer gives the model's own.

    Without a seed it might by chance.
    """
    times = 1 if "seed" in trial.found.manner.honoured else AGAIN
    heard = [await trial.heard_if_any(asked(RANDOM, sampling=narrow)) for _ in range(times)]
    if all(answer is not None and answer.text == own.text for answer in heard):
        trial.follows(name)


async def _penalised(trial: Trial, own: Heard) -> None:
    """A question that holds the words of its likely answer is answered otherwise where these are penalised."""
    request = asked(f"{RANDOM} {own.text}")
    free = await trial.heard_if_any(request)
    if free is None:
        return
    penalised = replace(request, sampling=Sampling(repetition_penalty=2.0))
    for name in ("repetition_penalty", "repeat_penalty"):
        manner = replace(trial.found.manner, repetition=name)
        heard = await trial.heard_if_any(penalised, manner)
        if heard is not None and heard.text != free.text:
            trial.found = replace(trial.found, manner=manner)
            trial.follows("repetition_penalty")
            return


async def _stopped(trial: Trial, own: Heard) -> None:
    """The answer ends before its own third word."""
    words = own.text.split()
    if len(words) <= 2:
        return
    before, _, _ = own.text.partition(words[2])
    heard = await trial.heard_if_any(asked(RANDOM, stop=(words[2],)))
    if heard is not None and heard.text == before and heard.finish is Finish.STOP:
        trial.follows("stop")
