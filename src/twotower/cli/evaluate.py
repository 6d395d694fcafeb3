"""`twotower evaluate`: two-stage metrics of a bundle with attribution -> ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> Mapping[str, float]:
    """Evaluate a bundle on the test part of its data set.

    Args:
        cfg: The composed and checked config.

    Returns:
        The figures of ``evaluation.json``.
    """
    from rich.console import Console

    from twotower.cli.evaluation_files import open_test_data, write_evaluation
    from twotower.cli.tables import figures_table
    from twotower.config import build
    from twotower.export.bundle import open_bundle
    from twotower.serving.evaluation import evaluate_bundle
    from twotower.serving.recommender import Recommender

    bundle = open_bundle(Path(cfg.bundle))
    prepared = open_test_data(bundle.manifest.prepared, cfg.prepared)
    evaluation = evaluate_bundle(
        Recommender(bundle), prepared, build(cfg.evaluation), progress=not cfg.quiet
    )
    folder = write_evaluation(Path(cfg.output_dir), bundle.manifest, evaluation)
    if not cfg.quiet:
        k = evaluation.k
        known = {n: v for n, v in bundle.manifest.figures.items() if v is not None}
        names = [
            *(f"two_stage/test/{m}@{k}" for m in ("ndcg", "hit_rate", "recall", "mrr")),
            *(f"two_stage/test/{m}@{k}_over_retrieval" for m in ("ndcg", "hit_rate")),
            *(f"retrieval_index/test/{m}@{k}" for m in ("ndcg", "hit_rate")),
            *(
                f"{b}/test/{m}@{k}"
                for b in ("item_knn", "popularity")
                for m in ("ndcg", "hit_rate")
            ),
            *(f"two_stage/test/{kind}_recall@{k}" for kind in ("cold", "warm")),
            *("ranking/test/auc", "ranking/test/log_loss", "ranking/test/calibration_error"),
            *(n for n in evaluation.metrics if n.startswith("index/")),
            *(f"two_stage/test/{name}@{k}" for name in evaluation.attribution.counts()),
        ]
        console = Console()
        console.print(figures_table("Test part", known | evaluation.metrics, names))
        console.print(f"written: {folder}", highlight=False, soft_wrap=True)
    return evaluation.metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("evaluate", evaluate, argv)
