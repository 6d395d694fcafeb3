"""What TensorBoard shows of a stage beside the curves: plots, item vectors, the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from twotower.data.schema import TITLE
from twotower.metrics.calibration import ReliabilityTable
from twotower.training.fit import TENSORBOARD

PROJECTOR_ITEMS = 5_000


class Board:
    """Writes into the TensorBoard folder of a run.

    Args:
        folder: The run folder.
        stage: ``retrieval`` or ``ranking``.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._stage = stage
        self._writer = SummaryWriter(str(folder / TENSORBOARD / stage))

    def config(self, text: str) -> None:
        """Show the resolved config as text."""
        lines = "\n".join("    " + line for line in text.splitlines())
        self._writer.add_text("config", lines)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show test figures as scalars."""
        for name, value in values.items():
            if not name.endswith(("/low", "/high")):
                self._writer.add_scalar(name, value)

    def recall_by_popularity(self, deciles: npt.NDArray[Any]) -> None:
        """Show the recall of test positives by popularity decile of the item."""
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.bar(np.arange(1, len(deciles) + 1), np.nan_to_num(deciles), color="#3b6ea5")
        axes.set(
            xlabel="popularity decile of the item (1 = least popular)",
            ylabel="recall of test positives",
            title="Recall by popularity",
        )
        self._writer.add_figure(f"{self._stage}/test/recall_by_popularity", figure)

    def reliability(self, table: ReliabilityTable) -> None:
        """Show predicted against observed rates."""
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        top = float(max(table.predicted.max(), table.observed.max())) * 1.05
        axes.plot([0, top], [0, top], color="#999999", linestyle="--", label="perfect")
        axes.plot(table.predicted, table.observed, "o-", color="#3b6ea5", label="ranker")
        axes.set(
            xlabel="predicted probability", ylabel="observed rate", title="Reliability on test"
        )
        axes.legend()
        self._writer.add_figure(f"{self._stage}/test/reliability", figure)

    def items(self, vectors: Tensor, ids: pa.Array, table: pa.Table, counts: Tensor) -> None:
        """Show item vectors in the projector, the most popular ones, with their titles.

        Args:
            vectors: (C, D) item vectors.
            ids: External ids of all items.
            table: Rows of the items table.
            counts: (C,) training events.
        """
        shown = torch.argsort(counts, descending=True, stable=True)[:PROJECTOR_ITEMS].cpu()
        rows = pa.array(shown.numpy())
        titles = table.column(TITLE) if TITLE in table.column_names else ids
        labels = [str(title).replace("\t", " ") for title in titles.take(rows).to_pylist()]
        self._writer.add_embedding(
            vectors.cpu()[shown],
            metadata=[
                [label, str(item), int(count)]
                for label, item, count in zip(
                    labels, ids.take(rows).to_pylist(), counts[shown].tolist(), strict=True
                )
            ],
            metadata_header=["title", "item_id", "events"],
            tag="items",
        )

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()
