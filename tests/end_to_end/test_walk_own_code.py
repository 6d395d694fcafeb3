"""A walk of `docs/extend.md`: a tower, a data set class and a loss of a project that is not ours.

The files of the page are written as they stand there; the database is the built-in world.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.pages import Terminal, blocks, commands, files
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import open_bundle

PAGE = "docs/extend.md"
WORLD = SyntheticSource(
    num_users=800, num_items=150, num_days=30, slates_per_user=10, slate_size=8, seed=0
)


def write_database(path: Path) -> None:
    tables = WORLD.read()
    names = ("user_id", "item_id", "timestamp", "label", "device")
    columns = [tables.interactions[name].to_pylist() for name in names]
    columns[2] = [time // 1_000_000 for time in columns[2]]
    columns[3] = [int(label) for label in columns[3]]
    items = [tables.items[name].to_pylist() for name in ("item_id", "title", "category", "price")]
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE orders (customer, sku, at, bought, device)")
        database.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?)", zip(*columns, strict=True)
        )
        database.execute("CREATE TABLE products (sku, title, category, price)")
        database.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", zip(*items, strict=True))


@dataclass(frozen=True)
class Walked:
    """The reader's terminal, and what the first command said while nobody allowed the package."""

    terminal: Terminal
    refused: str

    @property
    def folder(self) -> Path:
        return self.terminal.folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("project")
    for name, text in files(PAGE).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_database(folder / "orders.db")
    allow, train, *others = commands(PAGE)
    terminal = Terminal(folder)
    refused = terminal.run(train, status=2)
    assert not (folder / "runs").exists()
    terminal.run(allow)
    terminal.run(train)
    for line in others:
        terminal.run(line)
    return Walked(terminal, refused)


def test_the_files_are_those_that_the_page_lists():
    listed = [line.split()[0] for line in blocks(PAGE, "text")[0].splitlines()]
    assert sorted(listed) == sorted(files(PAGE))


def test_a_package_that_nobody_allowed_is_refused_as_the_page_says(walked: Walked):
    [shown] = blocks(PAGE, "text")[1].splitlines()
    assert walked.refused.splitlines()[0] == shown
    for place in ("models.retrieval.tower._target_", "losses.retrieval.loss._target_"):
        assert f"`{place}`: `shop." in walked.refused


def test_the_parts_of_the_project_were_trained(walked: Walked):
    run = walked.folder / "runs/shop/latest"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["models"]["retrieval"]["tower"]["_target_"] == "shop.plug.tower"
    assert config["data"]["_target_"] == "shop.source.OrderSource"
    assert config["losses"]["retrieval"]["loss"]["_target_"] == "shop.losses.Margin"
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["retrieval/test/hit_rate@10"] > 2 * figures["popularity/test/hit_rate@10"]
    assert figures["ranking/test/auc"] > 0.7


def test_the_bundle_needs_neither_the_package_nor_its_permission(walked: Walked):
    stranger = Terminal(walked.folder)
    said = stranger.run("twotower recommend bundle=bundles/shop/current user=u000017")
    titles = open_bundle(walked.folder / "bundles/shop/current").items.table["title"].to_pylist()
    assert sum(any(title in line for title in titles) for line in said.splitlines()) == 10
