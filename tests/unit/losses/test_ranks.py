"""Shares of processes in blocks, counted by hand."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from twotower.losses.ranks import OneRank, blocks_of_share, share


def ranks(rank, size):
    return SimpleNamespace(rank=rank, size=size)


def sizes(blocks):
    return [block.stop - block.start for block in blocks]


def test_one_process_fills_its_blocks():
    assert sizes(blocks_of_share(OneRank(), 10, 4)) == [4, 4, 2]
    assert blocks_of_share(OneRank(), 0, 4) == []


def test_every_process_has_as_many_blocks():
    """Of 9 things the first takes 5, two blocks of 4 at most; the second 4, also in two."""
    assert sizes(blocks_of_share(ranks(0, 2), 9, 4)) == [2, 3]
    assert sizes(blocks_of_share(ranks(1, 2), 9, 4)) == [2, 2]


def test_a_process_without_a_share_has_an_empty_block():
    assert sizes(blocks_of_share(ranks(0, 2), 1, 4)) == [1]
    assert sizes(blocks_of_share(ranks(1, 2), 1, 4)) == [0]


@pytest.mark.parametrize("num", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("block", [1, 3, 50])
def test_blocks_cover_the_share_and_are_not_longer(num, size, block):
    counts = set()
    for rank in range(size):
        part = share(ranks(rank, size), num)
        blocks = blocks_of_share(ranks(rank, size), num, block)
        assert [blocks[0].start, blocks[-1].stop] == [0, part.stop - part.start]
        assert all(a.stop == b.start for a, b in pairwise(blocks))
        assert max(sizes(blocks)) <= block
        counts.add(len(blocks))
    assert len(counts) == 1
