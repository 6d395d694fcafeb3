"""The catalogue in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twotower.export import item_vectors as module
from twotower.export.build import ExportParts
from twotower.export.item_vectors import item_vectors
from twotower.models.columns import stage_columns


def test_blocks_do_not_show(parts: ExportParts, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parts.two_tower
    assert model is not None
    model.eval()
    columns = stage_columns(parts.prepared, parts.pipeline.inputs("retrieval"))
    monkeypatch.setattr(module, "BLOCK", 7)
    found = item_vectors(model, columns, 23)
    assert (found.shape, found.dtype) == ((23, 8), np.float32)
    for row in (0, 6, 7, 22):
        with torch.no_grad():
            alone = model.embed_items(columns.items(torch.tensor([row])))[0]
        np.testing.assert_allclose(found[row], alone.numpy(), atol=1e-6)


def test_an_empty_catalogue_is_refused(parts: ExportParts) -> None:
    assert parts.two_tower is not None
    columns = stage_columns(parts.prepared, parts.pipeline.inputs("retrieval"))
    with pytest.raises(ValueError, match="the catalogue is empty"):
        item_vectors(parts.two_tower, columns, 0)
