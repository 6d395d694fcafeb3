"""`twotower recommend`: a bundle and a user, an item or a vector in, a table of items out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.serving.requests import Recommendation


def recommend(cfg: DictConfig) -> list[Recommendation]:
    """Recommend items to one user, or those like an item or a vector, and print them.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When it asks for several of these at once, or for what the bundle does not know.
    """
    from rich.console import Console

    from twotower.cli.filters import shortage, to_filters
    from twotower.cli.tables import items_table
    from twotower.export.bundle import open_bundle
    from twotower.serving.recommender import Recommender
    from twotower.serving.similar import read_vector, similar_to_item, similar_to_vector

    _check_question(cfg)
    filters = to_filters(cfg.filters)
    bundle = open_bundle(Path(cfg.bundle))
    recommender = Recommender(bundle)
    if cfg.similar_to is not None:
        items, what = (
            similar_to_item(recommender, cfg.similar_to, k=cfg.k, filters=filters),
            f"like {cfg.similar_to}",
        )
    elif cfg.similar_to_vector is not None:
        vector = read_vector(Path(cfg.similar_to_vector))
        items = similar_to_vector(
            recommender, vector, k=cfg.k, feature=cfg.vector_feature, filters=filters
        )
        what = f"like {Path(cfg.similar_to_vector).name}"
    else:
        items = recommender.recommend(
            user=cfg.user, history=list(cfg.history), k=cfg.k, filters=filters
        )
        what = "for somebody new" if cfg.user is None else f"for user {cfg.user}"
    if not cfg.quiet:
        title = f"Top {len(items)} {what} (bundle {bundle.manifest.name})"
        console = Console()
        console.print(items_table(title, items))
        if missing := shortage(cfg.k, len(items), filtered=bool(filters)):
            console.print(missing)
    return items


def _check_question(cfg: DictConfig) -> None:
    """Refuse a question that is several at once."""
    whole = {
        "user or history": cfg.user is not None or len(cfg.history) > 0,
        "similar_to": cfg.similar_to is not None,
        "similar_to_vector": cfg.similar_to_vector is not None,
    }
    given = [name for name, is_given in whole.items() if is_given]
    if len(given) > 1:
        raise ValueError(f"give one of {', '.join(whole)}; got {' and '.join(given)}")
    if cfg.vector_feature is not None and cfg.similar_to_vector is None:
        raise ValueError("vector_feature says what similar_to_vector is, and that was not given")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("recommend", recommend, argv)
