"""The page in a real browser, headless Chromium, on a real server and its bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from twotower.export.bundle import Bundle, open_bundle
from twotower.index.cells import Probe
from twotower.serving.explanation import Contribution, Explanation, Places

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
KEY = "a key of this test"
USER = "u000042"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
BEYOND_DOUBLES = "9007199254740993"

expect.set_options(timeout=20_000)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary is installed")


@contextmanager
def serving(bundle: Path, **environment: str) -> Iterator[str]:
    """`twotower serve` as a process; the URL."""
    command = [sys.executable, "-m", "twotower.cli.main", "serve", f"bundle={bundle}", "port=0"]
    process = subprocess.Popen(
        [*command, "access_log=false", "deadline_ms=30000"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def url(tiny_run) -> Iterator[str]:
    with serving(tiny_run.bundle) as url:
        yield url


@pytest.fixture(scope="module")
def bundle(tiny_run) -> Bundle:
    return open_bundle(tiny_run.bundle)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=root)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page that may not complain, nor ask anybody but the server."""
    with opened(browser, url) as page:
        yield page


@contextmanager
def opened(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    options = {"viewport": {"width": 1440, "height": 1000}, "reduced_motion": "reduce"} | options
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        yield page
        page.unroute_all(behavior="wait")  # An answer may be on its way.
        assert said == []
        assert asked
        assert [one for one in asked if not one.startswith(f"{url}/")] == []
    finally:
        context.close()


def go(page: Page, url: str, *, user: str = USER) -> None:
    page.goto(f"{url}/#user={user}")
    settled(page)


def settled(page: Page) -> None:
    """Wait for the answer with all that follows it."""
    expect(page.locator("body[aria-busy]")).to_have_count(0)
    expect(page.locator("#ten li").first).to_be_visible(timeout=20_000)


def ten(page: Page) -> list[str]:
    return page.locator("#ten li").evaluate_all("items => items.map((one) => one.dataset.item)")


def test_a_user_is_chosen_and_ten_items_come(page: Page, url: str, bundle: Bundle) -> None:
    page.goto(url)
    settled(page)  # For a user drawn at random.
    page.get_by_label("User, by").fill("u00004")
    page.get_by_role("option", name=USER).click()
    expect(page.get_by_role("heading", name=f"For {USER}")).to_be_visible()
    settled(page)
    assert len(ten(page)) == 10
    assert set(ten(page)) <= set(bundle.items.ids.to_pylist())
    row = bundle.users.ids.index(USER).as_py()
    num_events = int(bundle.offsets[row + 1] - bundle.offsets[row])
    expect(page.locator("#history > li")).to_have_count(num_events)
    assert page.url == f"{url}/#user={USER}"


def test_scores_are_those_of_the_answer(page: Page, url: str) -> None:
    with page.expect_response(lambda one: one.url.endswith("/v1/recommend")) as answered:
        go(page, url)
    items = answered.value.json()["items"]
    for row, item in zip(page.locator("#ten li").all(), items, strict=True):
        text = row.inner_text()
        assert item["title"] in text
        assert item["reason"] in text
        assert f"{100 * item['probability']:.1f} %" in text
        assert f"{item['retrieval_score']:.3f}" in text
        assert f"#{item['retrieval_rank']}" in text
    for stage in ("query tower", "index", "ranker", "queue and network"):
        expect(page.locator("#latency")).to_contain_text(re.compile(rf"{stage} [\d.]+ ms"))
    parts = page.locator("#latency .stage").evaluate_all("all => all.map((p) => p.offsetWidth)")
    bar = page.locator("#latency .stages").evaluate("bar => bar.offsetWidth")
    assert len(parts) >= 5
    assert bar * 0.9 <= sum(parts) <= bar


def test_candidates_are_all_there_and_can_be_sorted(page: Page, url: str) -> None:
    go(page, url)
    rows = page.locator("#candidates tbody tr")
    shown = page.locator("#candidates tr.shown td:nth-child(2)")
    assert rows.count() > 30
    assert set(shown.all_inner_texts()) == set(page.locator("#ten .title").all_inner_texts())
    page.get_by_role("button", name="is", exact=True).click()
    titles = page.locator("#candidates tbody td:nth-child(2)").all_inner_texts()
    assert titles[:10] == page.locator("#ten .title").all_inner_texts()
    assert page.locator("#candidates circle").count() == rows.count()


def test_a_filter_changes_the_ten_and_can_be_taken_back(
    page: Page, url: str, bundle: Bundle
) -> None:
    table = bundle.items.table
    category = dict(zip(table["item_id"].to_pylist(), table["category"].to_pylist(), strict=True))
    go(page, url)
    before = ten(page)
    wanted = category[before[0]]
    page.get_by_role("checkbox", name=re.compile(rf"^{wanted} \d+$")).check()
    settled(page)
    only = ten(page)
    assert only != before
    assert {category[one] for one in only} == {wanted}
    page.get_by_label("What to do with the chosen values of category").select_option("without")
    settled(page)
    without = ten(page)
    assert len(without) == 10
    assert wanted not in {category[one] for one in without}
    page.get_by_role("button", name="Clear all filters").click()
    settled(page)
    assert ten(page) == before
    page.go_back()  # The page is told a moment later.
    expect(page.locator("#ten li").first).to_have_attribute("data-item", without[0])
    settled(page)
    assert ten(page) == without


def test_an_item_shows_its_neighbours_and_joins_the_history(page: Page, url: str) -> None:
    go(page, url, user="")
    expect(page.locator("#ten-note")).to_contain_text("popular items")
    before = ten(page)
    first = page.locator("#ten .title").nth(2)
    name = first.inner_text()
    first.click()
    expect(page.locator("#item-title")).to_have_text(name)
    expect(page.locator("#near li")).to_have_count(10)
    assert name not in page.locator("#near .title").all_inner_texts()
    page.locator("#near .title").first.click()  # On to the neighbour.
    expect(page.locator("#item-title")).not_to_have_text(name)
    page.get_by_role("button", name="Add to the history").click()
    expect(page.locator("#history .added")).to_have_count(1)
    page.get_by_label("Add an item").fill("the")
    expect(page.locator("#item-list li").first).to_contain_text("The ")
    page.locator("#item-list li").first.click()
    expect(page.locator("#history .added")).to_have_count(2)
    settled(page)
    assert ten(page) != before
    expect(page.locator("#ten-note")).to_be_empty()
    page.get_by_role("button", name=re.compile("^Remove .* from the history$")).first.click()
    expect(page.locator("#history .added")).to_have_count(1)


def test_the_map_marks_what_was_answered(page: Page, url: str) -> None:
    go(page, url)
    expect(page.locator("#map svg .final")).to_have_count(10)
    assert page.locator("#map .background circle").count() == 80
    history = page.locator("#history > li")
    expect(page.locator("#map path.history")).to_have_count(history.count())
    mark = page.get_by_role("button", name=re.compile("^1: "))
    name = page.locator("#ten .title").first.inner_text()
    mark.hover(force=True)
    expect(page.locator("#map .tip")).to_contain_text("The ")
    mark.focus()
    expect(page.locator("#map .tip")).to_contain_text(name)
    page.keyboard.press("Enter")
    expect(page.locator("#item-title")).to_have_text(name)
    before = mark.get_attribute("transform")
    page.get_by_role("button", name="Close up").click()
    assert mark.get_attribute("transform") != before


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.innerText || document.activeElement.id")


def test_everything_can_be_done_with_the_keyboard(page: Page, url: str) -> None:
    go(page, url)
    keyboard = page.keyboard
    keyboard.press("Tab")
    assert focused(page) == "Skip to the recommended items"
    keyboard.press("Tab")
    assert focused(page) == "user"
    keyboard.type("u00001")
    expect(page.locator("#user-list li")).to_have_text([f"u00001{n}" for n in range(10)])
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="For u000011")).to_be_visible()
    settled(page)
    page.locator("#ten-title").focus()  # Where the link of before leads.
    keyboard.press("Tab")
    name = focused(page)
    assert name == page.locator("#ten .title").first.inner_text()
    keyboard.press("Enter")
    expect(page.locator("#near li")).to_have_count(10)
    assert focused(page) == name  # The heading of the panel.
    keyboard.press("Escape")
    assert focused(page) == name
    keyboard.press("Tab")
    keyboard.press("Enter")  # Add to the history.
    expect(page.locator("#history .added")).to_have_count(1)
    settled(page)
    assert focused(page) == "+"
    keyboard.press("Tab")
    assert focused(page) == page.locator("#ten .title").nth(1).inner_text()


