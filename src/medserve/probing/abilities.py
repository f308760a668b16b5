"""Each ability is asked for in the very words of later, and such that the answer shows whether it was honoured.

A function for each. It says what to record of the ability, notes with the trial in which manner it was seen, and raises
Unseen with the reason where it was not.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from medserve import thinking as stages
from medserve.generation import Finish, GenerationRequest, Message
from medserve.images import Image
from medserve.probing.manner import BOUND, PUSH, Manner
from medserve.probing.questions import JSON_TOKENS, OTHER, QUESTION, SCHEMA, WORD, asked, parsed
from medserve.probing.trial import Context, Found, Heard, Late, Token, Trial, Unseen
from medserve.probing.wording import CHOOSING
from medserve.text import CLOSING, OPENING

SEEN_TOKENS = 8
LIKENESS = 1e-6
"""Log-probabilities closer than this are the same."""
OPENING_TOKENS = 5
"""Most tokens of the opening mark and its label where the mark is one token; written out, it takes more itself."""
SPARE = 64


async def size(trial: Trial, context: Context) -> bool:
    """The context, as the server tells it; whether it does."""
    told = await context()
    trial.note("context", "not told: that of the settings is assumed" if told is None else "told by the server")
    trial.found = replace(trial.found, context=told or trial.found.context)
    return told is not None


async def vision(trial: Trial, drawings: tuple[Image, Image]) -> str:
    """Two pictures take tokens, and get answers that differ in words or in log-probabilities."""
    first, second = [await _shown(trial, drawing) for drawing in drawings]
    more = min(first.prompt or 0, second.prompt or 0) - (trial.own.prompt or 0)
    if more <= 0:
        raise Unseen("a picture adds nothing to the prompt, so it was not read")
    if _alike(first, second):
        raise Unseen("two different pictures got the same answer")
    trial.found = replace(trial.found, image_tokens=more)
    return f"honoured: two pictures were told apart, at {more} tokens each"


async def _shown(trial: Trial, drawing: Image) -> Heard:
    detail = 0 if "logprobs" in trial.found.abilities else None
    message = Message("user", (drawing, QUESTION))
    return await trial.heard(GenerationRequest((message,), max_tokens=SEEN_TOKENS, top_logprobs=detail))


def _alike(first: Heard, second: Heard) -> bool:
    if (first.text, first.thought) != (second.text, second.thought):
        return False
    pairs = zip(first.logprobs, second.logprobs, strict=False)
    return all(abs(one.logprob - other.logprob) <= LIKENESS for one, other in pairs)


async def schema(trial: Trial) -> str:
    """The one object that the schema allows is the answer."""
    heard = await trial.heard(asked(schema=SCHEMA, max_tokens=JSON_TOKENS))
    if parsed(heard.text) != {"zq7": WORD}:
        raise Unseen("the answer was not bound by it")
    trial.able("schema")
    return "honoured by response_format"


async def choices(trial: Trial) -> str:
    """One of two odd words is the answer; servers have their own names for this, and ignore the others'."""
    for choosing in CHOOSING:
        manner = replace(trial.found.manner, choosing=choosing)
        heard = await trial.heard_if_any(asked(choices=(WORD, OTHER), max_tokens=JSON_TOKENS), manner)
        if heard is None:
            continue
        said = parsed(heard.text) if choosing == "schema" else heard.text
        if said in (WORD, OTHER) and heard.finish is Finish.STOP:
            trial.able("choices", choosing=choosing)
            return f"honoured by {choosing}"
    raise Unseen("no way of asking that is known bound the answer")


async def prefix(trial: Trial) -> str:
    """The model goes on from its own first words as it did by itself; an odd word shows whether they are echoed."""
    begun, rest = _halves(trial.own.text)
    if not rest:
        raise Unseen("the model's answers are too short to tell")
    for flagged in (True, False):
        with suppress(Unseen):
            echoes = await _echoes(trial, replace(trial.found.manner, flagged=flagged), begun, rest)
            trial.able("prefix", flagged=flagged, echoes=echoes)
            await _bind_after(trial)
            return _continued(trial.found)
    raise Unseen("the answer did not go on from it")


