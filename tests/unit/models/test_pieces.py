"""A module piece by piece against the module on all rows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from twotower.models import pieces
from twotower.models.cross import full_rank, low_rank
from twotower.models.dcn import Parallel, Stacked
from twotower.models.mlp import MLP
from twotower.models.pieces import in_pieces

WIDTH = 5


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "NUM_ROWS", 3)


class Counted(nn.Module):
    """Remembers how many rows it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        return 2 * inputs


class Normalised(nn.Module):
    """A perceptron that looks at its batch in training."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()
        self.deep = MLP(input_width=WIDTH, hidden=[4], batch_norm=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.deep(self.counted(inputs))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


@pytest.mark.parametrize(
    ("num_rows", "sizes"), [(0, [0]), (1, [1]), (3, [3]), (4, [3, 1]), (8, [3, 3, 2])]
)
def test_all_rows_in_order_and_none_twice(num_rows: int, sizes: list[int]) -> None:
    module, inputs = Counted(), torch.arange(2.0 * num_rows).view(num_rows, 2)
    assert torch.equal(in_pieces(module, inputs), 2 * inputs)
    assert module.sizes == sizes


@pytest.mark.parametrize("structure", [Parallel, Stacked])
@pytest.mark.parametrize(
    "cross", [partial(full_rank, num_layers=2), partial(low_rank, num_layers=2, rank=2, gated=True)]
)
def test_values_and_gradients_are_those_of_the_whole_batch(structure, cross) -> None:
    """Under a loss whose rows weigh differently, of two tasks."""
    torch.manual_seed(0)
    body = structure(
        input_width=WIDTH,
        num_tasks=2,
        cross=cross(WIDTH),
        deep=MLP(input_width=WIDTH, hidden=[6, 4]),
    ).double()
    inputs, weights = drawn(8, WIDTH), drawn(8, 2, seed=1).detach()
    given = [inputs, *body.parameters()]
    whole, found = body(inputs), in_pieces(body, inputs)
    torch.testing.assert_close(found, whole)
    for one, other in zip(
        torch.autograd.grad((found.sigmoid() * weights).sum(), given),
        torch.autograd.grad((whole.sigmoid() * weights).sum(), given),
        strict=True,
    ):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_every_row_is_dropped_from_by_itself() -> None:
    """Pieces that took the same random numbers would lose the same of each."""
    torch.manual_seed(0)
    kept = in_pieces(nn.Dropout(0.5), torch.ones(9, 64))
    patterns = {tuple(row.tolist()) for row in kept}
    assert len(patterns) == 9
    assert kept.unique().tolist() == [0, 2]


def test_what_normalises_over_the_batch_sees_all_of_it() -> None:
    module, inputs = Normalised().double(), drawn(8, WIDTH)
    in_pieces(module, inputs)
    assert module.counted.sizes == [8]
    norm = module.deep.layers[1]
    assert norm.num_batches_tracked == 1
    module.eval()
    torch.testing.assert_close(in_pieces(module, inputs), module(inputs))
    assert module.counted.sizes == [8, 3, 3, 2, 8]


def test_other_devices_get_all_rows_at_once() -> None:
    module = Counted()
    assert in_pieces(module, torch.empty(8, 2, device="meta")).shape == (8, 2)
    assert module.sizes == [8]


def test_an_exported_module_knows_no_pieces() -> None:
    """One that was traced through pieces would take batches of one length only."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return in_pieces(self.layer, inputs)

    body, rows = Body().eval(), torch.export.Dim("rows", min=1)
    exported = torch.export.export(body, (torch.ones(7, 2),), dynamic_shapes=({0: rows},))
    for num_rows in (1, 4, 20):
        inputs = torch.randn(num_rows, 2)
        torch.testing.assert_close(exported.module()(inputs), body(inputs))
