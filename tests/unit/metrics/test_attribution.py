import itertools

import numpy as np
import pytest

from twotower.metrics.attribution import Attribution, attribute

FOUND = (True, True, True, True)


def attribute_rows(rows):
    exact, ann, passed, top = np.array(rows, bool).reshape(-1, 4).T
    return attribute(exact_candidate=exact, ann_candidate=ann, passed_filter=passed, in_top_k=top)


def test_by_hand():
    rows = [
        FOUND,
        FOUND,
        (False, True, True, True),  # the index was lucky, and the ranker put it on top
        (False, False, True, False),  # exact rank not good enough
        (False, False, False, False),  # the same; the filter would have removed it, too
        (True, False, True, False),  # the index missed it
        (True, True, False, False),  # the filter removed it
        (True, True, False, False),
        (True, True, True, False),  # the ranker left it out
        (False, True, True, False),  # lucky, and then the ranker left it out
    ]
    result = attribute_rows(rows)
    assert result == Attribution(
        found=3, lost_by_retrieval=2, lost_by_index=1, lost_by_filter=2, lost_by_ranker=2
    )
    assert result.total == 10
    assert result.shares() == {
        "found": 0.3,
        "lost_by_retrieval": 0.2,
        "lost_by_index": 0.1,
        "lost_by_filter": 0.2,
        "lost_by_ranker": 0.2,
    }


def slow_outcome(exact, ann, passed, top):
    if top:
        return "found"
    if not ann:
        return "lost_by_index" if exact else "lost_by_retrieval"
    return "lost_by_ranker" if passed else "lost_by_filter"


@pytest.mark.parametrize("row", list(itertools.product([False, True], repeat=4)))
def test_every_possible_state_has_one_outcome_and_impossible_ones_are_refused(row):
    _, ann, passed, top = row
    if top and not (ann and passed):
        with pytest.raises(ValueError, match=r"1 positives are in the final list .* first \[1\]"):
            attribute_rows([FOUND, row])
        return
    counts = attribute_rows([row]).counts()
    assert counts == {name: int(name == slow_outcome(*row)) for name in counts}


def test_shares_sum_to_one():
    rng = np.random.default_rng(0)
    rows = rng.random((1000, 4)) < 0.6
    rows[:, 3] &= rows[:, 1] & rows[:, 2]
    result = attribute_rows(rows)
    assert result.total == 1000
    assert sum(result.shares().values()) == pytest.approx(1)
    assert attribute_rows(rows[::-1]) == result


def test_mistakes_are_refused():
    yes = np.array([True])
    with pytest.raises(ValueError, match=r"must be bool of one shape \(R,\), got shapes .*int64"):
        attribute(exact_candidate=np.array([1]), ann_candidate=yes, passed_filter=yes, in_top_k=yes)
    with pytest.raises(ValueError, match=r"bool of one shape \(R,\), got shapes .*\(2,\)"):
        attribute(
            exact_candidate=yes,
            ann_candidate=yes,
            passed_filter=np.array([True, True]),
            in_top_k=yes,
        )
    with pytest.raises(ValueError, match="at least one test positive, got none"):
        attribute_rows([])
