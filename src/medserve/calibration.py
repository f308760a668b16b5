"""Label probabilities are fitted to what was found true: by temperature or by Platt's method, on labelled cases.

Temperature scaling divides all log-probabilities by one number (Guo et al., On calibration of modern neural networks,
ICML 2017). Platt's method, for two labels, puts their difference through a sigmoid with slope and offset (Platt,
Probabilistic outputs for support vector machines, 1999), fitted to his smoothed targets. A temperature is fitted as if
one case more had been wrong, so that no number of cases without an error makes a certainty. A calibration holds for one
question of one version of a workflow, asked of one model; it says on which data it was fitted, and how much better it
was on cases that it had not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from json import dumps
from math import exp, log
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, softmax

from medserve import outputs
from medserve.errors import InvalidRequest
from medserve.reports import Calibrated, Record

Method = Literal["temperature", "platt"]
LEAST_CASES = 20
"""Fewer labelled cases fit their own noise."""
HOTTEST = 100.0
"""Temperatures are looked for between 1/HOTTEST and HOTTEST."""
DEEPEST = 30.0
"""Log-probabilities further than this below the likeliest label's count as this: no case may decide a fit alone."""


@dataclass(frozen=True)
class Case:
    """One labelled answer: the log-probability of each label, and which of them was true."""

    logprobs: Mapping[str, float]
    truth: str


class Fit(Record):
    """How the label probabilities of one question, by its step, are calibrated."""

    step: str
    labels: tuple[str, ...]
    method: Method
    parameters: dict[str, float]
    dataset: str = Field(description="SHA-256 of the data set: its pictures and labels")
    n: int

    @classmethod
    def recorded(cls, made: Calibrated) -> Self:
        """The fit that a report says was applied."""
        return cls(
            step=made.step,
            labels=tuple(made.before),
            method=made.method,
            parameters=made.parameters,
            dataset=made.dataset,
            n=made.n,
        )

    def probabilities(self, logprobs: Mapping[str, float]) -> dict[str, float]:
        """The calibrated probability of each label; raises ValueError for other labels than the fit's."""
        if set(logprobs) != set(self.labels):
            raise ValueError(f"fitted for the labels {self.labels}")
        shares = applied(self.method, self.parameters, self.labels, logprobs)
        return {label: shares[label] for label in logprobs}

    def record(self, before: Mapping[str, float]) -> Calibrated:
        """What a report says of it; `before` are the model's own probabilities."""
        return Calibrated(
            step=self.step,
            method=self.method,
            parameters=self.parameters,
            dataset=self.dataset,
            n=self.n,
            before=dict(before),
        )


class Calibration(Fit):
    """A fit, and what it holds for.

    `before` and `after` are mean negative log-likelihoods of the labelled cases, each judged by a fit to others
    (`folds` parts, each left out once).
    """

    workflow: str
    version: str
    options: dict[str, JsonValue] = Field(
        description="the workflow's own options: others may put the question otherwise"
    )
    weights: str = Field(description="which model: the fingerprint of its weights, or their name")
    before: float
    after: float
    folds: int
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


def parameters(cases: Sequence[Case], labels: Sequence[str], method: Method) -> dict[str, float]:
    """The best fit to all of the cases."""
    values = np.stack([_values(case.logprobs, labels) for case in cases])
    truths = np.array([list(labels).index(case.truth) for case in cases])
    return _temperature(values, truths) if method == "temperature" else _platt(values, truths)


def check(cases: Sequence[Case], method: Method) -> tuple[str, ...]:
    """The labels of cases that can be fitted to; raises InvalidRequest, which says why they cannot."""
    labels = tuple(cases[0].logprobs) if cases else ()
    if len(cases) < LEAST_CASES:
        raise InvalidRequest(
            f"a calibration needs at least {LEAST_CASES} labelled cases with label probabilities, not {len(cases)}",
            param="calibrate",
        )
    if len({case.truth for case in cases}) < 2:
        raise InvalidRequest("a calibration needs cases of at least two labels", param="calibrate")
    if method == "platt" and len(labels) != 2:
        raise InvalidRequest("Platt's method is for two labels; choose temperature", param="calibrate")
    return labels


