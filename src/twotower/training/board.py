"""What TensorBoard shows of a stage beside the curves: plots, item vectors, the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from twotower.data.schema import ITEM_ID, TITLE
from twotower.metrics.calibration import ReliabilityTable
from twotower.training.run_folder import TENSORBOARD

PROJECTOR_ITEMS = 5_000
MAX_COLOURS = 50  # the projector offers no column with more values for its colours


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

    def hparams(self, settings: Mapping[str, float | str], figures: Mapping[str, float]) -> None:
        """Show settings of a trial and its figures in the table and the plots of HPARAMS.

        Args:
            settings: By key; the same keys in all trials that are compared.
            figures: What came out, by name; below ``trial/``, apart from the curves.
        """
        tagged = {f"trial/{name}": value for name, value in figures.items()}
        file: Any = self._writer.file_writer
        for summary in hparams(dict(settings), tagged):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        for tag, value in tagged.items():
            self._writer.add_scalar(tag, value)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show test figures as one table: as scalars they would bury the curves under dots."""
        lines = ["| figure | value | 95 % interval |", "| :-- | --: | --: |"]
        for name, value in values.items():
            if not name.endswith(("/low", "/high")):
                low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
                interval = "" if low is None or high is None else f"{low:.4f} .. {high:.4f}"
                lines.append(f"| {name} | {value:.4f} | {interval} |")
        self._writer.add_text(f"{self._stage}/test/figures", "\n".join(lines))

    def recall_by_popularity(self, deciles: npt.NDArray[Any], k: int) -> None:
        """Show the recall@k of test positives by popularity decile of the item."""
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(1, len(deciles) + 1)
        axes.bar(places, np.nan_to_num(deciles), color="#3b6ea5")
        axes.set(
            xlabel="popularity decile of the item (1 = least popular)",
            ylabel=f"share of test positives in the top {k}",
            title=f"Recall@{k} by popularity",
            xticks=places,
            ylim=(0, 1),
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
        """Show item vectors in the projector, the most popular ones, with titles and categories.

        Args:
            vectors: (C, D) item vectors.
            ids: External ids of all items.
            table: Rows of the items table.
            counts: (C,) training events.
        """
        shown = torch.argsort(counts, descending=True, stable=True)[:PROJECTOR_ITEMS].cpu()
        rows = table.take(pa.array(shown.numpy()))
        ids = ids.take(pa.array(shown.numpy()))
        columns = {TITLE: rows.column(TITLE) if TITLE in rows.column_names else ids}
        columns |= {ITEM_ID: ids, "events": pa.array(counts.cpu()[shown].numpy())}
        columns |= {n: rows.column(n) for n in rows.column_names if _is_category(rows.column(n))}
        self._writer.add_embedding(
            vectors.cpu()[shown],
            metadata=[
                [" ".join(str(value).split()) for value in row]
                for row in zip(*(column.to_pylist() for column in columns.values()), strict=True)
            ],
            metadata_header=list(columns),
            tag="items",
        )

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()


def _is_category(column: pa.ChunkedArray) -> bool:
    """Whether the projector can colour items by a column."""
    if not pa.types.is_string(column.type):
        return False
    return bool(1 < pc.count_distinct(column).as_py() <= MAX_COLOURS)
