"""No share and no score without its interval: the statistics of an evaluation, each with the source of its formula.

Intervals are for 95 %. Every function is pure; truths and answers are labels as texts.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Self

import numpy as np
from pydantic import Field
from scipy.optimize import brentq
from scipy.stats import rankdata

from medserve.intervals import Z, wilson
from medserve.reports import Record

BINS = 10
"""Equal bins of confidence between 0 and 1 in which calibration is looked at."""
NEAR_EDGE = 1e-9
LEAST_SHARE = 1e-12
"""A probability below this counts as this, where its logarithm is taken."""
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""The thresholds for which it is told how many answers would be left."""

Shares = Mapping[str, float]
"""The probability of each label; they add up to 1."""


class Share(Record):
    """A part of a number, with Wilson's interval; all null where the number is 0."""

    count: int
    n: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, n: int) -> Self:
        if not n:
            return cls(count=count, n=n, share=None, low=None, high=None)
        low, high = wilson(count, n)
        return cls(count=count, n=n, share=count / n, low=low, high=high)


class Estimate(Record):
    """A number between 0 and 1 with its interval; all null where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


NONE = Estimate(value=None, low=None, high=None)


class Bin(Record):
    """The answers of which the model was about equally sure: how many, how sure on average, how many of them right."""

    low: float
    high: float
    n: int
    confidence: float | None
    right: float | None


class Proper(Record):
    """How good probabilities are as probabilities; less is better in each of the three scores."""

    n: int
    brier: float = Field(
        description="mean sum of squared differences to the truth over all labels, 0 to 2 (Brier 1950)"
    )
    nll: float = Field(description="mean negative natural logarithm of the true label's probability")
    ece: float = Field(description=f"expected calibration error in {BINS} equal bins (Guo 2017), 0 to 1")
    bins: tuple[Bin, ...] = ()


class Covered(Record):
    """What a threshold leaves: the share of all studies that still get an answer, and how many of those are right."""

    threshold: float
    coverage: Share
    accuracy: Share


def mean_of(shares: Sequence[Share]) -> Estimate:
    """The mean of independent shares, its interval made of theirs (MOVER; Zou and Donner, Stat Med 27:1693, 2008).

    With the shares of each label that are found, this is balanced accuracy. Its interval does not shrink to a point
    where all are found, as a bootstrap's would.
    """
    known = [(one.share, one.low, one.high) for one in shares if one.n]
    if not known:
        return NONE
    table = np.array(known, float)
    mean = float(table[:, 0].mean())
    below = float(np.sqrt(((table[:, 0] - table[:, 1]) ** 2).sum())) / len(known)
    above = float(np.sqrt(((table[:, 2] - table[:, 0]) ** 2).sum())) / len(known)
    return Estimate(value=mean, low=max(0.0, mean - below), high=min(1.0, mean + above))


def auroc(positive: Sequence[float], negative: Sequence[float]) -> Estimate:
    """The probability that a positive case scores higher than a negative one, ties counting half (Mann and Whitney).

    The interval is the fifth of Newcombe's (Stat Med 25:559, 2006): all values for which what was observed is not too
    far off by Hanley and McNeil's variance at that value. Unlike DeLong's it is no point where the cases are separated.
    """
    m, n = len(positive), len(negative)
    if not m or not n:
        return NONE
    ranks = rankdata([*positive, *negative])
    observed = min(1.0, max(0.0, (float(ranks[:m].sum()) - m * (m + 1) / 2) / (m * n)))

    def off(area: float) -> float:
        """How much further off than it may be; negative within the interval."""
        return (observed - area) ** 2 - Z * Z * _auroc_variance(area, m, n)

    inside = min(max(observed, NEAR_EDGE), 1 - NEAR_EDGE)  # at 0 and 1 themselves nothing varies
    low = 0.0 if observed == 0 else float(brentq(off, 0.0, inside))
    high = 1.0 if observed == 1 else float(brentq(off, inside, 1.0))
    return Estimate(value=observed, low=low, high=high)


def _auroc_variance(area: float, m: int, n: int) -> float:
    """Hanley and McNeil's (Radiology 143:29, 1982), with both numbers of cases in its bracket set to their mean."""
    others = (m + n) / 2 - 1
    return area * (1 - area) * (1 + others * (1 - area) / (2 - area) + others * area / (1 + area)) / (m * n)


def proper(shares: Sequence[Shares], truths: Sequence[str]) -> Proper:
    """The scores of the probabilities of at least one case; the labels of each hold its truth."""
    brier = [
        sum((one[label] - (label == truth)) ** 2 for label in one) for one, truth in zip(shares, truths, strict=True)
    ]
    nll = [-log(max(one[truth], LEAST_SHARE)) for one, truth in zip(shares, truths, strict=True)]
    likeliest = [max(one, key=lambda label: one[label]) for one in shares]
    sure = [one[label] for one, label in zip(shares, likeliest, strict=True)]
    bins = reliability(sure, [label == truth for label, truth in zip(likeliest, truths, strict=True)])
    return Proper(
        n=len(truths), brier=float(np.mean(brier)), nll=float(np.mean(nll)), ece=calibration_error(bins), bins=bins
    )


def reliability(confidences: Sequence[float], rights: Sequence[bool]) -> tuple[Bin, ...]:
    """Confidence and truth in equal bins, the upper border of each being part of it."""
    sure, right = np.asarray(confidences, float), np.asarray(rights, float)
    places = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        some = bool(inside.any())
        bins.append(
            Bin(
                low=place / BINS,
                high=(place + 1) / BINS,
                n=int(inside.sum()),
                confidence=float(sure[inside].mean()) if some else None,
                right=float(right[inside].mean()) if some else None,
            )
        )
    return tuple(bins)


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean difference between confidence and truth over the bins, each counting by its cases."""
    total = sum(one.n for one in bins)
    filled = (
        (one.n, one.confidence, one.right) for one in bins if one.confidence is not None and one.right is not None
    )
    return sum(n * abs(confidence - right) for n, confidence, right in filled) / total


def coverage(confidences: Sequence[float], rights: Sequence[bool], n: int) -> tuple[Covered, ...]:
    """What each threshold would leave of `n` studies, of which these were answered with this confidence."""
    table = []
    for threshold in THRESHOLDS:
        left = [right for sure, right in zip(confidences, rights, strict=True) if sure >= threshold]
        table.append(
            Covered(threshold=threshold, coverage=Share.of(len(left), n), accuracy=Share.of(sum(left), len(left)))
        )
    return tuple(table)
