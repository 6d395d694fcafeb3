"""Item vectors for TensorBoard's projector: who they are, what they look like, how they group.

=================  ==============================================================================
``tensors.tsv``    a line an item: its vector
``metadata.tsv``   a line an item below a heading: title, id, how popular, categories, lists
``sprite.png``     pictures of the items, in rows of the same length; only where there are any
=================  ==============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor

from twotower.data.schema import ITEM_ID, TITLE
from twotower.metrics.catalogue import popularity_deciles

FOLDER, CONFIG = "items", "projector_config.pbtxt"
VECTORS, METADATA, SPRITE = "tensors.tsv", "metadata.tsv", "sprite.png"
MAX_ITEMS = 5_000
MAX_COLOURS = 50  # the projector offers no column with more values for its colours
TILE = 48  # pixels of a picture; 71 x 71 of them stay below the 8,192 that a browser takes
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
BLANK = "#d0d0d0"


def write_projector(
    folder: Path, vectors: Tensor, ids: pa.Array, table: pa.Table, counts: Tensor
) -> None:
    """Write the vectors of the most popular items, with all that the projector can show of them.

    Args:
        folder: Where the events of the stage lie.
        vectors: (C, D) item vectors.
        ids: (C,) external ids of all items.
        table: Rows of the items table.
        counts: (C,) training events.
    """
    shown = torch.argsort(counts, descending=True, stable=True)[:MAX_ITEMS].cpu()
    places = pa.array(shown.numpy())
    rows = table.take(places)
    columns = {TITLE: rows.column(TITLE) if TITLE in rows.column_names else ids.take(places)}
    columns[ITEM_ID] = ids.take(places)
    columns["events"] = pa.array(counts.cpu()[shown].numpy())
    columns["popularity decile"] = pa.array(popularity_deciles(counts.cpu().numpy())[shown] + 1)
    for name in rows.column_names:
        columns |= _groups(name, rows.column(name))
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    lines = zip(*(column.to_pylist() for column in columns.values()), strict=True)
    text = "\n".join("\t".join(map(_one_line, line)) for line in [list(columns), *lines])
    (folder / FOLDER / METADATA).write_text(text + "\n", encoding="utf-8")
    np.savetxt(
        folder / FOLDER / VECTORS, vectors.detach().float().cpu()[shown], "%.6g", delimiter="\t"
    )
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=FOLDER)
    embedding.tensor_path, embedding.metadata_path = f"{FOLDER}/{VECTORS}", f"{FOLDER}/{METADATA}"
    paths = picture_paths(rows)
    if paths is not None:
        _sprite(paths).save(folder / FOLDER / SPRITE)
        embedding.sprite.image_path = f"{FOLDER}/{SPRITE}"
        embedding.sprite.single_image_dim.extend([TILE, TILE])
    (folder / CONFIG).write_text(str(config), encoding="utf-8")


def picture_paths(table: pa.Table) -> list[str | None] | None:
    """Paths of the items' pictures: the first column of nothing else, if any of them is there.

    Args:
        table: Rows of the items table; paths are relative to the working folder.

    Returns:
        A path an item, None where an item has none; None where no column holds pictures.
    """
    for name in table.column_names:
        column = table.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        values: list[str | None] = column.to_pylist()
        known = [value for value in values if value]
        if known and all(value.lower().endswith(PICTURES) for value in known):
            return values if any(Path(value).is_file() for value in known) else None
    return None


def _groups(name: str, column: pa.ChunkedArray) -> dict[str, pa.Array]:
    """What a column of the items table says about groups; lists as they are and by their first."""
    kind = column.type
    if pa.types.is_string(kind):
        return {name: column} if _has_colours(column) else {}
    if not pa.types.is_list(kind) or not pa.types.is_string(kind.value_type):
        return {}
    values = column.to_pylist()
    joined = pa.array([", ".join(filter(None, value or ())) for value in values])
    first = pa.array([next(filter(None, value or ()), "none") for value in values])
    return {name: joined} | ({f"first of {name}": first} if _has_colours(first) else {})


def _has_colours(column: pa.Array) -> bool:
    """Whether the projector can colour items by a column of texts."""
    return bool(1 < pc.count_distinct(column).as_py() <= MAX_COLOURS)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _sprite(paths: Sequence[str | None]) -> Image.Image:
    """All pictures in one, row by row in a square; a grey tile where there is none."""
    side = math.ceil(math.sqrt(len(paths)))
    sprite = Image.new("RGB", (side * TILE, side * TILE), BLANK)
    for place, path in enumerate(paths):
        tile = _tile(path)
        if tile is not None:
            sprite.paste(tile, (place % side * TILE, place // side * TILE))
    return sprite


def _tile(path: str | None) -> Image.Image | None:
    """A picture cut to its middle, or None where it cannot be read."""
    if not path:
        return None
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return ImageOps.fit(upright, (TILE, TILE))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
