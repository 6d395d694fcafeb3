"""Blocks lie where the ranker puts its features; strengths are those of matrices made by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.models.cross import CrossNetwork, FullRankCross, LowRankCross, full_rank, mixture
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import MeanPooling
from twotower.models.interactions import feature_blocks, interaction_strengths
from twotower.models.mlp import MLP

FEATURES = (
    FeatureInput(name="user_id", side="user", kind="id", dim=5, num_rows=9, width=0),
    FeatureInput(name="item_id", side="item", kind="id", dim=0, num_rows=11, width=0),
    FeatureInput(name="when", side="context", kind="time", dim=0, num_rows=0, width=4),
    FeatureInput(name="genres", side="item", kind="tags", dim=2, num_rows=5, width=2),
    FeatureInput(name="image", side="item", kind="vector", dim=0, num_rows=0, width=6),
    FeatureInput(name="price", side="item", kind="numeric", dim=0, num_rows=0, width=2),
)
INPUTS = ModelInputs(features=FEATURES, history_length=2, history_features=("item_id", "genres"))


@pytest.fixture
def model():
    return DCNv2(
        inputs=INPUTS,
        embedding_dim=3,
        structure=Parallel,
        cross=partial(full_rank, num_layers=1),
        deep=partial(MLP, hidden=[2], dropout=0.0),
        history=MeanPooling,
        retrieval_score=True,
        retrieval_rank=True,
    ).eval()


def batch(**changed):
    rows = {
        "user_id": torch.tensor([1]),
        "item_id": torch.tensor([2]),
        "when": torch.ones(1, 4),
        "genres": torch.tensor([[1, 0]]),
        "image": torch.ones(1, 6),
        "price": torch.ones(1, 2),
        "history.item_id": torch.tensor([[3, 4]]),
        "history.genres": torch.tensor([[[1, 2], [3, 0]]]),
        "history.mask": torch.tensor([[True, True]]),
        "retrieval_score": torch.tensor([0.5]),
        "retrieval_rank": torch.tensor([4.0]),
    }
    return rows | changed


CHANGES = {
    "user_id": {"user_id": torch.tensor([7])},
    "item_id": {"item_id": torch.tensor([9])},
    "when": {"when": torch.full((1, 4), 2.0)},
    "genres": {"genres": torch.tensor([[4, 0]])},
    "image": {"image": torch.full((1, 6), -2.0)},
    "price": {"price": torch.zeros(1, 2)},
    "history": {"history.item_id": torch.tensor([[8, 9]])},
    "retrieval score": {"retrieval_score": torch.tensor([0.75])},
    "retrieval rank": {"retrieval_rank": torch.tensor([9.0])},
}


def test_a_feature_changes_the_columns_of_its_block_and_no_others(model):
    blocks = feature_blocks(model)
    assert set(blocks) == set(CHANGES)
    assert max(block.stop for block in blocks.values()) == model.width
    before = model._features(batch())
    for name, change in CHANGES.items():
        moved = (model._features(batch(**change)) != before)[0].nonzero().flatten().tolist()
        places = range(*blocks[name].indices(model.width))
        assert moved, name
        assert set(moved) <= set(places), name
        assert name == "history" or len(moved) == len(places), name


def test_strengths_of_a_matrix_by_hand():
    layer = FullRankCross(3)
    layer.weight.data = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    blocks = {"a": slice(0, 2), "b": slice(2, 3)}
    cross = CrossNetwork(layers=[FullRankCross(3), layer])
    found = interaction_strengths(cross, blocks, layer=1)
    # The mean of all squares is (9 + 16 + 25) / 9.
    squares = torch.tensor([[9 / 4, 16 / 2], [0.0, 25.0]]) / (50 / 9)
    torch.testing.assert_close(found, squares.sqrt())


def test_a_low_rank_layer_has_the_matrix_that_it_multiplies_with():
    torch.manual_seed(0)
    low, full = LowRankCross(4, 2), FullRankCross(4)
    x0, x = torch.randn(5, 4), torch.randn(5, 4)
    full.weight.data = (low.u @ low.v.T).detach()
    torch.testing.assert_close(full(x0, x), low(x0, x))
    blocks = {"a": slice(0, 3), "b": slice(3, 4)}
    strengths = [interaction_strengths(CrossNetwork(layers=[one]), blocks) for one in (low, full)]
    torch.testing.assert_close(*strengths)


def test_experts_have_no_matrix_of_their_own():
    cross = mixture(4, num_layers=1, rank=2, num_experts=2)
    with pytest.raises(ValueError, match=r"layer 0 is a MixtureCross, .*; allowed: layers of full"):
        interaction_strengths(cross, {"a": slice(0, 4)})
