"""What the tables of docs/verify.md are printed from: weights with noise, and certificates written as rows."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks import verification
from benchmarks.verification import FAULTY, noisy_weights, plain
from medserve.certificates import Cause, Certificate, Check, Finding, Measure, Outcome, Verdict
from medserve.settings import DEMO
from medserve.verification.causes import FAULTS


def test_every_known_fault_has_a_row() -> None:
    """And no other has."""
    assert {fault.name for fault in FAULTS} == set(FAULTY)


def test_noise_changes_the_matrices_of_the_language_part_by_its_share(tmp_path: Path) -> None:
    """Norms and the vision part stay as they are; another draw is another change."""
    before = load_file(DEMO / "model.safetensors")
    one, other = (
        load_file(noisy_weights(tmp_path / name, 0.08, np.random.default_rng(seed)) / "model.safetensors")
        for seed, name in enumerate(("one", "other"))
    )

    assert before.keys() == one.keys()
    for name, weight in before.items():
        change = (one[name] - weight.float()).std() / weight.float().std() if weight.numel() > 1 else 0.0
        noisy = name.startswith("language_model.") and weight.ndim == 2
        assert float(change) == (pytest.approx(0.08, rel=0.05) if noisy else 0), name
        assert noisy != bool((one[name] == other[name]).all()), name


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0, "0"),
        (3e-12, "below 0.000 000 001"),
        (2.04e-8, "0.000 000 020"),
        (0.00091, "0.000 91"),
        (0.1376, "0.14"),
        (7.62, "7.6"),
        (10.1, "10"),
        (None, "-"),
    ],
)
def test_numbers_are_written_out(number: float | None, written: str) -> None:
    """Two digits that count, decimals in threes."""
    assert written == plain(number)


def certificate(finding: Finding, outcome: Outcome, agreed: float) -> Certificate:
    """One with a single cause and the measures of its answers."""
    numbers = {
        "answers compared": 144.0,
        "answers that agree": agreed,
        "share that agrees, at least (95 %)": 0.921,
        "median divergence from the reference": 0.0007,
        "worst divergence from the reference": 0.32,
        "median difference of a label's log-probability": 0.14,
    }
    measures = tuple(Measure(name=name, value=number) for name, number in numbers.items())
    guilty = Outcome.FAILED if finding is Finding.FOUND else Outcome.PASSED
    verdict = Verdict.FAILED if Outcome.FAILED in (outcome, guilty) else Verdict.PASSED
    cause = Cause(name="causal_images", meaning="", finding=finding, reason="", n=144, nearer=115)
    return Certificate(
        model="m",
        verdict=verdict,
        summary="",
        subject={},
        reference={},
        settings={},
        pictures=24,
        picture_set="0" * 64,
        checks=(
            Check(name="labels", outcome=outcome, reason="", measures=measures),
            Check(name="causes", outcome=guilty, reason=""),
        ),
        causes=(cause,),
    )


def test_a_row_says_what_the_verdict_rests_on() -> None:
    """A known fault first, and then the checks that did not pass without one."""
    alone = verification.row("causal", certificate(Finding.FOUND, Outcome.PASSED, 139))
    both = verification.row("causal", certificate(Finding.FOUND, Outcome.FAILED, 99))
    right = verification.row("right", certificate(Finding.EXCLUDED, Outcome.PASSED, 144))

    assert ("causal", "139", "92.1 %", "0.000 70", "0.32", "0.14", "failed: `causal_images`") == alone
    assert "failed: `causal_images`, labels" == both[-1]
    assert "passed" == right[-1]


def test_leaning_is_told_with_its_interval() -> None:
    """115 of 144 answers are surely more than half."""
    made = certificate(Finding.UNDECIDED, Outcome.PASSED, 130)

    (first, _) = verification.leaning(2, made, made)

    assert ("2", "causal", "115 of 144", "80 (73 to 86)", "undecided", "passed") == first
