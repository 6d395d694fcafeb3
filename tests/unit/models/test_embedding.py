"""Embedded features against tables set by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from twotower.features.spec import FeatureInput, Kind
from twotower.models.embedding import FeatureEmbedder
from twotower.models.tables import TableGroup


def feature(
    name: str, kind: Kind, *, num_rows: int = 0, width: int = 0, dim: int = 0
) -> FeatureInput:
    return FeatureInput(name=name, side="item", kind=kind, dim=dim, num_rows=num_rows, width=width)


ID = feature("item_id", "id", num_rows=3)
TAGS = feature("genres", "tags", num_rows=4, width=3, dim=1)
PRICE = feature("price", "numeric", width=2)
WHEN = feature("when", "time", width=4)
IMAGE = feature("image", "vector", width=2)


def embedder(
    *features: FeatureInput, sparse: bool = False, id_dropout: float = 0.0
) -> FeatureEmbedder:
    return FeatureEmbedder(
        features=features, default_dim=2, vector_dim=3, sparse=sparse, id_dropout=id_dropout
    )


def set_parameters(model: FeatureEmbedder, *values: list[list[float]] | list[float]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))


def test_every_kind_by_hand() -> None:
    model = embedder(ID, TAGS, PRICE, WHEN, IMAGE)
    set_parameters(
        model,
        [[0.5, 0.25], [1, 2], [3, 4]],  # item_id, row 0 is a row like the others
        [[100], [10], [20], [60]],  # genres, row 0 is padding
        [[1, 0], [0, 1], [1, 1]],  # image: 2 -> 3
        [0, 0, 0.5],
    )
    outputs = model(
        {
            "item_id": torch.tensor([2, 0]),
            "genres": torch.tensor([[1, 3, 0], [0, 0, 0]]),
            "price": torch.tensor([[-1.5, 0.0], [0.0, 1.0]]),
            "when": torch.tensor([[0.0, 1.0, 0.6, 0.8], [1.0, 0.0, 0.0, 1.0]]),
            "image": torch.tensor([[0.6, 0.8], [0.0, 0.0]]),
            "unused": torch.zeros(7),
        }
    )
    expected = [
        [3, 4, 35, -1.5, 0, 0, 1, 0.6, 0.8, 0.6, 0.8, 1.9],
        [0.5, 0.25, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0.5],
    ]
    assert model.width == 12
    torch.testing.assert_close(outputs, torch.tensor(expected))


def test_that_a_number_is_missing_is_not_looked_at_where_none_was_missing_in_training() -> None:
    """Its weights would be what they were drawn as."""
    known = FeatureInput(
        name="age", side="item", kind="numeric", dim=0, num_rows=0, width=2, has_missing=False
    )
    model = embedder(known, PRICE)
    outputs = model(
        {
            "age": torch.tensor([[0.5, 0.0], [0.0, 1.0]]),
            "price": torch.tensor([[-1.5, 0.0], [0.0, 1.0]]),
        }
    )
    assert (model.width_of(["age"]), model.width) == (1, 3)
    torch.testing.assert_close(outputs, torch.tensor([[0.5, -1.5, 0], [0, 0, 1]]))


def test_a_history_is_embedded_as_its_events_one_by_one() -> None:
    model = embedder(ID, TAGS, PRICE, IMAGE)
    state = torch.Generator().manual_seed(0)
    columns = {
        "item_id": torch.randint(3, (5, 4), generator=state),
        "genres": torch.randint(4, (5, 4, 3), generator=state),
        "price": torch.randn(5, 4, 2, generator=state),
        "image": torch.randn(5, 4, 2, generator=state),
    }
    outputs = model({f"history.{name}": column for name, column in columns.items()}, "history.")
    assert outputs.shape == (5, 4, model.width)
    for event in range(4):
        one = model({name: column[:, event] for name, column in columns.items()})
        torch.testing.assert_close(outputs[:, event], one)


def test_some_features_alone_in_declared_order() -> None:
    model = embedder(ID, TAGS, PRICE)
    columns = {
        "item_id": torch.tensor([1]),
        "genres": torch.tensor([[1, 2, 0]]),
        "price": torch.tensor([[5.0, 0.0]]),
    }
    whole = model(columns)
    assert model.width_of(("price", "item_id")) == 4
    torch.testing.assert_close(model(columns, names=("price", "item_id")), whole[:, [0, 1, 3, 4]])


def test_padding_and_order_of_tags_do_not_matter() -> None:
    model = embedder(TAGS)
    outputs = model({"genres": torch.tensor([[3, 1, 0], [1, 3, 0], [0, 1, 3]])})
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_the_padding_of_tags_is_not_trained_but_unknown_ids_are() -> None:
    model = embedder(ID, TAGS)
    outputs = model({"item_id": torch.tensor([0]), "genres": torch.tensor([[0, 2, 0]])})
    outputs.sum().backward()
    of_id, of_tags = (parameter.grad for parameter in model.parameters())
    assert of_id is not None
    assert of_tags is not None
    assert of_id.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert of_tags.tolist() == [[0], [0], [1], [0]]


@pytest.mark.parametrize("sparse", [True, False])
def test_tables_alone_have_sparse_gradients(sparse: bool) -> None:
    model = embedder(ID, TAGS, IMAGE, sparse=sparse)
    model(
        {
            "item_id": torch.tensor([1, 1]),
            "genres": torch.tensor([[1, 2, 0], [3, 0, 0]]),
            "image": torch.ones(2, 2),
        }
    ).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert [g is not None and g.is_sparse for g in gradients] == [sparse, sparse, False, False]


def test_a_feature_may_ask_for_its_width() -> None:
    model = embedder(
        feature("a", "categorical", num_rows=5, dim=7), feature("b", "vector", width=9, dim=4)
    )
    assert model.width == 11
    assert model({"a": torch.tensor([4]), "b": torch.ones(1, 9)}).shape == (1, 11)


def test_names_that_a_module_may_not_have() -> None:
    # Methods of torch.nn.Module and ModuleDict, and a dot, are fine names for columns.
    names = ["type", "keys", "image.small", "forward", ""]
    model = embedder(*(feature(name, "id", num_rows=2) for name in names))
    columns = {name: torch.tensor([1]) for name in names}
    copy = embedder(*(feature(name, "id", num_rows=2) for name in names))
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(columns), model(columns))
    assert model.width == 10


def test_fresh_rows_are_small() -> None:
    # Rows never trained must not look like strong opinions beside standardised numbers.
    table = next(embedder(feature("x", "id", num_rows=5000)).parameters())
    assert table.std().item() < 0.1
    assert table.abs().sum(dim=1).min() > 0


class TestIdDropout:
    CATEGORY = feature("category", "categorical", num_rows=3, dim=1)
    ID = feature("item_id", "id", num_rows=3, dim=1)
    PLACES = 40_000

    def embedded(self, probability: float) -> torch.Tensor:
        """Row of the table that was used for the id and for the category, (100, 400, 2)."""
        torch.manual_seed(5)
        model = embedder(self.ID, self.CATEGORY, id_dropout=probability)
        set_parameters(model, [[0], [1], [2], [0], [1], [2]])  # one table behind the other
        rows = torch.full((100, self.PLACES // 100), 2)
        embedded: torch.Tensor = model({"item_id": rows, "category": rows})
        return embedded

    def test_a_share_of_the_ids_becomes_row_0_and_nothing_else_does(self) -> None:
        ids, categories = self.embedded(0.25).unbind(dim=-1)
        assert set(ids.unique().tolist()) == {0, 2}
        assert set(categories.unique().tolist()) == {2}
        # A binomial of 40,000 draws has a deviation of 0.0022; of 400, one of 0.022.
        dropped = (ids == 0).double()
        assert dropped.mean().item() == pytest.approx(0.25, abs=0.01)
        for part in (dropped.mean(dim=0), dropped.mean(dim=1)):
            assert 0.1 < part.min() < part.max() < 0.45  # each place by itself

    def test_none_without_and_no_random_number_is_used(self) -> None:
        assert set(self.embedded(0.0).unique().tolist()) == {2}
        model = embedder(ID)
        before = torch.get_rng_state()
        model({"item_id": torch.tensor([1, 2])})
        assert torch.equal(torch.get_rng_state(), before)

    def test_row_0_is_trained_though_no_id_is_new(self) -> None:
        model = embedder(ID, id_dropout=0.5)
        for training, trained in ((True, [True, True, False]), (False, [False, True, False])):
            model.train(training)
            model.zero_grad()
            model({"item_id": torch.ones(64, dtype=torch.long)}).sum().backward()
            (table,) = model.parameters()
            assert table.grad is not None
            assert (table.grad.abs().sum(dim=1) > 0).tolist() == trained

    @pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
    def test_no_probability(self, probability: float) -> None:
        with pytest.raises(ValueError, match=f"at least 0 and below 1, got {probability}"):
            embedder(ID, id_dropout=probability)


def test_few_rows_of_a_width_have_a_dense_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.models.embedding.MIN_SPARSE_ROWS", 5)
    features = [
        feature("three", "id", num_rows=3),
        feature("and_two", "id", num_rows=2),
        feature("four", "id", num_rows=4, dim=3),
    ]
    model = embedder(*features, sparse=True)
    model({f.name: torch.tensor([1]) for f in features}).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert [g is not None and g.is_sparse for g in gradients] == [True, False]


def columns_of_sets(offsets: list[int]) -> dict[str, torch.Tensor]:
    """Members of sets, by the features of `embedder(ID, TAGS, PRICE, IMAGE)`."""
    state, num = torch.Generator().manual_seed(0), offsets[-1]
    return {
        "history.item_id": torch.randint(3, (num,), generator=state),
        "history.genres": torch.randint(4, (num, 3), generator=state),
        "history.price": torch.randn(num, 2, generator=state),
        "history.image": torch.randn(num, 2, generator=state),
    }


@pytest.mark.parametrize("sparse", [True, False])
def test_means_are_those_of_the_members_one_by_one(sparse: bool) -> None:
    """Values and gradients; the second and the last set are empty."""
    offsets = [0, 4, 4, 5, 11, 11]
    columns, names = columns_of_sets(offsets), ("item_id", "genres", "price", "image")
    model = embedder(ID, TAGS, PRICE, IMAGE, sparse=sparse)
    found = model.means(columns, "history.", names, torch.tensor(offsets))
    weights = torch.randn(5, model.width, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    gradients = [p.grad.to_dense().clone() for p in model.parameters() if p.grad is not None]
    assert all(p.grad is not None and p.grad.is_sparse == sparse for p in model.tables.parameters())
    model.zero_grad()
    members = model(columns, "history.")
    by_hand = torch.stack(
        [
            members[low:high].mean(dim=0) if high > low else torch.zeros(model.width)
            for low, high in pairwise(offsets)
        ]
    )
    torch.testing.assert_close(found, by_hand)
    (by_hand * weights).sum().backward()
    expected = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert len(expected) == len(gradients) == 4
    for gradient, one in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, one)


def test_neighbours_of_a_width_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one by one, with features of other kinds and widths between them."""
    looked_up = []
    lookup = TableGroup.lookup

    def counted(group: TableGroup, first: int, rows: torch.Tensor) -> torch.Tensor:
        looked_up.append((group.dim, first, rows.shape[-1]))
        return lookup(group, first, rows)

    monkeypatch.setattr(TableGroup, "lookup", counted)
    features = [feature(name, "categorical", num_rows=4) for name in "abcd"]
    features[2:2] = [PRICE, feature("wide", "id", num_rows=4, dim=5)]
    model = embedder(*features)
    columns = {name: torch.tensor([1, 3]) for name in ("a", "b", "c", "d", "wide")}
    columns["price"] = torch.zeros(2, 2)
    whole = model(columns)
    assert looked_up == [(2, 0, 2), (5, 0, 1), (2, 2, 2)]
    one_by_one = [model(columns, names=[f.name]) for f in features]
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), whole)
    looked_up.clear()
    model(columns, names=["a", "c", "d"])
    assert looked_up == [(2, 0, 1), (2, 2, 2)]