async def _echoes(trial: Trial, manner: Manner, begun: str, rest: str) -> bool:
    """Whether a beginning is said again before it is gone on from; raises Unseen where it is not gone on from."""
    odd = await trial.heard(asked(prefix=WORD), manner)
    own = await trial.heard(asked(prefix=begun), manner)
    echoes = odd.text.startswith(WORD)
    said = own.text.removeprefix(begun) if echoes else own.text
    if said.startswith(rest) and (echoes or not own.text.startswith(begun)):
        return echoes
    raise Unseen("the answer is another")


async def _bind_after(trial: Trial) -> None:
    """What binds a whole answer may be refused, or forgotten, after a beginning."""
    wishes: dict[str, dict[str, Any]] = {"schema": {"schema": SCHEMA}, "choices": {"choices": (WORD, OTHER)}}
    for kind in BOUND:
        if kind not in trial.found.abilities:
            continue
        manner = trial.found.manner
        heard = await trial.heard_if_any(asked(prefix=OTHER, max_tokens=JSON_TOKENS, **wishes[kind]))
        said = heard.text.removeprefix(OTHER if manner.echoes else "") if heard is not None else ""
        plain = kind == "choices" and manner.choosing != "schema"
        if (said if plain else parsed(said)) in ({"zq7": WORD}, WORD, OTHER):
            trial.found = replace(trial.found, manner=replace(manner, after=manner.after | {kind}))


def _continued(found: Found) -> str:
    """In which manner a beginning is gone on from."""
    manner = found.manner
    alone = [kind for kind in BOUND if kind in found.abilities and kind not in manner.after]
    return (
        "honoured"
        + (" by continue_final_message" if manner.flagged else "")
        + (", echoed" if manner.echoes else "")
        + (f"; not together with {' or '.join(alone)}" if alone else "")
    )


def _halves(text: str) -> tuple[str, str]:
    """The first half of an answer, cut at a space, and the two words after it; both empty where there are too few.

    Where the answer repeats itself, going on could not be told from beginning anew, and both are empty too.
    """
    words = text.split(" ")
    middle = len(words) // 2
    begun, rest = " ".join(words[:middle]), " " + " ".join(words[middle : middle + 2])
    if len(words) < 5 or not begun.strip() or text.startswith(rest.strip()):
        return "", ""
    return begun, rest


async def thinking(trial: Trial, token: Token) -> str:
    """The marks of thinking are tokens that can be put before an answer, seen in it, and forbidden."""
    if "prefix" not in trial.found.abilities:
        raise Unseen("an answer cannot be made to begin with a mark")
    marks = {mark: await token(mark) for mark in (OPENING, CLOSING)}
    known = {mark: number for mark, number in marks.items() if number is not None}
    if len(known) < len(marks):
        raise Unseen("the server does not say which tokens the marks are")
    request = asked(thinking=2, max_tokens=4)
    stage = replace(stages.first_stage(request), stop=())
    heard = await trial.heard(stage, logit_bias={str(known[CLOSING]): PUSH})
    plain = await trial.heard(stages.instructed(asked(max_tokens=1)))
    more = (heard.prompt or 0) - (plain.prompt or 0)
    said = heard.text.removeprefix(stages.beginning(stage))
    if not said.startswith(CLOSING) or not 0 < more <= OPENING_TOKENS:
        raise Unseen("the marks are not taken, or not shown, as tokens")
    trial.able("thinking", marks=known)
    return "honoured by marks"


async def overflow(trial: Trial, told: bool) -> str:
    """A prompt that is too long is refused; servers that cut it in silence would answer about half a question.

    `told` says that the context is the server's own number.
    """
    tokens = trial.found.context + SPARE
    try:
        heard = await trial.heard(asked(text=" 7" * tokens, max_tokens=1))
    except Late:
        trial.cuts(trial.found.context)
        return "unknown: no answer in time; what may not fit is refused here"
    except Unseen:
        return "honoured: a prompt that is too long is refused"
    if (heard.prompt or 0) >= tokens:
        return "holds more than it says"
    trial.cuts(trial.found.context if told else min(trial.found.context, heard.prompt or 1))
    return "not honoured: a prompt that is too long is cut in silence; what may not fit is refused here"
