"""A server that somebody else runs is believed what it was seen to do, and nothing that it says it can.

Most servers that speak OpenAI's chat drop in silence what they do not know: an answer then looks as if it had been
bound by a schema, or had seen the picture. So every ability is asked for once, in the very words in which it will be
asked for later, and such that the answer shows whether it was honoured: a word that no model would write by itself, two
pictures that must be told apart, the model's own first words that it must go on from. What is not seen is not offered.

`manner.py` and `wording.py` are in which words a server is asked, `questions.py` what it is asked, and `trial.py` what
was heard and found; `words.py`, `abilities.py` and `sampling.py` are the probes.
"""

from collections.abc import Awaitable, Callable

from medserve.images import Image
from medserve.probing import abilities, sampling, words
from medserve.probing.trial import Ask, Context, Found, Token, Trial
from medserve.process import Progress, tell


async def look(ask: Ask, drawings: tuple[Image, Image], *, assumed: int, context: Context, token: Token) -> Found:
    """Ask for everything once. Where the server does not tell its `context`, `assumed` is taken for it, in tokens.

    Raises ModelFailed when the server does not answer plain questions, does not count tokens, or hangs.
    """
    trial = Trial(ask, Found(context=assumed))
    tell(Progress("probing: words", 0.0))
    await words.plain(trial)
    told = await abilities.size(trial, context)  # some servers know it only of a model that has been asked
    steps: dict[str, Callable[[], Awaitable[str]]] = {
        "vision": lambda: abilities.vision(trial, drawings),
        "schema": lambda: abilities.schema(trial),
        "choices": lambda: abilities.choices(trial),
        "prefix": lambda: abilities.prefix(trial),
        "thinking": lambda: abilities.thinking(trial, token),
        "sampling": lambda: sampling.followed(trial),
        "overflow": lambda: abilities.overflow(trial, told),
    }
    for number, (name, step) in enumerate(steps.items(), 1):
        tell(Progress(f"probing: {name}", number / (len(steps) + 1)))
        await trial.tried(name, step)
    return trial.found
