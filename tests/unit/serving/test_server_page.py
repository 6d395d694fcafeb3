"""The files of the page and what is looked up for it, over HTTP."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from twotower.serving.recommender import Recommender
from twotower.serving.server import page
from twotower.serving.server.app import create_app
from twotower.serving.server.generation import Generation, open_generation
from twotower.serving.server.micro_batches import Overloaded
from twotower.serving.server.page import MAX_WAITING, Lookups
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

FOLDER = Path(page.__file__).parents[1] / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
KINDS = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
SEARCHES = (
    "/page/summary",
    "/page/users",
    "/page/random-user",
    "/page/items",
    "/page/history?user=u000001",
    "/page/filters",
    "/page/map",
)


@pytest.fixture(scope="module")
def service(tiny_run) -> Iterator[Service]:
    service = Service(ServerSettings(bundle=str(tiny_run.bundle)))
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(create_app(service))


def test_the_page_lets_nothing_in_but_its_own_files(client: TestClient) -> None:
    for path in ("/", *(f"/static/{name}" for name in FILES)):
        found = client.get(path)
        assert found.status_code == 200
        policy = dict(
            one.strip().split(" ", 1) for one in found.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert {policy[f"{name}-src"] for name in ("script", "style", "connect")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["content-type"].startswith(
            KINDS[path.split(".")[-1]] if "." in path else "text/html"
        )
    assert client.head("/").status_code == 200
    assert client.get("/").text == client.get("/static/index.html").text


def test_a_file_that_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/static/page.js")
    again = client.get("/static/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert "content-security-policy" in again.headers


@pytest.mark.parametrize(
    "path", ["/static/nope.js", "/static/../page_data.py", "/static/%2e%2e/ids.py", "/static/"]
)
def test_nothing_else_lies_below_the_files(client: TestClient, path: str) -> None:
    found = client.get(path)
    assert found.status_code == 404
    assert [one["place"] for one in found.json()["problems"]] == ["path"]


def test_other_routes_still_say_which_method_they_take(client: TestClient) -> None:
    assert client.get("/v1/similar").status_code == 405
    assert client.get("/nowhere").status_code == 404


def test_the_files_name_each_other_and_nobody_else() -> None:
    named = re.compile(r"""(?:src=|href=|from )["'](?:static/)?([\w./]+)["']""")
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        urls = set(re.findall(r"\w+://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not urls, path
        for target in named.findall(text):
            if target not in ("openapi.json", "metrics"):
                assert target.split("/")[-1] in FILES, (path, target)


def test_no_file_makes_markup_of_text() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc|DOMParser"
    )
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not forbidden.search(text), name
        assert not re.search(r"\sstyle=|\son\w+=|<script>", text) or not name.endswith(".html"), (
            name
        )
        assert len(text.splitlines()) <= (450 if name.endswith(".css") else 300), name


def test_what_is_found_says_in_which_version(client: TestClient, recommender: Recommender) -> None:
    for path in SEARCHES:
        found = client.get(path)
        assert found.status_code == 200, found.text
        assert found.json()["version"] == recommender.bundle.manifest.version
    body = {"items": [recommender.items.ids[3].as_py(), "nobody"]}
    (point,) = client.post("/page/places", json=body).json()["points"]
    assert point["item"]["item_id"] == body["items"][0]
    (first, *_) = client.get("/page/users?prefix=u00001&limit=3").json()["users"]
    assert first == "u000010"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/page/users?limit=51", "limit"),
        ("/page/items?limit=0", "limit"),
        ("/page/items?limit=many", "limit"),
        (f"/page/items?text={'x' * 513}", "text"),
        (f"/page/users?prefix={'x' * 513}", "prefix"),
        ("/page/history", "user"),
        ("/page/history?user=nobody%00", "user"),
    ],
)
def test_what_is_out_of_bounds_is_refused(client: TestClient, path: str, place: str) -> None:
    found = client.get(path)
    assert found.status_code == 422
    assert any(place in one["place"] or one["place"] == "query" for one in found.json()["problems"])


def test_more_places_than_a_request_has_items_are_refused(client: TestClient) -> None:
    assert client.post("/page/places", json={"items": ["x"] * 1500}).status_code == 200
    assert client.post("/page/places", json={"items": ["x"] * 1501}).status_code == 422


def test_who_has_no_key_sees_the_page_and_no_data(service: Service) -> None:
    client = TestClient(create_app(service, api_key="secret"))
    assert client.get("/").status_code == 200
    assert client.get("/static/page.js").status_code == 200
    for path in SEARCHES:
        assert client.get(path).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert client.get(path, headers=key).status_code == 200
    assert client.post("/page/places", json={"items": []}).status_code == 401


def test_a_server_can_be_without_the_page(tiny_run) -> None:
    service = Service(ServerSettings(bundle=str(tiny_run.bundle), page=False))
    client = TestClient(create_app(service))
    for path in ("/", "/static/page.js", *SEARCHES):
        assert client.get(path).status_code == 404
    assert client.post("/v1/recommend", json={"user": "u000001"}).status_code == 200
    service.close()


def test_the_document_names_no_route_of_the_page(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "page" in path]


def test_too_many_lookups_are_refused(service: Service) -> None:
    """One is under way, as many wait as may, and one more comes."""

    async def flood() -> tuple[list[int], str]:
        lookups, gate = Lookups(), threading.Event()

        def slow(_: object) -> int:
            gate.wait()
            return 1

        waiting = [
            asyncio.ensure_future(lookups.ask(service.generation, slow)) for _ in range(MAX_WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await lookups.ask(service.generation, slow)
        gate.set()
        return await asyncio.gather(*waiting), refused.value.reason

    answers, reason = asyncio.run(flood())
    assert answers == [1] * MAX_WAITING
    assert reason == "full"


def test_a_bundle_that_is_served_no_more_is_forgotten(tiny_run) -> None:
    lookups = Lookups()

    def ask(generation: Generation) -> int:
        return asyncio.run(lookups.ask(generation, lambda data: id(data)))

    first, second = open_generation(tiny_run.bundle), open_generation(tiny_run.bundle)
    assert ask(first) == ask(first)
    assert ask(second) != ask(first)
    del first
    gc.collect()
    assert list(lookups._data) == [second]
