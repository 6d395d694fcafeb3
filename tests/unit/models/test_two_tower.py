"""The towers: what they look at, what they share, and that they export."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.models.history import MeanPooling, RecentAndMean
from twotower.models.two_tower import Cosine, Dot, TwoTower

LENGTH = 4
FEATURES = (
    FeatureInput(name="user_id", side="user", kind="id", dim=0, num_rows=9, width=0),
    FeatureInput(name="age", side="user", kind="numeric", dim=0, num_rows=0, width=2),
    FeatureInput(name="when", side="context", kind="time", dim=0, num_rows=0, width=4),
    FeatureInput(name="item_id", side="item", kind="id", dim=0, num_rows=11, width=0),
    FeatureInput(name="genres", side="item", kind="tags", dim=0, num_rows=5, width=3),
    FeatureInput(name="image", side="item", kind="vector", dim=0, num_rows=0, width=6),
)
INPUTS = ModelInputs(
    features=FEATURES, history_length=LENGTH, history_features=("item_id", "genres")
)


def batch(num_rows: int, seed: int = 0, inputs: ModelInputs = INPUTS) -> dict[str, Tensor]:
    state = torch.Generator().manual_seed(seed)

    def column(feature: FeatureInput, *leading: int) -> Tensor:
        shape = (*leading, feature.width) if feature.width else leading
        if feature.num_rows:
            return torch.randint(feature.num_rows, shape, generator=state)
        return torch.randn(shape, generator=state)

    columns = {f.name: column(f, num_rows) for f in inputs.features}
    if inputs.history_length:
        length = inputs.history_length
        columns |= {f"history.{f.name}": column(f, num_rows, length) for f in inputs.history()}
        first = torch.randint(length + 1, (num_rows, 1), generator=state)
        columns["history.mask"] = torch.arange(length) >= first
    return columns


def towers(
    inputs: ModelInputs = INPUTS, *, dropout: float = 0.0, id_dropout: float = 0.0
) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(
        inputs=inputs,
        dim=7,
        embedding_dim=4,
        hidden=[16],
        history=partial(RecentAndMean, num_recent=2),
        similarity=Cosine(),
        dropout=dropout,
        id_dropout=id_dropout,
    )


def test_shapes_and_unit_length() -> None:
    model, columns = towers(), batch(5)
    for vectors in (model.embed_queries(columns), model.embed_items(columns)):
        assert vectors.shape == (5, 7)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert model.metric == "cosine"


def test_cosine_and_dot_by_hand() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]])
    torch.testing.assert_close(
        Cosine()(vectors), torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]])
    )
    assert torch.equal(Dot()(vectors), vectors)
    assert (Cosine.metric, Dot.metric) == ("cosine", "dot")


def test_the_model_names_the_metric_of_its_similarity() -> None:
    model = TwoTower(
        inputs=INPUTS,
        dim=3,
        embedding_dim=4,
        hidden=[],
        history=MeanPooling,
        similarity=Dot(),
    )
    assert model.metric == "dot"
    assert (model.embed_items(batch(50)).norm(dim=1) - 1).abs().min() > 1e-4


def changed(columns: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    column = columns[name]
    other = (column + 1) % 3 if column.dtype == torch.int64 else column + 1
    return columns | {name: other}


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("user_id", "queries"),
        ("age", "queries"),
        ("when", "queries"),
        ("history.item_id", "queries"),
        ("history.genres", "queries"),
        ("item_id", "items"),
        ("genres", "items"),
        ("image", "items"),
    ],
)
def test_every_column_moves_its_own_tower_alone(name: str, moves: str) -> None:
    model, columns = towers(), batch(6)
    columns["history.mask"][:] = True
    other = changed(columns, name)
    queries_move = not torch.equal(model.embed_queries(columns), model.embed_queries(other))
    items_move = not torch.equal(model.embed_items(columns), model.embed_items(other))
    assert (queries_move, items_move) == (moves == "queries", moves == "items")


def rows_with_a_gradient(model: TwoTower, embedder: str, feature: str) -> list[int]:
    group = getattr(model, embedder)._group_of[feature]
    table = group.rows.weight
    gradient = table.grad.to_dense()[group._slices[feature]].abs().sum(dim=1)
    table.grad = None
    return gradient.nonzero().flatten().tolist()


def test_the_history_trains_the_tables_of_the_items() -> None:
    model, columns = towers(), batch(6)
    model.embed_queries(columns).square()[:, 0].sum().backward()
    seen = columns["history.item_id"][columns["history.mask"]].unique()
    assert rows_with_a_gradient(model, "item_embedder", "item_id") == seen.tolist()


@pytest.mark.parametrize("sparse", [False, True])
def test_every_parameter_gets_a_gradient(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.models.embedding.MIN_SPARSE_ROWS", 0 if sparse else 100)
    model, columns = towers(), batch(64)
    (model.embed_queries(columns) * model.embed_items(columns)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.is_sparse == (sparse and "embedder" in name and "image" not in name)
        dense = parameter.grad.to_dense()
        assert dense.isfinite().all(), name
        assert dense.abs().sum() > 0, name


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, columns = towers(), batch(6)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = {name: column[order] for name, column in columns.items()}
    alone = {name: column[2:3] for name, column in columns.items()}
    for embed in (model.embed_queries, model.embed_items):
        torch.testing.assert_close(embed(shuffled), embed(columns)[order])
        torch.testing.assert_close(embed(alone), embed(columns)[2:3])


def test_an_empty_history_is_the_same_whatever_stands_in_its_padding() -> None:
    model, columns = towers(), batch(5)
    columns["history.mask"][:] = False
    other = changed(changed(columns, "history.item_id"), "history.genres")
    assert torch.equal(model.embed_queries(columns), model.embed_queries(other))


@pytest.mark.parametrize(
    ("kept", "length", "history_features"),
    [
        (("item_id",), LENGTH, ("item_id",)),  # history alone
        (("when", "item_id"), 0, ("item_id",)),  # a history of no events
        (("user_id", "item_id"), LENGTH, ()),  # a history without features
        (("user_id", "age", "when", "item_id", "image"), LENGTH, ("image",)),
    ],
)
def test_parts_may_be_missing(
    kept: tuple[str, ...], length: int, history_features: tuple[str, ...]
) -> None:
    inputs = ModelInputs(
        features=tuple(f for f in FEATURES if f.name in kept),
        history_length=length,
        history_features=history_features,
    )
    model, columns = towers(inputs), batch(3, inputs=inputs)
    assert model.embed_queries(columns).shape == model.embed_items(columns).shape == (3, 7)
    if not (length and history_features):
        columns.pop("history.mask", None)
        assert model.embed_queries(columns).shape == (3, 7)


def test_dropout_in_training_alone() -> None:
    model, columns = towers(dropout=0.5), batch(5)
    assert not torch.equal(model.embed_queries(columns), model.embed_queries(columns))
    model.eval()
    assert torch.equal(model.embed_queries(columns), model.embed_queries(columns))


def test_without_a_width_the_towers_end_with_their_features() -> None:
    """A query is the mean of the items of its history, by the same table (FISM, SASRec)."""
    item = FeatureInput(name="item_id", side="item", kind="id", dim=0, num_rows=3, width=0)
    model = TwoTower(
        inputs=ModelInputs(features=(item,), history_length=2, history_features=("item_id",)),
        dim=None,
        embedding_dim=2,
        hidden=[],
        history=MeanPooling,
        similarity=Dot(),
    )
    with torch.no_grad():
        next(model.parameters()).copy_(torch.tensor([[0.0, 0.0], [1.0, 3.0], [5.0, 7.0]]))
    columns = {
        "item_id": torch.tensor([2]),
        "history.item_id": torch.tensor([[1, 2]]),
        "history.mask": torch.ones(1, 2, dtype=torch.bool),
    }
    assert len(list(model.parameters())) == 1
    assert model.embed_items(columns).tolist() == [[5.0, 7.0]]
    assert model.embed_queries(columns).tolist() == [[3.0, 5.0]]


def test_without_a_width_unequal_towers_are_refused() -> None:
    with pytest.raises(ValueError, match="of the query are 34 wide, those of the item 12; give"):
        TwoTower(
            inputs=INPUTS,
            dim=None,
            embedding_dim=4,
            hidden=[],
            history=partial(RecentAndMean, num_recent=2),
            similarity=Dot(),
        )


def test_ids_of_items_alone_are_dropped_as_targets_and_in_histories() -> None:
    model, columns = towers(id_dropout=0.5), batch(200)
    columns["history.mask"][:] = True
    for name in ("user_id", "item_id", "history.item_id"):
        columns[name].clamp_(min=1)  # nobody is new
    model.embed_items(columns).square()[:, 0].sum().backward()
    assert rows_with_a_gradient(model, "item_embedder", "item_id") == list(range(11))
    model.embed_queries(columns).square()[:, 0].sum().backward()
    assert rows_with_a_gradient(model, "item_embedder", "item_id") == list(range(11))
    assert rows_with_a_gradient(model, "query_embedder", "user_id") == list(range(1, 9))


def test_no_id_is_dropped_in_evaluation() -> None:
    model, columns = towers(id_dropout=0.9).eval(), batch(40)
    without = towers().eval()
    without.load_state_dict(model.state_dict())
    assert torch.equal(model.embed_items(columns), without.embed_items(columns))
    assert torch.equal(model.embed_queries(columns), without.embed_queries(columns))


def test_towers_without_inputs_are_refused_together() -> None:
    inputs = ModelInputs(features=(), history_length=LENGTH, history_features=())
    with pytest.raises(ValueError, match=r"query tower has no user(.|\n)*item tower has no item"):
        towers(inputs)
    inputs = ModelInputs(features=FEATURES[:1], history_length=0, history_features=())
    with pytest.raises(ValueError, match=r"no item feature; features given: user_id \(user\)"):
        towers(inputs)


class Queries(nn.Module):
    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.embed_queries(batch)


def test_the_query_tower_exports_for_any_batch_size(tmp_path: Path) -> None:
    tower = Queries(towers(id_dropout=0.5)).eval()

    def columns(num_rows: int) -> dict[str, Tensor]:
        kept = ("user_id", "age", "when")
        whole = batch(num_rows, seed=num_rows)
        return {n: c for n, c in whole.items() if n in kept or n.startswith("history.")}

    example = columns(3)
    size = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        tower,
        (),
        kwargs={"batch": example},
        dynamo=True,
        dynamic_shapes={"batch": {name: {0: size} for name in example}},
        input_names=list(example),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx")
    for num_rows in (1, 7):
        given = columns(num_rows)
        (exported,) = session.run(None, {name: c.numpy() for name, c in given.items()})
        np.testing.assert_allclose(exported, tower(given).detach().numpy(), atol=1e-5, rtol=0)