def applied(
    method: Method, fitted: Mapping[str, float], labels: Sequence[str], logprobs: Mapping[str, float]
) -> dict[str, float]:
    """The probability of each label by these parameters."""
    values = _values(logprobs, labels)
    if method == "temperature":
        shares = softmax(values / fitted["temperature"])
    else:
        second = expit(fitted["slope"] * (values[1] - values[0]) + fitted["offset"])
        shares = np.array([1 - second, second])
    return dict(zip(labels, map(float, shares), strict=True))


def _values(logprobs: Mapping[str, float], labels: Sequence[str]) -> NDArray[np.float64]:
    values = np.array([logprobs[label] for label in labels], np.float64)
    return np.asarray(np.maximum(values - values.max(), -DEEPEST))


def _temperature(values: NDArray[np.float64], truths: NDArray[np.intp]) -> dict[str, float]:
    n, labels = values.shape
    targets = np.full(values.shape, 1 / (n + 2) / (labels - 1))  # one case's worth for what was not true
    targets[np.arange(n), truths] = (n + 1) / (n + 2)

    def loss(warmth: float) -> float:
        return float(-(targets * log_softmax(values / exp(warmth), axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(-log(HOTTEST), log(HOTTEST)), method="bounded")
    return {"temperature": exp(float(found.x))}


def _platt(values: NDArray[np.float64], truths: NDArray[np.intp]) -> dict[str, float]:
    difference, positive = values[:, 1] - values[:, 0], int(truths.sum())
    wanted = np.where(truths == 1, (positive + 1) / (positive + 2), 1 / (len(truths) - positive + 2))

    def loss(line: NDArray[np.float64]) -> float:
        logits = line[0] * difference + line[1]
        return float(np.mean(np.logaddexp(0, logits) - wanted * logits))

    def slope(line: NDArray[np.float64]) -> NDArray[np.float64]:
        off = expit(line[0] * difference + line[1]) - wanted
        return np.array([np.mean(off * difference), np.mean(off)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=slope, method="BFGS")
    return {"slope": float(found.x[0]), "offset": float(found.x[1])}


# --- where they are kept -------------------------------------------------------------------------------------------


def identity(facts: Mapping[str, str]) -> str:
    """Which weights an engine runs, from its facts: their fingerprint with that of the vision part, or their name.

    A name is all that is known of a model behind another server, and that server may exchange what it stands for.
    """
    prints = [facts[name] for name in ("fingerprint", "projector_fingerprint") if name in facts]
    return "+".join(prints) or f"{facts.get('engine', 'unknown')}:{facts.get('weights', '')}"


def prepared(home: Path) -> Path:
    """The folder of calibrations, in which a file can be written; raises InvalidRequest where none can.

    To be asked before the work of hours whose outcome is kept there.
    """
    return outputs.kept_in(home, "calibrations")


def keep(home: Path, calibration: Calibration) -> Path:
    """Write a calibration where `find` finds it, in place of an earlier one of the same question; returns its file."""
    folder = prepared(home)
    held = (calibration.workflow, calibration.version, calibration.options, calibration.step, calibration.weights)
    file = folder / f"{sha256(dumps(held, sort_keys=True).encode()).hexdigest()[:32]}.json"
    fresh = file.with_suffix(".new")
    fresh.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    fresh.replace(file)
    return file


def find(
    home: Path, workflow: str, version: str, options: Mapping[str, JsonValue], facts: Mapping[str, str]
) -> dict[str, Calibration]:
    """The calibrations of a workflow's questions for these weights, by step; files that are none are passed over.

    Only those that were fitted with the very same `options` of the workflow's own.
    """
    weights, found = identity(facts), {}
    for file in sorted((home / "calibrations").glob("*.json")):
        try:
            one = Calibration.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
        if (one.workflow, one.version, one.options, one.weights) == (workflow, version, dict(options), weights):
            found[one.step] = one
    return found