SEEN = """() => {
  const here = document.activeElement;
  const shown = (node) => node && getComputedStyle(node).outlineStyle !== "none";
  const mark = here.matches(".final") && here.querySelector("circle");
  return here === document.body || shown(here) || shown(here.closest(".chip"))
    || (mark && getComputedStyle(mark).strokeWidth === "3.5px") || here.outerHTML;
}"""


def test_every_stop_of_the_tab_key_is_seen(page: Page, url: str) -> None:
    go(page, url)
    stops = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        assert page.evaluate(SEEN) is True
        stops.add(page.evaluate("document.activeElement.outerHTML"))
        if page.evaluate("document.activeElement === document.body"):
            break
    # Rows of candidates and marks of the map are one stop each.
    assert 30 < len(stops) < 100


UNNAMED = """() => [...document.querySelectorAll("button, input, select, a, [role=button]")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.ariaLabel || node.innerText?.trim() || node.labels?.length))
  .map((node) => node.outerHTML)"""

FAINT = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const rgb = numbers(getComputedStyle(one).backgroundColor);
      if (rgb[3] !== 0) return rgb;
    }
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest("svg, .hidden, .skip, option")) continue;
    const pair = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) faint.push([node.outerHTML, contrast]);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names(
    browser: Browser, url: str, scheme: str
) -> None:
    with opened(browser, url, color_scheme=scheme) as page:
        go(page, url)
        page.locator("#ten .title").first.click()
        expect(page.locator("#near li")).to_have_count(10)
        assert page.evaluate(FAINT) == []
        assert page.evaluate(UNNAMED) == []


