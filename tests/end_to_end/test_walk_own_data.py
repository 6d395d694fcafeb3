"""A walk of `docs/own_data.md`: two CSV files of a shop to an evaluated bundle, in three commands.

The files are the built-in world under the names that the page shows, so that there is a truth.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from tests.pages import Terminal, blocks, commands
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import open_bundle

PAGE, SECTION = "docs/own_data.md", "## A shop with its own names: three commands"
WORLD = SyntheticSource(
    num_users=400, num_items=150, num_days=30, slates_per_user=10, slate_size=8, seed=0
)


def write_shop(folder: Path) -> None:
    """The world as the two files, with the header lines that the page shows."""
    tables = WORLD.read()
    log, items = tables.interactions, tables.items
    shown = {block.splitlines()[0]: block.splitlines()[1] for block in blocks(PAGE, "text")}
    times = pc.strftime(log["timestamp"].cast(pa.timestamp("us")), format="%Y-%m-%dT%H:%M:%S")
    seconds = pc.utf8_slice_codeunits(times, 0, 19)
    clicks = log["label"].cast(pa.int8())
    write(
        folder / "impressions.csv",
        shown["impressions.csv"],
        (
            *(visitors(log["user_id"]), skus(log["item_id"]), seconds),
            *(log["position"], log["device"], clicks),
        ),
    )
    pictures = [f"[{', '.join(f'{x:.4f}' for x in v)}]" for v in items["image_vector"].to_pylist()]
    prices = [f"{price:.2f}" for price in items["price"].to_pylist()]
    tags = ["|".join(tags) for tags in items["tags"].to_pylist()]
    write(
        folder / "products.csv",
        shown["products.csv"],
        (skus(items["item_id"]), items["title"], items["category"], tags, prices, pictures),
    )


def visitors(ids: pa.ChunkedArray) -> list[str]:
    return [f"v-{one[1:]}" for one in ids.to_pylist()]


def skus(ids: pa.ChunkedArray) -> list[str]:
    return [f"LMP-{one[1:]}" for one in ids.to_pylist()]


def write(path: Path, header: str, columns: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = next(csv.reader([header]))
        assert len(names) == len(columns)
        writer.writerow(names)
        writer.writerows(zip(*map(plain, columns), strict=True))


def plain(column: Sequence[object]) -> list[object]:
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)


@dataclass(frozen=True)
class Walked:
    """Where the reader is at the end, and what was printed on the way."""

    folder: Path
    said: list[str]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    terminal = Terminal(folder)
    return Walked(folder, [terminal.run(line) for line in commands(PAGE, after=SECTION)])


def test_it_takes_three_commands_and_no_yaml():
    lines = commands(PAGE, after=SECTION)
    assert [line.split()[:2] for line in lines] == [
        ["twotower", name] for name in ("train", "export", "evaluate")
    ]
    assert "features=auto" in lines[0]
    assert blocks(PAGE, "yaml", after=SECTION) == []


def test_features_are_told_from_the_columns_as_the_page_shows_them(walked: Walked):
    found = yaml.safe_load((walked.folder / "runs/shop/latest/features.yaml").read_text())
    kinds = {one["name"]: (one["side"], one["kind"]) for one in found["features"]}
    assert kinds == {
        "user_id": ("user", "id"),
        "item_id": ("item", "id"),
        "Dept.": ("item", "categorical"),
        "Tags": ("item", "tags"),
        "Price (EUR)": ("item", "numeric"),
        "picture": ("item", "vector"),
        "position": ("context", "categorical"),
        "device": ("context", "categorical"),
        "timestamp": ("context", "time"),
    }
    [position] = [one for one in found["features"] if one["name"] == "position"]
    assert position["stages"] == ["ranking"]  # no retrieval knows the slot


def test_what_was_learned_is_better_than_what_is_popular(walked: Walked):
    current = walked.folder / "bundles/shop/current"
    [path] = (walked.folder / "evaluations/shop").glob("*/evaluation.json")
    figures = json.loads(path.read_text())
    assert path.parent.name == current.resolve().name
    assert figures["two_stage/test/hit_rate@10"] > 2 * figures["popularity/test/hit_rate@10"]
    assert figures["retrieval_index/test/ndcg@10"] > 2 * figures["popularity/test/ndcg@10"]
    assert figures["ranking/test/auc"] > 0.75  # 0.80; of the truth 0.85
    assert figures["two_stage/test/cold_recall@10"] > 0.5  # new products, by their pictures


def test_the_bundle_has_the_ids_and_titles_of_the_files(walked: Walked):
    bundle = open_bundle(walked.folder / "bundles/shop/current")
    assert set(bundle.items.ids.to_pylist()) <= {f"LMP-{n:05}" for n in range(WORLD.num_items)}
    assert len(np.unique(bundle.items.table["title"].to_pylist())) > 100
    terminal = Terminal(walked.folder)
    said = terminal.run("twotower recommend bundle=bundles/shop/current user=v-000017")
    assert said.count("LMP-") == 10


def test_what_is_printed_leads_on(walked: Walked):
    """Every command names the next one, as it can be called in this folder."""
    trained, exported, evaluated = walked.said
    lines = " ".join(walked.said).splitlines()
    offered = [line.partition("twotower ")[2].split()[0] for line in lines if "next:" in line]
    assert offered == ["export", "evaluate"]
    assert "nearly every value is different" in trained  # the title, which is said not to be used
    assert "Traceback" not in trained + exported + evaluated
    assert "evaluations/shop" in evaluated
