"""Where rows of new values start."""

import numpy as np
import pytest
import torch

from twotower.features.spec import FeatureInput
from twotower.models.embedding import FeatureEmbedder
from twotower.models.new_rows import start_new_rows


def feature(name, kind, num_rows=0, width=0):
    return FeatureInput(name=name, side="item", kind=kind, dim=3, num_rows=num_rows, width=width)


def known(num_rows, num_known):
    return torch.arange(num_rows) < num_known


@pytest.fixture
def embedder():
    torch.manual_seed(0)
    return FeatureEmbedder(
        features=[
            feature("item_id", "id", num_rows=31),
            feature("category", "categorical", num_rows=4),
            feature("image", "vector", width=5),
        ],
        default_dim=3,
        vector_dim=3,
        sparse=False,
    ).eval()


@pytest.fixture
def columns():
    generator = torch.Generator().manual_seed(1)
    return {
        "item_id": torch.cat([torch.arange(1, 31), torch.zeros(4, dtype=torch.int64)]).int(),
        "category": torch.randint(0, 4, (34,), generator=generator).int(),
        "image": torch.randn(34, 5, generator=generator),
    }


def content(embedder, columns):
    with torch.no_grad():
        return embedder(
            {n: c if n == "image" else c.long() for n, c in columns.items()},
            names=["category", "image"],
        )


def test_a_new_id_starts_where_its_content_points(embedder, columns):
    """Known rows are a linear function of the content, so new ones must be the same function."""
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    rows = content(embedder, columns) @ weights + 0.5
    (table,) = embedder.learned()["item_id"]
    carried = known(31, 21)
    with torch.no_grad():
        table[1:21] = rows[:20]
    before = table[:21].clone()
    filled = start_new_rows(embedder, columns, {"item_id": carried, "category": known(4, 4)})
    assert filled == {"item_id": 10}
    assert torch.equal(table[:21], before)
    spread = rows[20:30].std()
    assert (table[21:] - rows[20:30]).abs().max() < 0.2 * spread


def test_it_is_ridge_regression(embedder, columns):
    (table,) = embedder.learned()["item_id"]
    carried = known(31, 16)
    design = content(embedder, columns).double().numpy()
    design = np.hstack([design, np.ones((34, 1))])
    wanted = table[1:16].detach().double().numpy()
    squares = design[:15].T @ design[:15]
    penalty = 0.01 * np.trace(squares) / len(squares)
    stacked = np.vstack([design[:15], np.sqrt(penalty) * np.eye(len(squares))])
    targets = np.vstack([wanted, np.zeros((len(squares), 3))])
    weights = np.linalg.lstsq(stacked, targets, rcond=None)[0]
    start_new_rows(embedder, columns, {"item_id": carried})
    np.testing.assert_allclose(table[16:].detach(), design[15:30] @ weights, atol=1e-5)


def test_other_values_and_ids_without_content_start_from_the_mean(embedder, columns):
    learned = embedder.learned()
    mean = learned["category"][0][1:3].detach().mean(dim=0)
    start_new_rows(embedder, columns, {"category": known(4, 3), "item_id": known(31, 31)})
    torch.testing.assert_close(learned["category"][0][3].detach(), mean)
    alone = {"item_id": columns["item_id"]}
    mean = learned["item_id"][0][1:11].detach().mean(dim=0)
    start_new_rows(embedder, alone, {"item_id": known(31, 11)})
    torch.testing.assert_close(
        learned["item_id"][0][11:].detach(), mean.expand(20, 3), atol=2e-3, rtol=0
    )


def test_where_nothing_is_known_rows_stay_as_they_are(embedder, columns):
    (table,) = embedder.learned()["item_id"]
    before = table.clone()
    start_new_rows(embedder, columns, {"item_id": known(31, 1)})
    assert torch.equal(table, before)
