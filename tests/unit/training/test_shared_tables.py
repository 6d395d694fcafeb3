"""What a ranker takes over from the towers."""

from __future__ import annotations

import torch

from twotower.models.shared_tables import start_from_tables
from twotower.models.tables import TableGroup, halve_tables


def all_learned(model):
    """Weights of single features, by side and name."""
    for side in ("query_embedder", "item_embedder"):
        for name, weights in getattr(model, side).learned().items():
            yield from ((f"{side}.{name}.{n}", weight) for n, weight in enumerate(weights))


class TestStartFromTables:
    def test_tables_of_both_models_are_copied(self, world):
        towers, ranker = world.towers(seed=1), world.ranker(seed=2)
        before = {name: value.clone() for name, value in ranker.state_dict().items()}
        started = dict(all_learned(ranker))
        reused = start_from_tables(ranker, towers)
        assert sorted(reused) == ["category", "device", "image_vector", "item_id", "user_id"]
        learned = dict(all_learned(towers))
        assert learned.keys() == started.keys()
        for name, weight in started.items():
            assert torch.equal(weight, learned[name]), name
        for name, value in ranker.state_dict().items():
            assert torch.equal(value, before[name]) == ("_embedder" not in name), name

    def test_from_tables_in_half_the_memory(self, world):
        """A ranker is fresh, and float32, when it takes over what the towers have learned."""
        towers, ranker = world.towers(seed=1), world.ranker(seed=2)
        halve_tables(towers)
        assert "item_id" in start_from_tables(ranker, towers)
        (started,), (learned,) = (
            model.item_embedder.learned()["item_id"] for model in (ranker, towers)
        )
        assert (started.dtype, learned.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(started, learned.float())

    def test_tables_of_another_width_are_not(self, world):
        towers, ranker = world.towers(), world.ranker()
        wide = TableGroup(num_rows={"item_id": 41}, dim=9, sparse=False)
        towers.item_embedder._group_of["item_id"] = wide
        before = ranker.item_embedder.learned()["item_id"][0].clone()
        assert "item_id" not in start_from_tables(ranker, towers)
        assert torch.equal(ranker.item_embedder.learned()["item_id"][0], before)
