"""Tiles of a mask, put together again, against the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from twotower.losses.mask_tiles import TILE, MaskTiles, Pieces
from twotower.losses.masks import PositiveMask, tiles_of
from twotower.losses.softmax_kernels import kernel_precision


def integers(high: int, num: int, seed: int) -> Tensor:
    return torch.randint(high, (num,), generator=torch.Generator().manual_seed(seed))


def matrix_of(tiles: MaskTiles, num_queries: int) -> Tensor:
    """What a kernel does, pair by pair: (B, C) of the candidates as they were given."""
    num_candidates = len(tiles.rows)
    masked = torch.zeros(num_queries, num_candidates, dtype=torch.bool)
    if tiles.target_rows is not None:
        masked |= tiles.target_rows[:, None] == tiles.rows
    if tiles.never is not None:
        masked |= tiles.never
    if tiles.known is not None:
        across, down = -(-num_candidates // TILE), -(-num_queries // TILE)
        lists, packed = tiles.known.lists.tolist(), tiles.known.packed.tolist()
        assert (len(lists), lists[0], lists[-1]) == (across * down + 1, 0, len(packed))
        for tile in range(across * down):
            query, candidate = tile // across * TILE, tile % across * TILE
            for piece in packed[lists[tile] : lists[tile + 1]]:
                at, low, high = piece & 255, piece >> 8 & 255, piece >> 16
                assert at < TILE
                assert low < high <= TILE
                masked[query + at, candidate + low : candidate + high] = True
    for dim, order in enumerate((tiles.query_order, tiles.order)):
        if order is not None:
            masked = torch.empty_like(masked).index_copy_(dim, order, masked)
    return masked


@pytest.mark.parametrize("spread", [1, 10**6])
@pytest.mark.parametrize("parts", ["targets", "known", "never", "targets known never places"])
@pytest.mark.parametrize(("num_queries", "num_candidates"), [(1, 1), (128, 256), (300, 413)])
def test_tiles_are_the_matrix(
    num_queries: int, num_candidates: int, parts: str, spread: int
) -> None:
    """Items that the batch has more often than a tile is wide, and items that are no candidates."""
    num_users, num_known = 50, 600
    rows = (integers(40, num_candidates, 0) // 20 * 7 + integers(6, num_candidates, 1)) * spread
    places = "places" in parts
    none = torch.zeros(0, dtype=torch.long)
    known = integers(num_users, num_known, 2).sort().values
    mask = PositiveMask(
        target_rows=integers(14, num_queries, 3) * spread if "targets" in parts else None,
        users=integers(num_users, num_queries, 4),
        num_users=num_users,
        known_users=known if "known" in parts else none,
        known_rows=integers(16, num_known, 5) * spread if "known" in parts else none,
        known_places=integers(9, num_known, 6).int() if places else None,
        num_seen=integers(10, num_queries, 7) if places else None,
        never=torch.arange(15 * spread) % 3 == 2 if "never" in parts else None,
    )
    expected = mask.of(rows)
    assert torch.equal(matrix_of(mask.tiles(rows), num_queries), expected)
    if num_queries == 300:
        assert expected.any()
        assert not expected.all()


def test_a_run_is_cut_at_every_border() -> None:
    """Query 130 has candidates 100 to 299 of 300, of three tiles across: tiles 3, 4 and 5."""
    run = [torch.tensor([number]) for number in (130, 100, 200)]
    pieces = Pieces.of(*run, (131, 300))
    assert pieces.lists.tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert pieces.longest == 1
    ends = [(100, 128), (0, 128), (0, 44)]
    assert pieces.packed.tolist() == [2 + 256 * low + 65536 * high for low, high in ends]


def test_a_matrix_has_no_tiles() -> None:
    assert tiles_of(torch.zeros(2, 3, dtype=torch.bool)) is None


@pytest.mark.parametrize(
    ("device", "dtype", "width", "autocast", "expected"),
    [
        ("cuda", torch.bfloat16, 64, False, torch.bfloat16),
        ("cuda", torch.float16, 64, False, torch.bfloat16),
        ("cuda", torch.float32, 64, True, torch.bfloat16),
        ("cuda", torch.float32, 64, False, None),
        ("cuda", torch.float64, 64, True, None),
        ("cuda", torch.bfloat16, 48, False, None),
        ("cuda", torch.bfloat16, 512, False, None),
        ("cpu", torch.bfloat16, 64, True, None),
    ],
)
def test_what_is_left_to_kernels(
    device: str,
    dtype: torch.dtype,
    width: int,
    autocast: bool,
    expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors that only say where they are; no GPU is asked for."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("torch.is_autocast_enabled", lambda kind: autocast and kind == "cuda")
    monkeypatch.setattr("twotower.losses.softmax_kernels._has_triton", lambda: True)
    with FakeTensorMode():
        vectors = torch.empty(5, width, dtype=dtype, device=device)
        assert kernel_precision(vectors, vectors) == expected
        none = torch.empty(0, width, dtype=dtype, device=device)
        assert kernel_precision(none, vectors) is None
    monkeypatch.setattr("twotower.losses.softmax_kernels._has_triton", lambda: False)
    assert kernel_precision(vectors, vectors) is None
