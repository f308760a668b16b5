"""Whether an answer depends on the picture is tried out: the protocol runs again on others, or in other words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medserve import sight
from medserve.flags import Flag
from medserve.images import Image, Source, Study
from medserve.imaging import raster
from medserve.reports import Conclusion, Control
from medserve.settings import Limits
from medserve.threads import in_thread
from medserve.workflow import Consult, Options, Workflow

Kind = Literal["blank", "swapped", "paraphrase"]
ORDER: tuple[Kind, ...] = ("paraphrase", "blank", "swapped")
"""First what shows the same picture, so that the work on it may be used once more."""
GREY = 128
NEAR = 0.05
"""Probabilities that differ by less in total variation are taken to be the same."""


async def rerun(
    workflow: Workflow,
    study: Study,
    consult: Consult,
    options: Options,
    concluded: Conclusion,
    other: Study | None = None,
) -> tuple[Control, ...]:
    """The controls that the options ask for, each compared with what was concluded.

    The swapped picture is that of `other`, or a drawing that ships with the package. Measurements stay those of the
    study: only what the model is shown, or the words in which it is asked, are exchanged.
    """
    runs = []
    for kind in (one for one in ORDER if one in options.controls):
        shown = await _shown(kind, study, other)
        again = consult.again(shown, paraphrase=kind == "paraphrase")
        found = await workflow.run(shown, again, options)
        runs.append(_compared(kind, concluded, found, again))
    return tuple(runs)


def flags(runs: Sequence[Control]) -> Sequence[Flag]:
    """What the report is flagged with where the picture does not count, or the words do."""
    ignored = any(not _differs(run) for run in _pictures(runs))
    worded = any(run.changed for run in runs if run.kind == "paraphrase")
    return [flag for flag, raised in ((Flag.PICTURE_IGNORED, ignored), (Flag.WORDING_MATTERS, worded)) if raised]


def depends(runs: Sequence[Control]) -> bool | None:
    """Whether every picture control was answered otherwise; None where none was run, or none could be compared."""
    pictures = _pictures(runs)
    return all(map(_differs, pictures)) if pictures else None


def blank(study: Study) -> Study:
    """The study with grey where its pictures were."""
    return _showing(study, [np.full_like(image.pixels, GREY) for image in study.images])


async def swapped(study: Study, other: Study | None = None) -> Study:
    """The study with pictures that have nothing to do with it."""
    if other is not None:
        pixels = [other.images[place % len(other.images)].pixels for place in range(len(study.images))]
        return await in_thread(_showing, study, pixels)
    drawing = await raster.read(await in_thread(sight.DRAWINGS[0].read_bytes), Limits())
    return await in_thread(_showing, study, [drawing.pixels] * len(study.images))


async def _shown(kind: Kind, study: Study, other: Study | None) -> Study:
    if kind == "paraphrase":
        return study
    return await in_thread(blank, study) if kind == "blank" else await swapped(study, other)


def _showing(study: Study, pixels: Iterable[NDArray[np.uint8]]) -> Study:
    images = tuple(Image(one.copy(), Source("control", "RGB", one.shape[1], one.shape[0])) for one in pixels)
    return replace(study, images=images)


def _compared(kind: Kind, concluded: Conclusion, found: Conclusion, consult: Consult) -> Control:
    before, after = _values(concluded), _values(found)
    if kind == "paraphrase" and not consult.reworded:
        before = {}  # nothing was asked otherwise, so nothing is compared
    told = {name: (value, after.get(name)) for name, value in before.items()}
    return Control(
        kind=kind,
        changed=tuple(name for name, (was, now) in told.items() if was != now),
        same=tuple(name for name, (was, now) in told.items() if was == now and was is not None),
        reworded=tuple(consult.reworded),
        distance=_distance(_shares(concluded), _shares(found)) if told else None,
        label=found.label,
        probabilities=found.probabilities,
        steps=tuple(consult.steps),
    )


def _values(conclusion: Conclusion) -> dict[str, Any]:
    """What the model said, by name; what was measured does not depend on what it is shown."""
    said: dict[str, Any] = {one.name: one.value for one in conclusion.findings if one.source == "model"}
    if conclusion.label is not None or conclusion.probabilities is not None:
        said["label"] = conclusion.label
    if conclusion.data is not None:
        said["data"] = conclusion.data
    return said or {"description": conclusion.description}


def _shares(conclusion: Conclusion) -> Mapping[str, Mapping[str, float]]:
    """The probabilities of every closed answer, by name."""
    shares = {one.name: one.probabilities for one in conclusion.findings if one.probabilities}
    return {**shares, "label": conclusion.probabilities} if conclusion.probabilities else shares


def _distance(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> float | None:
    """The greatest total variation (half the sum of the differences) of an answer that both runs weighed."""
    apart = [
        0.5 * sum(abs(shares[label] - other[name][label]) for label in shares)
        for name, shares in one.items()
        if name in other and shares.keys() == other[name].keys()
    ]
    return max(apart, default=None)


def _pictures(runs: Sequence[Control]) -> list[Control]:
    """The picture controls in which there was something to compare."""
    return [run for run in runs if run.kind != "paraphrase" and (run.changed or run.same or run.distance is not None)]


def _differs(run: Control) -> bool:
    return bool(run.changed) or (run.distance or 0.0) > NEAR
