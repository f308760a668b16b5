"""Faults that builds are known to have, each planted into the reference: the one that a build answers like is named.

A fault that moves hardly any answer would pass every limit: the limits have to leave room for fewer bits and other
arithmetic. But such noise does not point anywhere. So the build's log-probabilities are held against the reference's
and against those of the reference with the fault, answer by answer: a build that has the fault lies next to the second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medserve.certificates import Cause, Finding
from medserve.images import Image
from medserve.imaging.preprocess import VisionInput, resized
from medserve.intervals import wilson
from medserve.verification.observing import Answer
from medserve.verification.pictures import Shown

DEEPEST = -20.0
"""Log-probabilities below this count as this: how unlikely the impossible is depends on the arithmetic alone."""
APART = 20.0
"""The distance of answers that have no label in common."""
SAME = 1e-6
"""Nats below which a fault has not changed an answer."""
NEXT_TO = 0.5
"""A build has a fault when it lies at most half as far from the fault as from the reference."""
SERVING = ((-1024, 1024), (135, 215), (0, 80))
"""Google's serving code at commit 04b60ac of google-health/medgemma: its green window is 80 wide, not 350."""
SOFT_TISSUE = ((-160, 240),) * 3

Planted = Callable[[Shown, VisionInput], Image | None]


@dataclass(frozen=True)
class Fault:
    """A fault by name, and how it is planted: what a picture becomes by it, or None for a fault of the model itself."""

    name: str
    meaning: str
    planted: Planted | None = None


def _reversed(shown: Shown, _vision: VisionInput) -> Image:
    return _like(shown.image, shown.image.pixels[..., ::-1])


def _squashed(shown: Shown, vision: VisionInput) -> Image:
    square = PIL.Image.fromarray(shown.image.pixels).resize((vision.size, vision.size), PIL.Image.Resampling.BILINEAR)
    return _like(shown.image, np.asarray(square))


def _through(windows: Sequence[tuple[int, int]]) -> Planted:
    def planted(shown: Shown, _vision: VisionInput) -> Image | None:
        if shown.values is None:
            return None
        channels = [np.clip((shown.values.astype(np.float32) - low) / (high - low), 0, 1) for low, high in windows]
        return _like(shown.image, np.round(np.stack(channels, -1) * 255).astype(np.uint8))

    return planted


def _like(image: Image, pixels: NDArray[np.uint8]) -> Image:
    height, width, _ = pixels.shape
    return Image(np.ascontiguousarray(pixels), replace(image.source, width=width, height=height))


CAUSAL = Fault("causal_images", "tokens of a picture see only those before them, as tokens of text do")
FAULTS = (
    CAUSAL,
    Fault("colours_reversed", "red and blue are exchanged: BGR is read as RGB", _reversed),
    Fault("aspect_squashed", "pictures are squashed to a square instead of padded", _squashed),
    Fault("ct_window_of_serving_code", "the green CT window is 135..215 HU instead of -135..215", _through(SERVING)),
    Fault("ct_window_single", "CT is shown grey, through one soft-tissue window", _through(SOFT_TISSUE)),
)


def plant(fault: Fault, pictures: Sequence[Shown], vision: VisionInput) -> dict[int, Image]:
    """By their place, the pictures that the fault changes as the model takes them. Blocks: every picture is resized."""
    if fault.planted is None:
        return {place: shown.image for place, shown in enumerate(pictures)}
    changed = {}
    for place, shown in enumerate(pictures):
        other = fault.planted(shown, vision)
        if other is not None and not np.array_equal(resized(other, vision), resized(shown.image, vision)):
            changed[place] = other
    return changed


def distance(one: Answer, other: Answer) -> float:
    """How far two answers lie apart: the mean absolute difference of their labels' log-probabilities, in nats."""
    common = one.logprobs.keys() & other.logprobs.keys()
    if not common:
        return 0.0 if one.best == other.best else APART
    return sum(abs(_held(one.logprobs[label]) - _held(other.logprobs[label])) for label in common) / len(common)


def _held(logprob: float) -> float:
    return max(logprob, DEEPEST)


def judged(
    fault: Fault, subject: Mapping[int, Answer], reference: Mapping[int, Answer], faulty: Mapping[int, Answer]
) -> Cause:
    """Whether the build has the fault, by the answers which that changes; all three by the place of the answer."""
    told = [place for place in faulty if distance(reference[place], faulty[place]) > SAME]
    if not told:
        return untried(fault, "no picture of the set looks different by it; give others with --pictures")
    to_reference = [distance(subject[place], reference[place]) for place in told]
    to_fault = [distance(subject[place], faulty[place]) for place in told]
    nearer = sum(there < here for here, there in zip(to_reference, to_fault, strict=True))
    low, high = wilson(nearer, len(told))
    here, there = median(to_reference), median(to_fault)
    if low > 0.5 and there <= NEXT_TO * here:
        finding, reason = Finding.FOUND, "the build answers as the reference does when this fault is planted into it"
    elif high < 0.5:
        finding, reason = Finding.EXCLUDED, "the build's answers are nearer to the reference's"
    elif low > 0.5:
        finding, reason = Finding.UNDECIDED, "the build's answers are nearer to the fault's, though far from both"
    else:
        finding, reason = Finding.UNDECIDED, "the build differs from both alike: what it does cannot be told by this"
    return Cause(
        name=fault.name,
        meaning=fault.meaning,
        finding=finding,
        reason=reason,
        n=len(told),
        nearer=nearer,
        effect=median(distance(reference[place], faulty[place]) for place in told),
        to_reference=here,
        to_fault=there,
    )


def untried(fault: Fault, reason: str) -> Cause:
    """The fault was not looked for."""
    return Cause(name=fault.name, meaning=fault.meaning, finding=Finding.NOT_TRIED, reason=reason)


def leans(cause: Cause) -> bool:
    """Whether surely more than half of the answers are nearer to the fault: an honest build's noise leans to none."""
    return cause.n > 0 and wilson(cause.nearer, cause.n)[0] > 0.5


def best(causes: Sequence[Cause]) -> list[Cause]:
    """Those that were found, the one that fits best first."""
    found = [cause for cause in causes if cause.finding is Finding.FOUND]
    return sorted(found, key=lambda cause: (cause.to_fault or 0.0) / (cause.to_reference or 1.0))
