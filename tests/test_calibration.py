"""Calibration finds what was planted in made-up answers, and is applied to nothing but what it was fitted for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve import calibration
from medserve.calibration import LEAST_CASES, Calibration, Case, Fit
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.replay import replayed
from medserve.reports import Report, as_text
from medserve.workflows import find
from tests.pictures import drawn

LABELS = ("MEL", "NV", "BCC", "BKL")
LOGPROBS = {"MEL": -3.0, "NV": -2.0, "BCC": -0.25, "BKL": -4.0}
LOOK = "The shape is consistent with the picture. In addition, arborizing vessels are visible."
ANSWERS = (
    "dermoscopy",
    Reply("Irregular.", label_logprobs={"round": -9.0, "oval": -9.0, "irregular": 0.0}),
    Reply("yes", label_logprobs={"yes": 0.0, "no": -9.0}),
    "dots and streaks",
    "brown, red",
    LOOK,
    Reply("BCC", label_logprobs=LOGPROBS),
)
FACTS = {"engine": "scripted", "weights": "scripted"}


def planted(temperature: float, n: int, seed: int = 0) -> list[Case]:
    """Answers of a model that is surer by this factor than the truth warrants."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(n):
        honest = np.log(rng.dirichlet((0.7,) * len(LABELS)))
        truth = str(rng.choice(LABELS, p=np.exp(honest)))
        cases.append(Case(dict(zip(LABELS, temperature * honest, strict=True)), truth))
    return cases


def made(**given: object) -> Calibration:
    """A calibration of the dermoscopy class for the scripted engine, cooled to twice the temperature."""
    told: Mapping[str, object] = {
        "step": "Classification",
        "labels": LABELS,
        "method": "temperature",
        "parameters": {"temperature": 2.0},
        "dataset": "ab" * 32,
        "n": 200,
        "workflow": "dermoscopy",
        "version": find("dermoscopy").version,
        "options": {"signs": False},
        "weights": calibration.identity(FACTS),
        "before": 1.0,
        "after": 0.5,
        "folds": 5,
    }
    return Calibration.model_validate({**told, **given})


async def report(fits: Mapping[str, Fit] | None = None, **options: object) -> Report:
    return await examine(find("dermoscopy"), drawn("lesion-mel"), Scripted(ANSWERS), options=options, calibrations=fits)


def found(home: Path, **facts: str) -> Mapping[str, Calibration]:
    """What is found for the scripted engine, or for other facts."""
    workflow = find("dermoscopy")
    return calibration.find(home, workflow.name, workflow.version, workflow.own({}), facts or FACTS)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_recovered(temperature: float) -> None:
    """Of a model that is three times too sure, the temperature is three."""
    fit = calibration.parameters(planted(temperature, 4000), LABELS, "temperature")

    assert fit["temperature"] == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 1.0), (2.0, -0.5)])
def test_a_planted_line_is_recovered(slope: float, offset: float) -> None:
    """Platt's sigmoid is the one by which the truths were drawn."""
    rng = np.random.default_rng(1)
    cases = []
    for difference in rng.normal(0, 2, 8000):
        is_yes = rng.random() < 1 / (1 + np.exp(-(slope * difference + offset)))
        cases.append(Case({"no": 0.0, "yes": float(difference)}, "yes" if is_yes else "no"))

    fit = calibration.parameters(cases, ("no", "yes"), "platt")

    assert fit == pytest.approx({"slope": slope, "offset": offset}, abs=0.1)


@pytest.mark.parametrize(("method", "labels"), [("temperature", LABELS), ("platt", ("no", "yes"))])
def test_cases_without_an_error_make_no_certainty(method: calibration.Method, labels: tuple[str, ...]) -> None:
    """The likelihood alone would cool without end and call the next answer impossible to be wrong."""
    sure = [Case({one: 0.0 if one == label else -4.0 for one in labels}, label) for label in labels for _ in range(30)]

    fit = calibration.parameters(sure, labels, method)

    assert max(calibration.applied(method, fit, labels, sure[0].logprobs).values()) < 0.999


def test_one_case_without_any_probability_does_not_decide_the_fit() -> None:
    """An engine says -10000 where the truth had no probability; alone it would heat everything to the limit."""
    cases = planted(1.0, 500)
    impossible = Case(dict.fromkeys(LABELS, -10_000.0) | {"NV": 0.0}, "MEL")

    fit = calibration.parameters([*cases, impossible], LABELS, "temperature")

    assert fit["temperature"] < 2


@given(st.floats(0.01, 100), st.lists(st.floats(-10_000, 0), min_size=4, max_size=4))
def test_a_temperature_keeps_the_order_of_the_labels(temperature: float, values: list[float]) -> None:
    """Whatever the model said: probabilities add up to 1, and the likeliest label stays it."""
    logprobs = dict(zip(LABELS, values, strict=True))

    shares = calibration.applied("temperature", {"temperature": temperature}, LABELS, logprobs)

    assert sum(shares.values()) == pytest.approx(1)
    assert shares[max(logprobs, key=lambda label: logprobs[label])] == max(shares.values())


