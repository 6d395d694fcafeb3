"""The columns that the model of a stage looks at, out of a prepared data set."""

from __future__ import annotations

import torch

from twotower.data.batches import ColumnNames, Columns, Residency
from twotower.data.prepared import Prepared
from twotower.features.spec import ModelInputs


def stage_columns(
    prepared: Prepared,
    inputs: ModelInputs,
    device: torch.device | None = None,
    residency: Residency = "device",
) -> Columns:
    """Tensors of the features of a stage.

    Args:
        prepared: The data set.
        inputs: What the stage's model is given.
        device: Where batches are wanted; the CPU by default.
        residency: Where the columns live; see `twotower.data.batches.Columns`.
    """
    names = ColumnNames(
        user=[f.name for f in inputs.of("user")],
        item=[f.name for f in inputs.of("item")],
        context=[f.name for f in inputs.of("context")],
        history=inputs.history_features,
        history_length=inputs.history_length,
        history_times=inputs.history_times,
    )
    return Columns(prepared, names, device or torch.device("cpu"), residency)
