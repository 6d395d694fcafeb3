"""Towers with layers of somebody else."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.own_towers import own_towers
from twotower.models.two_tower import Cosine, Dot, TwoTower

FEATURES = (
    FeatureInput(name="age", side="user", kind="numeric", dim=0, num_rows=0, width=2),
    FeatureInput(name="item_id", side="item", kind="id", dim=0, num_rows=11, width=0),
    FeatureInput(name="price", side="item", kind="numeric", dim=0, num_rows=0, width=2),
)
INPUTS = ModelInputs(features=FEATURES, history_length=3, history_features=("item_id",))
BATCH = {
    "age": torch.tensor([[0.5, 0.0], [1.0, 0.0]]),
    "item_id": torch.tensor([3, 4]),
    "price": torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
    "history.item_id": torch.tensor([[0, 3, 4], [0, 0, 0]]),
    "history.mask": torch.tensor([[False, True, True], [False, False, False]]),
}


def with_towers(tower, inputs=INPUTS, similarity=None):
    torch.manual_seed(0)
    return own_towers(
        inputs=inputs,
        dim=4,
        embedding_dim=5,
        tower=tower,
        history=MeanPooling,
        similarity=similarity or Cosine(),
    )


def test_with_our_own_layers_it_is_the_model_of_before():
    hidden = partial(MLP, hidden=[6], dropout=0.0)
    ours = with_towers(hidden)
    torch.manual_seed(1)
    plain = TwoTower(
        inputs=INPUTS, dim=4, embedding_dim=5, hidden=[6], history=MeanPooling, similarity=Cosine()
    )
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(plain.embed_queries(BATCH), ours.embed_queries(BATCH))
    assert torch.equal(plain.embed_items(BATCH), ours.embed_items(BATCH))
    assert ours.dense_parts == (ours.query_mlp, ours.item_mlp)


class Scaled(nn.Module):
    """The first numbers of its input, times a weight."""

    def __init__(self, input_width, output_width):
        super().__init__()
        self.input_width, self.output_width = input_width, output_width
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs):
        assert inputs.shape[1] == self.input_width
        return self.scale * inputs[:, : self.output_width]


def test_a_module_of_somebody_else_sees_features_and_history():
    model = with_towers(Scaled, similarity=Dot())
    # Numbers come where their feature was declared: age first, then the history.
    queries = model.embed_queries(BATCH)
    rows = model.item_embedder.learned()["item_id"][0]
    expected = torch.cat([BATCH["age"], torch.stack([(rows[3] + rows[4]) / 2, 0 * rows[0]])], 1)
    torch.testing.assert_close(queries, 2 * expected[:, :4])
    items = torch.cat([rows[[3, 4]], BATCH["price"]], dim=1)
    torch.testing.assert_close(model.embed_items(BATCH), 2 * items[:, :4])
    (queries.sum() + model.embed_items(BATCH).sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_without_a_history_the_tower_is_as_wide_as_the_features():
    inputs = ModelInputs(features=FEATURES, history_length=0, history_features=())
    assert with_towers(partial(MLP, hidden=[]), inputs).query_mlp.layers[0].in_features == 2


def test_what_builds_no_module_is_refused():
    with pytest.raises(ValueError, match=r"`tower` must build a torch.nn.Module, got dict"):
        with_towers(dict)
