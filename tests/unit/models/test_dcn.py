"""The ranker: structures by hand, batches of one, gradients, export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.models.cross import CrossNetwork, full_rank, low_rank, mixture
from twotower.models.dcn import Body, DCNv2, Parallel, Stacked
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP

LENGTH = 3
FEATURES = (
    FeatureInput(name="user_id", side="user", kind="id", dim=0, num_rows=9, width=0),
    FeatureInput(name="device", side="context", kind="categorical", dim=0, num_rows=4, width=0),
    FeatureInput(name="when", side="context", kind="time", dim=0, num_rows=0, width=4),
    FeatureInput(name="item_id", side="item", kind="id", dim=0, num_rows=11, width=0),
    FeatureInput(name="genres", side="item", kind="tags", dim=0, num_rows=5, width=2),
    FeatureInput(name="price", side="item", kind="numeric", dim=0, num_rows=0, width=2),
)
INPUTS = ModelInputs(features=FEATURES, history_length=LENGTH, history_features=("item_id",))
# A flat click table: no users, no items, every column is context.
FLAT = ModelInputs(features=FEATURES[1:3], history_length=0, history_features=())

CROSSES: dict[str, Callable[[int], CrossNetwork]] = {
    "full": partial(full_rank, num_layers=2),
    "low": partial(low_rank, num_layers=2, rank=3),
    "mixture": partial(mixture, num_layers=2, rank=3, num_experts=2),
}
STRUCTURES: dict[str, Callable[..., Body]] = {"stacked": Stacked, "parallel": Parallel}


def batch(num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    state = torch.Generator().manual_seed(seed)

    def rows(limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=state)

    return {
        "user_id": rows(9, num_rows),
        "device": rows(4, num_rows),
        "when": torch.randn(num_rows, 4, generator=state),
        "item_id": rows(11, num_rows),
        "genres": rows(5, num_rows, 2),
        "price": torch.randn(num_rows, 2, generator=state),
        "history.item_id": rows(11, num_rows, LENGTH),
        "history.mask": torch.arange(LENGTH) >= rows(LENGTH + 1, num_rows, 1),
        "retrieval_score": torch.randn(num_rows, generator=state),
        "retrieval_rank": rows(200, num_rows) + 1.0,
    }


def ranker(
    inputs: ModelInputs = INPUTS,
    *,
    structure: str = "stacked",
    cross: str = "full",
    retrieval_score: bool = True,
    retrieval_rank: bool = False,
) -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(
        inputs=inputs,
        embedding_dim=4,
        structure=STRUCTURES[structure],
        cross=CROSSES[cross],
        deep=partial(MLP, hidden=[16, 8]),
        history=MeanPooling,
        retrieval_score=retrieval_score,
        retrieval_rank=retrieval_rank,
    )


def bodies() -> tuple[CrossNetwork, MLP, Tensor]:
    torch.manual_seed(0)
    return full_rank(5, num_layers=2), MLP(input_width=5, hidden=[3]), torch.randn(4, 5)


def test_stacked_is_the_perceptron_of_the_crosses() -> None:
    cross, deep, x0 = bodies()
    body = Stacked(input_width=5, num_tasks=2, cross=cross, deep=deep)
    assert torch.equal(body(x0), body.heads(deep(cross(x0))))
    assert body(x0).shape == (4, 2)


def test_parallel_is_both_side_by_side() -> None:
    cross, deep, x0 = bodies()
    body = Parallel(input_width=5, num_tasks=2, cross=cross, deep=deep)
    assert torch.equal(body(x0), body.heads(torch.cat([cross(x0), deep(x0)], dim=1)))
    assert body(x0).shape == (4, 2)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("cross", CROSSES)
def test_a_batch_of_one_is_a_row_of_a_batch(structure: str, cross: str) -> None:
    model, columns = ranker(structure=structure, cross=cross), batch(6)
    logits = model(columns)
    assert logits.shape == (6,)
    for row in range(6):
        alone = model({name: column[row : row + 1] for name, column in columns.items()})
        assert alone.shape == (1,)
        torch.testing.assert_close(alone[0], logits[row])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("cross", CROSSES)
def test_every_parameter_gets_a_gradient(structure: str, cross: str) -> None:
    model = ranker(structure=structure, cross=cross)
    model(batch(64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.is_sparse == ("embedder" in name), name
        dense = parameter.grad.to_dense()
        assert dense.isfinite().all(), name
        assert dense.abs().sum() > 0, name


@pytest.mark.parametrize(
    "name", [f.name for f in FEATURES] + ["history.item_id", "retrieval_score"]
)
def test_every_column_moves_the_logit(name: str) -> None:
    model, columns = ranker(), batch(6)
    columns["history.mask"][:] = True
    column = columns[name]
    other = (column + 1) % 4 if column.dtype == torch.int64 else column + 1
    assert not torch.equal(model(columns), model(columns | {name: other}))


def test_the_history_shares_the_tables_of_the_candidates() -> None:
    model = ranker()
    tables = [name for name, _ in model.named_parameters() if "tables" in name]
    assert tables == ["query_embedder.tables.4.rows.weight", "item_embedder.tables.4.rows.weight"]
    # user 4, context 4 + 4, item 4 + 4 + 2, history 4, score 1
    assert model.width == 27


def test_the_score_enters_as_it_is_before_training() -> None:
    model, columns = ranker(), batch(4)
    assert model.score_scale is not None
    score = columns["retrieval_score"].unsqueeze(-1)
    assert torch.equal(model.score_scale(score), score)


def test_the_rank_enters_as_its_logarithm() -> None:
    """Ranks 1 and 100 become 0 and -0.2 ln 100 in the last place of x_0."""
    model, columns = ranker(retrieval_rank=True), batch(2)
    columns["retrieval_rank"] = torch.tensor([1.0, 100.0])
    assert model.width == 28
    torch.testing.assert_close(model._features(columns)[:, -1], torch.tensor([0.0, -0.9210340]))
    assert not torch.equal(model(columns), model(columns | {"retrieval_rank": torch.ones(2) * 7}))


def test_without_a_score_the_column_is_not_asked_for() -> None:
    model, columns = ranker(retrieval_score=False), batch(4)
    del columns["retrieval_score"]
    assert model(columns).shape == (4,)
    assert model.width == 26


def test_a_flat_click_table() -> None:
    model = ranker(FLAT, retrieval_score=False)
    columns = {name: batch(5)[name] for name in ("device", "when")}
    assert model(columns).shape == (5,)
    assert model.width == 8


def test_the_history_may_be_left_out() -> None:
    inputs = ModelInputs(features=FEATURES, history_length=0, history_features=("item_id",))
    columns = {n: c for n, c in batch(5).items() if not n.startswith("history.")}
    assert ranker(inputs)(columns).shape == (5,)


def test_a_model_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match="the ranker has no feature; at least one is needed"):
        ranker(ModelInputs(features=(), history_length=LENGTH, history_features=("item_id",)))


def test_the_ranker_exports_for_any_batch_size(tmp_path: Path) -> None:
    model = ranker(structure="parallel", cross="mixture").eval()
    example = batch(3)
    size = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        model,
        (),
        kwargs={"batch": example},
        dynamo=True,
        dynamic_shapes={"batch": {name: {0: size} for name in example}},
        input_names=list(example),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "ranker.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ranker.onnx")
    for num_rows in (1, 7):
        given = batch(num_rows, seed=num_rows)
        (exported,) = session.run(None, {name: c.numpy() for name, c in given.items()})
        assert exported.shape == (num_rows,)
        np.testing.assert_allclose(exported, model(given).detach().numpy(), atol=1e-5, rtol=0)
