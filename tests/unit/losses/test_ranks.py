"""Shares: every thing belongs to one process, and no process has two more than another."""

from __future__ import annotations

import pytest
import torch

from twotower.losses.ranks import OneRank, share


class Place:
    def __init__(self, rank, size):
        self.rank = rank
        self.size = size


@pytest.mark.parametrize(("num", "size"), [(0, 3), (1, 4), (22, 4), (23, 4), (24, 4), (7, 1)])
def test_shares_are_contiguous_and_even(num, size):
    things = list(range(num))
    parts = [things[share(Place(rank, size), num)] for rank in range(size)]
    assert [thing for part in parts for thing in part] == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_holds_everything():
    ranks, values = OneRank(), torch.tensor([1.0, 2.0], requires_grad=True)
    assert ranks.counts(3) == (3,)
    assert ranks.gather(values) is values
    assert ranks.share_of(values.mean(), values).item() == 1.5
    assert not ranks.mean(values.mean()).requires_grad
    assert ranks.generator(torch.device("cpu")) is None