def test_a_phone_need_not_scroll_sideways(browser: Browser, url: str, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with opened(browser, url, **phone) as page:
        go(page, url)
        page.locator("#filters-card summary").tap()
        page.locator("#ten .title").first.tap()
        expect(page.locator("#near li")).to_have_count(10)
        expect(page.locator("#item-title")).to_be_in_viewport()
        expect(page.locator("#why")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.screenshot(path=tmp_path / "phone.png", full_page=True)
        with Image.open(tmp_path / "phone.png") as image:
            assert image.width == 360
        small = """all => all.filter((one) => one.checkVisibility())
          .map((one) => one.getBoundingClientRect()).filter((box) => box.right > 360.5).length"""
        assert page.locator("body *:not(svg *, table *, .table)").evaluate_all(small) == 0


def test_titles_are_never_markup_and_long_numbers_are_kept(page: Page, url: str) -> None:
    def change(route: Route) -> None:
        item = {"title": HOSTILE, "reason": HOSTILE, "item_id": 0, "retrieval_score": 0.5}
        answer = {"version": "1", "items": [item]}  # What is like such an item.
        if not route.request.url.endswith("/v1/similar"):
            answer = route.fetch().json()
            answer["items"] = [one | item for one in answer["items"]]
        text = json.dumps(answer).replace('"item_id": 0', f'"item_id": {BEYOND_DOUBLES}')
        route.fulfill(body=text, content_type="application/json")

    page.route(re.compile("/v1/(recommend|similar)$|/page/items"), change)
    page.route(re.compile("/openapi.json$"), without_explain)  # The item is none.
    go(page, url)
    assert ten(page) == [BEYOND_DOUBLES] * 10
    page.locator("#ten .title").first.click()
    expect(page.locator("#near .title").first).to_have_text(HOSTILE)
    page.get_by_label("Add an item").fill("the")
    expect(page.locator("#item-list li").first).to_contain_text(HOSTILE)
    assert page.locator("main :is(img, b)").count() == 0
    assert "owned" not in page.title()


EXPLANATION = Explanation(
    item_id="i00001",
    title="An item",
    version="1",
    k=10,
    outcome="lost_by_index",
    sentence="The index did not look where the item is.",
    places=Places(
        num_items=1300,
        num_allowed=1234,
        num_candidates=200,
        score=0.4321,
        exact_rank=12,
        allowed_rank=9,
        probe=Probe(cell=3, place=9, num_probes=8),
        ranker_rank=4,
        logit=1.5,
        probability=0.8176,
    ),
    contributions=[
        Contribution(feature="history", side="history", value="3 items", score=0.25, logit=-0.5),
        Contribution(feature="price", side="item", value="7.5", score=None, logit=0.125),
    ],
)


def test_why_an_item_is_not_shown(page: Page, url: str) -> None:
    """The server explains what is written above."""
    asked = []

    def explain(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(json=asdict(EXPLANATION))

    page.route(re.compile("/v1/explain$"), explain)
    go(page, url)
    page.locator("#ten .title").nth(1).click()
    why = page.locator("#why")
    expect(why).to_contain_text("The index did not look where the item is.")
    assert asked == [{"user": USER, "history": [], "item": ten(page)[1], "k": 10, "filters": []}]
    assert why.locator("dd").all_inner_texts() == [
        "#12 \u00b7 0.432",
        "\u2013, cell not looked into",
        "#9 of 1,234",
        "\u2013",
        "#4 \u00b7 81.8 %",
        "\u2013",
    ]
    rows = [row.inner_text().split() for row in why.locator("tbody tr").all()]
    assert rows == [["history", "3", "items", "+0.250", "\u22120.500"], ["price", "7.5", "+0.125"]]


def test_why_an_item_is_shown(page: Page, url: str) -> None:
    go(page, url)
    page.locator("#ten .title").nth(1).click()
    why = page.locator("#why")
    expect(why).to_contain_text("Shown at place 2 of 10")
    places = why.locator("dd").all_inner_texts()
    assert places[0].startswith("#")
    assert places[-1] == "#2 of 10"
    features = [row.inner_text().split()[0] for row in why.locator("tbody tr").all()]
    assert {"item_id", "history"} & set(features)


def test_a_server_that_explains_nothing_has_no_such_panel(page: Page, url: str) -> None:
    page.route(re.compile("/openapi.json$"), without_explain)
    go(page, url)
    page.locator("#ten .title").first.click()
    expect(page.locator("#near li")).to_have_count(10)
    expect(page.locator("#why")).to_be_hidden()


def without_explain(route: Route) -> None:
    route.fulfill(json={"paths": {}, "components": {}})


def test_a_server_with_a_key_asks_for_it(browser: Browser, tiny_run) -> None:
    with serving(tiny_run.bundle, TWOTOWER_API_KEY=KEY) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/#user={USER}")
        page.get_by_label("This server asks for its API key").fill("a wrong one")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("alert")).to_contain_text("Bearer")
        page.get_by_label("This server asks for its API key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        settled(page)
        assert len(ten(page)) == 10
        expect(page.locator("#key")).to_be_hidden()
        expect(page.get_by_role("alert")).to_be_empty()
        context.close()


def test_without_a_ranker_there_are_no_probabilities(browser: Browser, csv_run) -> None:
    with serving(csv_run.bundle) as url, opened(browser, url) as page:
        user = str(open_bundle(csv_run.bundle).users.ids[2].as_py())
        go(page, url, user=user)
        assert len(ten(page)) == 10
        expect(page.get_by_role("heading", name=f"For {user}")).to_be_visible()
        assert "%" not in page.locator("#ten").inner_text()
        expect(page.locator("#candidates th")).to_have_text(["was", "item", "score"])


def test_what_is_wrong_with_an_address_is_said(browser: Browser, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/#user={USER}&item=nope")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("history: .*nope"))
    page.goto(f"{url}/#user={USER}&filters=[broken")
    settled(page)
    assert len(ten(page)) == 10
    context.close()
