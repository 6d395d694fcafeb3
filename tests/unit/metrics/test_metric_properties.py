"""What holds of every list, every click and every prediction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twotower.metrics.calibration import expected_calibration_error, reliability
from twotower.metrics.click import auc, grouped_auc, log_loss
from twotower.metrics.top_k import Relevant, top_k_metrics

NAMES = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")


@st.composite
def queries(draw: st.DrawFn) -> tuple[np.ndarray, list[set[int]]]:
    """Ranked lists of distinct items, some of them short, and what is relevant of each."""
    width = draw(st.integers(1, 8))
    rows, wanted = [], []
    for _ in range(draw(st.integers(1, 5))):
        row = draw(st.permutations(range(12)))[:width]
        length = draw(st.integers(0, width))
        rows.append([*row[:length], *[-1] * (width - length)])
        wanted.append(draw(st.sets(st.integers(0, 11), max_size=6)))
    return np.array(rows, np.int64), wanted


def relevant_of(wanted: list[set[int]]) -> Relevant:
    index = np.repeat(np.arange(len(wanted)), [len(one) for one in wanted])
    rows = np.array([row for one in wanted for row in sorted(one)], np.int64)
    return Relevant.from_pairs(index, rows, len(wanted))


@given(queries(), st.integers(1, 8))
def test_metrics_of_lists_lie_in_their_bounds_and_recall_grows(given_queries, k) -> None:
    ranked, wanted = given_queries
    k = min(k, ranked.shape[1])
    found = top_k_metrics(ranked, relevant_of(wanted), sorted({1, k}))
    for name, wide in itertools.product(NAMES, {1, k}):
        values = found[f"{name}@{wide}"]
        has = np.array([bool(one) for one in wanted])
        assert np.isnan(values[~has]).all()
        assert ((values[has] >= 0) & (values[has] <= 1 + 1e-12)).all()
    for name in ("recall", "hit_rate", "mrr"):
        assert not (found[f"{name}@{k}"] < found[f"{name}@1"] - 1e-12).any()


@given(queries())
def test_the_best_order_has_an_ndcg_of_one_and_no_order_more(given_queries) -> None:
    ranked, wanted = given_queries
    k = ranked.shape[1]
    best = np.full_like(ranked, -1)
    for row, one in enumerate(wanted):
        first = sorted(one)[:k]
        others = [item for item in range(12) if item not in one][: k - len(first)]
        best[row, : len(first) + len(others)] = [*first, *others]
    has = [bool(one) for one in wanted]
    ideal = top_k_metrics(best, relevant_of(wanted), [k])[f"ndcg@{k}"][has]
    other = top_k_metrics(ranked, relevant_of(wanted), [k])[f"ndcg@{k}"][has]
    np.testing.assert_allclose(ideal, 1)
    assert (other <= 1 + 1e-12).all()


clicks = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=30)


@given(clicks, st.randoms())
def test_auc_is_the_share_of_pairs_in_order(rows, chance) -> None:
    positives = [score for label, score in rows if label]
    negatives = [score for label, score in rows if not label]
    assume(positives and negatives)
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    labels, scores = (np.array(one) for one in zip(*rows, strict=True))
    found = auc(labels, scores)
    assert found == pytest.approx(sum(pairs) / len(pairs))
    assert auc(labels, -scores) == pytest.approx(1 - found)
    assert auc(labels, np.exp(scores / 2.0)) == pytest.approx(found)  # only the order counts
    order = chance.sample(range(len(rows)), len(rows))
    assert auc(labels[order], scores[order]) == pytest.approx(found)
    assert grouped_auc(labels, scores, np.zeros(len(rows))) == pytest.approx(found)


@given(clicks)
def test_log_loss_is_least_at_the_rate(rows) -> None:
    labels = np.array([label for label, _ in rows])
    rate = labels.mean()
    assume(0 < rate < 1)
    least = log_loss(labels, np.full(len(labels), rate))
    for other in (0.3, 0.5, 0.9):
        assert log_loss(labels, np.full(len(labels), other)) >= least - 1e-12


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40),
    st.integers(1, 10),
)
def test_a_reliability_table_counts_every_row_once(rows, num_bins) -> None:
    labels, predicted = (np.array(one) for one in zip(*rows, strict=True))
    table = reliability(labels, predicted, num_bins)
    assert table.counts.sum() == len(rows)
    assert 1 <= len(table.counts) <= num_bins
    np.testing.assert_allclose(np.average(table.observed, weights=table.counts), labels.mean())
    np.testing.assert_allclose(np.average(table.predicted, weights=table.counts), predicted.mean())
    assert (np.diff(table.predicted) > -1e-12).all()
    assert 0 <= expected_calibration_error(table) <= 1 + 1e-12