def test_what_cannot_be_fitted_is_refused_with_the_reason() -> None:
    """Too few cases, cases of one label only, and Platt's method for four labels."""
    cases = planted(1.0, 100)
    of_one = [case for case in planted(1.0, 200) if case.truth == "NV"]

    for given_cases, method, words in (
        (cases[: LEAST_CASES - 1], "temperature", "at least 20"),
        ([], "temperature", "at least 20"),
        (of_one, "temperature", "two labels"),
        (cases, "platt", "choose temperature"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            calibration.check(given_cases, method)  # type: ignore[arg-type]
        assert "calibrate" == refused.value.param


def test_a_calibration_is_found_for_what_it_was_fitted_for(tmp_path: Path) -> None:
    """By its step, and in place of an earlier one of the same question."""
    calibration.keep(tmp_path, made(n=100))
    calibration.keep(tmp_path, made(n=200))

    assert {"Classification": 200} == {step: one.n for step, one in found(tmp_path).items()}


@pytest.mark.parametrize(
    "other",
    [
        {"version": "0"},
        {"workflow": "histology"},
        {"weights": "cd" * 32},
        {"options": {"signs": True}},
    ],
)
def test_a_calibration_is_not_found_for_anything_else(tmp_path: Path, other: dict[str, object]) -> None:
    """Another version, other weights, or options with which the question is put otherwise."""
    calibration.keep(tmp_path, made(**other))

    assert {} == found(tmp_path)


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    """A file of the same name with other content is another model; so is another vision part."""
    one, two, three = ({"fingerprint": a, "projector_fingerprint": b} for a, b in (("1", "9"), ("2", "9"), ("1", "8")))
    calibration.keep(tmp_path, made(weights=calibration.identity({**one, "weights": "same"})))

    assert [1, 0, 0] == [len(found(tmp_path, weights="same", **facts)) for facts in (one, two, three)]


def test_a_broken_file_is_passed_over(tmp_path: Path) -> None:
    """What lies beside the calibrations stops no examination."""
    kept = calibration.keep(tmp_path, made())
    (kept.parent / "broken.json").write_text("{")

    assert ["Classification"] == list(found(tmp_path))


async def test_a_report_says_by_what_it_is_calibrated() -> None:
    """The method, how many cases, of which data set, and what the model's own probabilities were."""
    own = (await report()).conclusion.probabilities
    calibrated = await report({"Classification": made()})

    conclusion = calibrated.conclusion
    assert conclusion.calibrated is not None
    assert own == conclusion.calibrated.before
    assert ("Classification", "ab" * 32, 200) == (
        conclusion.calibrated.step,
        conclusion.calibrated.dataset,
        conclusion.calibrated.n,
    )
    assert conclusion.probabilities is not None
    assert own is not None
    assert conclusion.probabilities["BCC"] < own["BCC"]
    assert "calibrated by temperature on 200 cases of the data set abababababab" in " ".join(
        as_text(calibrated).split()
    )


async def test_calibration_can_be_left_away() -> None:
    """With `calibrate=false` the probabilities are the model's own, and the report says so."""
    plain = await report({"Classification": made()}, calibrate=False)

    assert plain.conclusion.calibrated is None
    assert (await report()).conclusion.probabilities == plain.conclusion.probabilities
    assert "not calibrated" in as_text(plain)


async def test_the_threshold_is_held_against_the_calibrated_probability() -> None:
    """What the model calls probable may be indeterminate once its probabilities are honest."""
    own, calibrated = await report(threshold=0.7), await report({"Classification": made()}, threshold=0.7)

    assert ("BCC", None) == (own.conclusion.label, calibrated.conclusion.label)
    assert Flag.INDETERMINATE in calibrated.flags


@pytest.mark.parametrize(("offset", "disagree"), [(0.0, False), (20.0, True)])
async def test_an_answer_that_its_calibrated_probabilities_do_not_favour_is_flagged(
    offset: float, disagree: bool
) -> None:
    """A line may turn two answers round: the model says yes, and with its bias taken away no is the likelier one."""
    line = made(
        step="Pigment network", labels=("yes", "no"), method="platt", parameters={"slope": 1.0, "offset": offset}
    )
    found = (await report({"Pigment network": line}, probabilities=True)).conclusion.findings[1]

    assert found.probabilities is not None
    assert disagree == (found.probabilities["no"] > found.probabilities["yes"])
    assert disagree == (Flag.LABEL_DISAGREEMENT in found.flags)


async def test_a_calibrated_report_replays_without_the_calibration_at_hand() -> None:
    """The fit is part of the report: another one, or none, may be kept by then."""
    recorded = await report({"Classification": made()}, threshold=0.7)

    assert recorded.same_answers(await replayed(recorded, drawn("lesion-mel")))
