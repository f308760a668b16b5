"""The statistics agree with published examples and with what can be worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.evaluation.measures import BINS, Share, auroc, coverage, mean_of, proper, reliability
from medserve.intervals import wilson

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Stat Med 17:857 (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (66, 99, 0.5691, 0.7518),
    ],
)
def test_wilson_as_published(count: int, n: int, low: float, high: float) -> None:
    """The examples of Newcombe's comparison of intervals, and one of the same formula."""
    assert (low, high) == tuple(round(edge, 4) for edge in wilson(count, n))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    """The interval of what was wrong is that of what was right, turned."""
    count, n = case
    low, high = wilson(count, n)

    assert 0 <= low <= count / n <= high <= 1
    assert list(wilson(n - count, n)) == pytest.approx([1 - high, 1 - low])


def test_a_share_of_nothing_is_no_number() -> None:
    """No 0 %, no 100 % and no interval of studies that there are none of."""
    assert (None, None, None) == (Share.of(0, 0).share, Share.of(0, 0).low, Share.of(0, 0).high)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ((0.9, 0.8), (0.1, 0.2), 1.0),
        ((0.1, 0.2), (0.9, 0.8), 0.0),
        ((0.5, 0.5), (0.5,), 0.5),
        ((0.8, 0.4), (0.6, 0.2), 0.75),
        ((0.8, 0.4, 0.4), (0.4, 0.2), (1 + 1 + 0.5 + 1 + 0.5 + 1) / 6),
    ],
)
def test_auroc_by_hand(positive: tuple[float, ...], negative: tuple[float, ...], expected: float) -> None:
    """The share of pairs in the right order, equal ones counting half."""
    assert auroc(positive, negative).value == pytest.approx(expected)


@given(scores, scores)
def test_auroc_counts_pairs_and_turns_over(positive: list[float], negative: list[float]) -> None:
    """As counted pair by pair; with the sides exchanged it is the rest of 1, its interval too."""
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    one, turned = auroc(positive, negative), auroc(negative, positive)

    assert one.value == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert one.low is not None
    assert one.high is not None
    assert turned.low is not None
    assert 0 <= one.low <= one.value + 1e-9  # type: ignore[operator]
    assert one.value - 1e-9 <= one.high <= 1  # type: ignore[operator]
    assert turned.low == pytest.approx(1 - one.high, abs=1e-6)


def test_a_perfect_auroc_is_still_uncertain() -> None:
    """DeLong's interval would be the point 1 for ten separated cases as for ten thousand."""
    few, many = auroc([1.0] * 5, [0.0] * 5), auroc([1.0] * 500, [0.0] * 500)

    assert few.low is not None
    assert many.low is not None
    assert 0.5 < few.low < 0.85
    assert 0.98 < many.low < 1


def test_the_auroc_interval_is_hanley_and_mcneils_variance_solved() -> None:
    """At both ends what was observed is exactly 1.96 standard errors away."""
    found = auroc([0.9, 0.8, 0.7, 0.35, 0.3, 0.6], [0.1, 0.5, 0.4, 0.2, 0.65])

    for edge in (found.low, found.high):
        assert edge is not None
        m, n = 6, 5
        middle = (m + n) / 2 - 1
        first, second = edge / (2 - edge) - edge**2, 2 * edge**2 / (1 + edge) - edge**2
        variance = (edge * (1 - edge) + middle * first + middle * second) / (m * n)
        assert abs((found.value or 0) - edge) / math.sqrt(variance) == pytest.approx(1.959964, abs=1e-4)


def test_without_both_sides_there_is_no_auroc() -> None:
    """Null, and not 0.5."""
    assert auroc([0.5], []).value is None


def test_balanced_accuracy_is_the_mean_of_sensitivities() -> None:
    """A label without a case has none; two perfect labels are still uncertain."""
    found = mean_of([Share.of(9, 10), Share.of(1, 2), Share.of(0, 0)])
    perfect = mean_of([Share.of(10, 10), Share.of(10, 10)])

    assert found.value == pytest.approx(0.7)
    assert 1.0 == perfect.value == perfect.high
    assert perfect.low is not None
    assert wilson(10, 10)[0] < perfect.low < 1
    assert mean_of([Share.of(0, 0)]).value is None


def test_scores_of_probabilities_by_hand() -> None:
    """Brier over all labels, logarithmic loss, and the error of a model that is 80 % sure and always wrong."""
    found = proper([{"a": 0.8, "b": 0.2}, {"a": 0.8, "b": 0.2}], ["b", "b"])

    assert found.brier == pytest.approx(2 * 0.8**2)
    assert found.nll == pytest.approx(-math.log(0.2))
    assert found.ece == pytest.approx(0.8)


def test_an_impossible_truth_has_a_finite_loss() -> None:
    """A probability of 0 for what was true is terrible and still a number."""
    assert math.isfinite(proper([{"a": 1.0, "b": 0.0}], ["b"]).nll)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_every_answer_is_in_one_bin(answers: list[tuple[float, bool]]) -> None:
    """Those at the borders too, 0 and 1 among them."""
    bins = reliability([sure for sure, _ in answers], [right for _, right in answers])

    assert (BINS, len(answers)) == (len(bins), sum(one.n for one in bins))
    for one in bins:
        assert one.confidence is None or one.low - 1e-9 <= one.confidence <= one.high + 1e-9


def test_a_higher_threshold_leaves_less_and_better_answers() -> None:
    """Of ten studies eight were answered; the two unsure ones were wrong."""
    table = {row.threshold: row for row in coverage([0.97] * 6 + [0.55] * 2, [True] * 6 + [False] * 2, 10)}

    assert (8, 10, 6, 8) == (*_pair(table[0.0].coverage), *_pair(table[0.0].accuracy))
    assert (6, 10, 6, 6) == (*_pair(table[0.6].coverage), *_pair(table[0.6].accuracy))
    assert (0, 10, 0, 0) == (*_pair(table[0.99].coverage), *_pair(table[0.99].accuracy))


def _pair(share: Share) -> tuple[int, int]:
    return share.count, share.n
