"""A walk of `docs/movielens.md`: a folder of MovieLens to a page that is served."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.pages import Terminal, commands

PAGE = "docs/movielens.md"
DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
FOLDER = DATA / "ml-latest-small"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
# A minute of training for a test; the reader trains until it gets no better.
FEW = " training.retrieval.max_epochs=3 training.ranking.max_epochs=1"

pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason=f"no ml-latest-small in TWOTOWER_DATA ({DATA})"
)


@dataclass(frozen=True)
class Served:
    """Where the reader is, what was printed, and the server that runs."""

    terminal: Terminal
    said: list[str]
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("films")
    (folder / "ml-latest-small").symlink_to(FOLDER.resolve())
    train, *others, serve, _curl = commands(PAGE)[:6]
    terminal = Terminal(folder)
    said = [terminal.run(train + FEW), *map(terminal.run, others)]
    with terminal.serving(serve) as url:
        yield Served(terminal, said, url)


def ask(url: str, body: str) -> dict:
    request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_films_are_found_better_than_by_popularity(served: Served):
    [path] = (served.terminal.folder / "evaluations/films").glob("*/evaluation.json")
    figures = json.loads(path.read_text())
    # Three epochs; popularity finds one of thirty in ten.
    assert figures["two_stage/test/hit_rate@100"] > figures["popularity/test/hit_rate@100"]
    assert figures["index/test/recall@200"] > 0.95


def test_the_table_of_a_user_has_ten_titles(served: Served):
    table = served.said[-1]
    assert "Top 10 for user 1 (bundle films)" in table
    assert len(re.findall(r"\((?:19|20)\d\d\)|like ", table)) >= 10


def test_the_server_answers_what_the_page_asks(served: Served):
    [curl] = [line for line in commands(PAGE) if line.startswith("curl")]
    path = re.search(r"localhost:8080(\S+)", curl)[1]
    body = re.search(r"-d '(.*)'", curl)[1]
    answer = ask(served.url + path, body)
    assert len(answer["items"]) == 5
    assert answer["known_user"] is True
    assert all(item["title"] and 0 < item["probability"] < 1 for item in answer["items"])
    seen = ask(served.url + path, '{"user": 1, "k": 5}')
    assert [i["item_id"] for i in seen["items"]] == [i["item_id"] for i in answer["items"]]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary is installed")
def test_the_page_shows_the_films_in_a_browser(served: Served):
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=root)
        page = browser.new_page()
        # Its own answer: a list is of the moment at which it was asked for.
        with page.expect_response("**/v1/recommend") as first:
            page.goto(f"{served.url}/#user=1")
        asked, answer = first.value.request.post_data_json, first.value.json()
        expect(page.locator("#ten li")).to_have_count(10, timeout=30_000)
        titles = page.locator("#ten .title").all_inner_texts()
        expect(page.locator("#history > li").first).to_be_visible()
        browser.close()
    assert (asked["user"], asked["k"], answer["known_user"]) == ("1", 10, True)
    assert titles == [item["title"] for item in answer["items"]]
