"""`twotower embed`: an encoder and a table of items in, the table with a column of vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.serving.embed import Embedded


def embed(cfg: DictConfig) -> Embedded:
    """Compute content vectors of items and write them.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When the model, the table or the two together cannot be used.
    """
    from rich.console import Console

    from twotower.config import build
    from twotower.serving.embed import embed_items, read_items, write_vectors
    from twotower.serving.encoder import Encoder

    path = Path(cfg.output)
    if path.suffix != ".parquet" or path.is_dir():
        raise ValueError(f"output: must be a file called <name>.parquet, got {cfg.output}")
    inputs, encoder = build(cfg.encoder_input), Encoder(Path(cfg.model), output=cfg.tensor)
    items = read_items(cfg["items"], item_id=cfg.item_id, vector=cfg.vector)
    vectors = embed_items(
        *(items, encoder, inputs),
        item_id=cfg.item_id,
        batch_size=cfg.batch_size,
        progress=not cfg.quiet,
    )
    embedded = write_vectors(items, vectors, vector=cfg.vector, path=path)
    if not cfg.quiet:
        Console().print(
            f"written: {path}\n{embedded.num_items} items, vectors of width {embedded.width} in "
            f"column {cfg.vector}, {embedded.num_missing} without one\n"
            f"next:    twotower train data=tables data.items={path} data.interactions=<log>",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return embedded


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("embed", embed, argv)
