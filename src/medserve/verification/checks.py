"""What is compared, each with its limit: nothing here asks an engine, so that the same numbers always judge alike."""

from collections.abc import Mapping, Sequence
from math import ceil, exp, fsum, log
from statistics import median

import numpy as np
from numpy.typing import NDArray

from medserve.certificates import Cause, Check, Finding, Measure, Outcome
from medserve.intervals import Z, wilson
from medserve.verification.causes import best, distance, leans
from medserve.verification.observing import Answer, Eyes, Prompted
from medserve.verification.questions import Conversation
from medserve.verification.yardstick import Expected

MOST_LEVELS = 1.0
"""Grey levels by which a pixel may differ: Pillow and torchvision round a resize differently by one."""
MOST_MEAN_LEVELS = 0.05
"""Grey levels by which pixels may differ on average: rounding touches few of them."""
LEAST_AGREEMENT = 0.9
"""What the lower bound of the interval must reach; docs/verify.md tells what honest builds reach."""
MOST_KL = 0.01
"""Nats of the median divergence; docs/verify.md tells what was measured."""
LEAST_PROBABILITY = 1e-12
"""A label that one side thinks impossible counts as this likely."""


def sees(found: Eyes, expected: Expected) -> Check:
    """Whether two different drawings lead to different answers and take tokens."""
    if not expected.sees:
        return _not_done("sees", "the model has no vision part", needed=False)
    measures = (
        _measure("tokens of a picture", found.image_tokens, "tokens"),
        _measure("distance of the answers to two drawings", found.distance),
    )
    if found.fault:
        return Check(name="sees", outcome=Outcome.FAILED, reason=found.fault, measures=measures)
    if found.image_tokens != expected.image_tokens:
        reason = f"a picture takes {found.image_tokens} tokens and should take {expected.image_tokens}"
        return Check(name="sees", outcome=Outcome.FAILED, reason=reason, measures=measures)
    return Check(name="sees", outcome=Outcome.PASSED, reason="different pictures, different answers", measures=measures)


def pixels(kinds: Sequence[str], handed: Sequence[NDArray[np.uint8] | None], expected: Expected) -> Check:
    """Whether the engine is handed what Hugging Face's processor makes of the padded original."""
    if not expected.sees:
        return _not_done("pixels", "the model has no vision part", needed=False)
    if not handed:
        return _not_done("pixels", "the build takes no images")
    if any(shown is None for shown in handed):
        return _not_done("pixels", "this engine does not show what it hands to the model", needed=False)
    measures: list[Measure] = []
    wrong: list[str] = []
    for kind, shown, right in zip(kinds, handed, expected.pictures, strict=True):
        assert shown is not None  # noqa: S101 - seen above
        if shown.shape != right.shape:
            wrong.append(f"{kind}: {shown.shape[1]} x {shown.shape[0]} pixels, not {expected.size} x {expected.size}")
            continue
        levels = np.abs(shown.astype(np.int16) - right)
        measures += (
            _measure(f"{kind}: largest difference", levels.max(), "grey levels", most=MOST_LEVELS),
            _measure(f"{kind}: mean difference", levels.mean(), "grey levels", most=MOST_MEAN_LEVELS),
        )
    wrong += [f"{one.name} {one.value:g} grey levels" for one in measures if _exceeds(one)]
    if wrong:
        return Check(name="pixels", outcome=Outcome.FAILED, reason="; ".join(wrong), measures=tuple(measures))
    reason = "the engine is handed the pixels of Hugging Face's own processor"
    return Check(name="pixels", outcome=Outcome.PASSED, reason=reason, measures=tuple(measures))


def template(conversations: Sequence[Conversation], read: Sequence[Prompted], expected: Expected) -> Check:
    """Whether the model reads the tokens that its own template makes; `read` may lack those with pictures."""
    wrong = []
    lacking = len(conversations) - len(read)
    of = {one.kind: (ids, length) for one, ids, length in _right(conversations, expected)}
    asked = [one for one in conversations if not lacking or not one.images]
    for conversation, found in zip(asked, read, strict=True):
        ids, length = of[conversation.kind]
        if found.ids is not None and found.ids != ids:
            wrong.append(f"{conversation.kind}: {_first_difference(found.ids, ids)}")
        elif found.tokens != length:
            wrong.append(f"{conversation.kind}: {found.tokens} tokens are read, not {length}")
    shown = sum(found.ids is not None for found in read)
    measures = (
        _measure("conversations compared", len(read)),
        _measure("conversations whose ids were compared", shown),
        _measure("conversations that differ", len(wrong), most=0),
    )
    if wrong:
        return Check(name="template", outcome=Outcome.FAILED, reason="; ".join(wrong), measures=measures)
    if lacking and expected.sees:
        return _not_done("template", "conversations with pictures could not be read", measures=measures)
    how = "the same ids" if shown else "as many tokens; this engine does not show their ids"
    return Check(name="template", outcome=Outcome.PASSED, reason=how, measures=measures)


def _right(
    conversations: Sequence[Conversation], expected: Expected
) -> list[tuple[Conversation, tuple[int | None, ...], int]]:
    return list(zip(conversations, expected.prompts, expected.lengths, strict=True))


def _first_difference(found: Sequence[int | None], right: Sequence[int | None]) -> str:
    place = next(
        (index for index, (one, other) in enumerate(zip(found, right, strict=False)) if one != other),
        min(len(found), len(right)),
    )
    said = [str(ids[place]) if place < len(ids) else "the end" for ids in (found, right)]
    return f"at place {place} id {said[0]} is read, not {said[1]}"


