"""What TensorBoard shows beside the curves: their layout, plots, item vectors, runs in a table."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from twotower.metrics.calibration import ReliabilityTable
from twotower.training.projector import write_projector
from twotower.training.run_folder import TENSORBOARD

FINAL = "final"


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

    def layout(self, names: Iterable[str]) -> None:
        """Lay out the curves of the stage, for the tab CUSTOM SCALARS: a chart a question.

        Args:
            names: Metrics of every epoch, such as ``recall@20``; those that differ by the length of
                the list alone share a chart.
        """
        families: dict[str, list[str]] = {}
        for name in names:
            family, _, k = name.partition("@")
            families.setdefault(family + " by length of the list" * bool(k), []).append(name)
        tags = {
            "loss in training": ["train/loss"],
            **{
                f"{title.replace('_', ' ')}, on validation": [
                    f"validation/{name}" for name in group
                ]
                for title, group in families.items()
            },
            "learning rates": ["train/learning_rate", "train/table_learning_rate"],
            "examples per second": ["train/examples_per_second"],
        }
        charts = {
            title: ["Multiline", [f"^{re.escape(f'{self._stage}/{tag}')}$" for tag in group]]
            for title, group in tags.items()
        }
        self._writer.add_custom_scalars({self._stage: charts})

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
        """Show the recall@k of test positives by popularity decile (10,) of the item."""
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
        """Show item vectors in the projector; see `twotower.training.projector`.

        Args:
            vectors: (C, D) item vectors.
            ids: (C,) external ids of all items.
            table: Rows of the items table.
            counts: (C,) training events.
        """
        write_projector(Path(self._writer.log_dir), vectors, ids, table, counts)

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()


def compare_runs(
    folder: Path, settings: Mapping[str, float | str], figures: Mapping[str, float]
) -> None:
    """Show a run as one line of the tab HPARAMS, in the place of what was shown of it before.

    Every run lists its own settings and figures, and none those of all: TensorBoard would take the
    list of whichever run it finds first for that of all of them.

    Args:
        folder: The run folder.
        settings: By key.
        figures: What came out, by name; below ``final/``, apart from the curves.
    """
    place = folder / TENSORBOARD / FINAL
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as writer:
        _, started, ended = hparams(dict(settings), {})  # type: ignore[no-untyped-call]
        file: Any = writer.file_writer
        file.add_summary(started)
        file.add_summary(ended)
        for name, value in figures.items():
            writer.add_scalar(f"{FINAL}/{name}", value)
