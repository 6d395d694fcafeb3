"""A further version of a bundle that can be told from the first by every title it gives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from twotower.data.prepared import read_arrow, write_arrow
from twotower.data.schema import TITLE
from twotower.export.manifest import ITEMS, TABLE, read_manifest
from twotower.export.writer import bundle_writer


def copy_home(bundle: Path, root: Path) -> Path:
    """The folder of a bundle with all its versions, below another folder."""
    return Path(shutil.copytree(bundle, root / bundle.name, symlinks=True))


def further_version(home: Path, prefix: str) -> Path:
    """Write what ``current`` is, with other titles; it is not published.

    Args:
        home: Folder of all versions.
        prefix: What every title begins with.
    """
    current = home / "current"
    manifest = read_manifest(current)
    with bundle_writer(home.parent, home.name) as writer:
        for path in current.resolve().iterdir():
            target = writer.folder / path.name
            if path.is_dir():
                shutil.copytree(path, target)
            elif path.name != "manifest.json":
                shutil.copy(path, target)
        items = writer.folder / ITEMS / TABLE
        table = read_arrow(items)
        titles = pa.array([prefix + title for title in table.column(TITLE).to_pylist()])
        place = table.column_names.index(TITLE)
        write_arrow(items.with_suffix(".new"), table.set_column(place, TITLE, titles))
        items.with_suffix(".new").replace(items)
        created = writer.created.isoformat()
        return writer.finish(replace(manifest, version=writer.version, created=created))