def labels(subject: Sequence[Answer], reference: Sequence[Answer], *, pictures: int, scored: bool) -> Check:
    """Whether closed questions are answered alike: as often as is shown with confidence, and as surely."""
    n = len(reference)
    # Silence on both sides shows nothing.
    agreed = sum(one.best == other.best != "" for one, other in zip(subject, reference, strict=True))
    low, high = wilson(agreed, n)
    divergences = [
        found for one, other in zip(subject, reference, strict=True) if (found := _kl(other, one)) is not None
    ]
    why = "" if divergences else "the engine does not tell the probabilities of all labels"
    apart = [distance(one, other) for one, other in zip(subject, reference, strict=True)]
    middle = median(divergences) if divergences else None
    measures = (
        _measure("answers compared", n),
        _measure("answers that agree", agreed),
        _measure("share that agrees", agreed / n),
        Measure(name="share that agrees, at least (95 %)", value=low, least=LEAST_AGREEMENT),
        Measure(name="median divergence from the reference", value=middle, unit="nats", most=MOST_KL, reason=why),
        Measure(
            name="worst divergence from the reference",
            value=max(divergences) if divergences else None,
            unit="nats",
            reason=why,
        ),
        _measure("median difference of a label's log-probability", median(apart), "nats"),
    )
    if middle is not None and middle > MOST_KL:
        reason = f"the labels' probabilities differ: median divergence {middle:.3g} nats, at most {MOST_KL:g} is right"
        return Check(name="labels", outcome=Outcome.FAILED, reason=reason, measures=measures)
    if high < LEAST_AGREEMENT:
        reason = f"{agreed} of {n} answers agree: surely fewer than {LEAST_AGREEMENT:.0%}"
        return Check(name="labels", outcome=Outcome.FAILED, reason=reason, measures=measures)
    if low < LEAST_AGREEMENT:
        return _not_done("labels", _too_few(agreed, n, pictures), measures=measures)
    how = "" if scored else "; only the preferred answers could be compared"
    reason = f"{agreed} of {n} answers agree, at least {low:.1%} by the 95 % interval{how}"
    return Check(name="labels", outcome=Outcome.PASSED, reason=reason, measures=measures)


def _too_few(agreed: int, n: int, pictures: int) -> str:
    """Why so many answers show nothing yet, and how many pictures would, if the others agree as these do."""
    wanted = f"{LEAST_AGREEMENT:.0%}"
    answers = enough(agreed / n)
    if answers is None:
        return f"{agreed} of {n} answers agree: neither that {wanted} do nor that fewer do is certain"
    each = n / pictures
    return (
        f"{agreed} of {n} answers agree, which is too few answers to be sure of {wanted}: "
        f"give at least {ceil(answers / each)} pictures, not {pictures}"
    )


def enough(share: float) -> int | None:
    """Answers from which on this share is surely at least LEAST_AGREEMENT; None where no number is enough."""
    if share <= LEAST_AGREEMENT:
        return None
    n = 1
    while wilson(share * n, n)[0] < LEAST_AGREEMENT:
        n = n + 1 if n < Z * Z * 10 else int(n * 1.1)
    return n


def _kl(right: Answer, other: Answer) -> float | None:
    """KL(right || other) of the label distributions in nats; None where a label's probability is not known."""
    if right.logprobs.keys() != other.logprobs.keys() or len(right.logprobs) < 2:
        return None
    p, q = _shares(right.logprobs), _shares(other.logprobs)
    return max(0.0, fsum(p[label] * log(p[label] / q[label]) for label in p))


def _shares(logprobs: Mapping[str, float]) -> dict[str, float]:
    highest = max(logprobs.values())
    weights = {label: max(exp(value - highest), LEAST_PROBABILITY) for label, value in logprobs.items()}
    total = fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def causes(found: Sequence[Cause]) -> Check:
    """Whether the build answers like one with a known fault."""
    guilty = best(found)
    tried = [cause for cause in found if cause.finding is not Finding.NOT_TRIED]
    measures = (
        _measure("known faults tried", len(tried)),
        _measure("known faults found", len(guilty), most=0),
    )
    if guilty:
        reason = "; ".join(f"{cause.name}: {cause.meaning}" for cause in guilty)
        return Check(name="causes", outcome=Outcome.FAILED, reason=reason, measures=measures)
    if not tried:
        return _not_done("causes", "no known fault could be tried", needed=False, measures=measures)
    leaning = [cause.name for cause in tried if leans(cause)]
    if leaning:
        reason = f"most answers are nearer to those with {', '.join(leaning)} than to right ones, but not near enough"
        return _not_done("causes", f"{reason}; verify a build of the same model with more bits", measures=measures)
    open_ = [cause.name for cause in tried if cause.finding is Finding.UNDECIDED]
    untried = [cause.name for cause in found if cause.finding is Finding.NOT_TRIED]
    left = f"; not to be told here: {', '.join(open_)}" if open_ else ""
    left += f"; not tried: {', '.join(untried)}" if untried else ""
    return Check(name="causes", outcome=Outcome.PASSED, reason=f"no known fault was found{left}", measures=measures)


def unasked(why: str, *, needed: bool = True) -> tuple[Check, Check]:
    """Labels and causes, where there was nothing to compare."""
    return _not_done("labels", why, needed=needed), _not_done("causes", why, needed=False)


def _not_done(name: str, reason: str, *, needed: bool = True, measures: tuple[Measure, ...] = ()) -> Check:
    return Check(name=name, outcome=Outcome.NOT_DONE, reason=reason, needed=needed, measures=measures)


def _measure(name: str, value: float, unit: str = "", *, most: float | None = None) -> Measure:
    return Measure(name=name, value=float(value), unit=unit, most=most)


def _exceeds(one: Measure) -> bool:
    return one.value is not None and one.most is not None and one.value > one.most
