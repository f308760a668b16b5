"""A build is recognised by lying next to a fault, and by nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.certificates import Finding, Outcome
from medserve.images import Image, Source
from medserve.imaging.preprocess import VisionInput, resized
from medserve.imaging.windows import three_windows
from medserve.verification import causes, checks
from medserve.verification.causes import CAUSAL, FAULTS
from medserve.verification.observing import Answer
from medserve.verification.pictures import Shown, drawn

VISION = VisionInput(64)
RNG = np.random.default_rng(5)


def answers(values: np.ndarray) -> dict[int, Answer]:
    """An answer of three labels for each row of log-probabilities."""
    found = {}
    for place, row in enumerate(values):
        logprobs = dict(zip("abc", map(float, row), strict=True))
        found[place] = Answer(max(logprobs, key=lambda label: logprobs[label]), logprobs)
    return found


def noise(scale: float, n: int = 60) -> np.ndarray:
    return RNG.normal(0, scale, (n, 3))


RIGHT = RNG.normal(-3, 1, (60, 3))


def test_a_build_that_lies_next_to_the_fault_has_it() -> None:
    """However small the fault is, if the build's own noise is smaller."""
    faulty = RIGHT + noise(0.02)

    cause = causes.judged(CAUSAL, answers(faulty + noise(0.002)), answers(RIGHT), answers(faulty))

    assert Finding.FOUND is cause.finding
    assert cause.nearer > 50
    assert cause.to_fault is not None
    assert cause.to_reference is not None
    assert cause.to_fault < cause.to_reference / 2


def test_an_honest_build_with_noise_smaller_than_the_fault_is_cleared() -> None:
    """Its answers are nearer to the reference."""
    cause = causes.judged(CAUSAL, answers(RIGHT + noise(0.01)), answers(RIGHT), answers(RIGHT + noise(0.2)))

    assert Finding.EXCLUDED is cause.finding


@settings(deadline=None)  # the machine may be under load
@given(st.floats(0.5, 3.0), st.integers(0, 10_000))
def test_an_honest_build_with_much_noise_is_never_accused(scale: float, seed: int) -> None:
    """Fewer bits move the answers anywhere: a small fault is then not excluded, and not found."""
    rng = np.random.default_rng(seed)
    honest = RIGHT + rng.normal(0, scale, RIGHT.shape)

    cause = causes.judged(CAUSAL, answers(honest), answers(RIGHT), answers(RIGHT + rng.normal(0, 0.05, RIGHT.shape)))

    assert Finding.FOUND is not cause.finding


def test_a_build_that_leans_to_a_fault_through_its_noise_does_not_pass() -> None:
    """Fewer bits hide the fault from the median, but noise alone leans to no side: the verdict stays open."""
    faulty = RIGHT + noise(0.2)
    leaning = causes.judged(CAUSAL, answers(faulty + noise(0.15)), answers(RIGHT), answers(faulty))
    check = checks.causes([leaning])

    assert Finding.UNDECIDED is leaning.finding
    assert (Outcome.NOT_DONE, True) == (check.outcome, check.needed)
    assert "causal_images" in check.reason
    assert "more bits" in check.reason


def test_faults_that_were_not_tried_are_named() -> None:
    """Nobody is to think that they were excluded."""
    excluded = causes.judged(CAUSAL, answers(RIGHT + noise(0.01)), answers(RIGHT), answers(RIGHT + noise(0.2)))
    check = checks.causes([excluded, causes.untried(FAULTS[2], "all pictures are square")])

    assert Outcome.PASSED is check.outcome
    assert "not tried: aspect_squashed" in check.reason


def test_a_fault_that_changes_nothing_is_not_tried() -> None:
    """The reason says what would be needed."""
    cause = causes.judged(CAUSAL, answers(RIGHT), answers(RIGHT), answers(RIGHT))

    assert Finding.NOT_TRIED is cause.finding
    assert "--pictures" in cause.reason


def test_the_fault_that_fits_best_is_named_first() -> None:
    """Two faults that look alike are both named."""
    faulty = RIGHT + noise(1)
    near, nearer = faulty + noise(0.1), faulty + noise(0.001)
    found = [
        causes.judged(fault, answers(faulty), answers(RIGHT), answers(planted))
        for fault, planted in zip(FAULTS[:2], (near, nearer), strict=True)
    ]

    assert [FAULTS[1].name, FAULTS[0].name] == [cause.name for cause in causes.best(found)]


def test_answers_without_a_common_label_are_far_apart() -> None:
    """Where an engine tells the answer that it gave and no other."""
    yes, no = Answer("yes", {"yes": -0.1}), Answer("no", {"no": -0.2})

    assert causes.distance(yes, no) > 10
    assert 0 == causes.distance(yes, Answer("yes", {"yes": -0.1}))


def test_a_fault_is_planted_only_where_it_shows() -> None:
    """A grey picture has no colours to exchange, a square one no proportions, a photograph no window."""
    square = np.repeat(RNG.integers(0, 256, (40, 40, 1), np.uint8), 3, axis=2)
    wide = RNG.integers(0, 256, (30, 90, 3), np.uint8)
    values = next(drawn())
    shown = [Shown(of(square)), Shown(of(wide)), Shown(of(three_windows(values)), values)]

    planted = {fault.name: set(causes.plant(fault, shown, VISION)) for fault in FAULTS}

    assert {
        "causal_images": {0, 1, 2},
        "colours_reversed": {1, 2},
        "aspect_squashed": {1},
        "ct_window_of_serving_code": {2},
        "ct_window_single": {2},
    } == planted


def test_exchanged_colours_are_exactly_the_other_order() -> None:
    """Blue, green, red."""
    wide = of(RNG.integers(0, 256, (30, 90, 3), np.uint8))

    planted = causes.plant(FAULTS[1], [Shown(wide)], VISION)[0]

    assert np.array_equal(resized(planted, VISION), resized(wide, VISION)[..., ::-1])


def of(pixels: np.ndarray) -> Image:
    return Image(np.ascontiguousarray(pixels), Source("PNG", "RGB", pixels.shape[1], pixels.shape[0]))
