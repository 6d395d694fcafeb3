"""The routes, called in process: the same answers as the recommender gives, and clear refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from twotower.serving.recommender import Recommender
from twotower.serving.server.app import create_app
from twotower.serving.server.body import MAX_BODY_BYTES
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings
from twotower.serving.similar import similar_to_item, similar_to_vector

NOON = 1_705_320_000.0  # 2024-01-15 12:00 UTC, inside the world's month
PRIVATE = "u-nobody-shall-read-this"


@pytest.fixture(scope="module")
def service(tiny_run) -> Service:
    return Service(ServerSettings(bundle=str(tiny_run.bundle), deadline_ms=20_000))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def ask(client: TestClient, **body) -> dict:
    found = client.post("/v1/recommend", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def problems(found: httpx2.Response, status: int) -> dict[str, str]:
    """Problems by place of an answer that must be a refusal."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    assert list(found.json()) == ["problems"]
    return {one["place"]: one["problem"] for one in found.json()["problems"]}


def assert_items(found: list[dict], expected: list) -> None:
    assert [item["item_id"] for item in found] == [item.item_id for item in expected]
    for item, one in zip(found, expected, strict=True):
        assert item == {
            "item_id": one.item_id,
            "title": one.title,
            "probability": pytest.approx(one.probability, abs=1e-5),
            "retrieval_score": pytest.approx(one.retrieval_score, abs=1e-5),
            "retrieval_rank": one.retrieval_rank,
            "reason": one.reason,
        }


def test_a_known_user(client: TestClient, recommender: Recommender) -> None:
    user = recommender.bundle.users.ids[3].as_py()
    expected = recommender.recommend(user=user, k=7, seconds=NOON)
    found = ask(client, user=user, k=7, seconds=NOON, explain=True)
    assert_items(found["items"], expected)
    assert found["version"] == recommender.bundle.manifest.version
    assert (found["source"], found["known_user"], found["missing"]) == ("model", True, 0)
    stages = ["features", "query_tower", "index", "ranker", "describe"]
    assert sorted(found["seconds"]) == sorted(stages)


def test_without_explain_there_is_no_why(client: TestClient, recommender: Recommender) -> None:
    found = ask(client, user=recommender.bundle.users.ids[3].as_py())
    assert set(found) == {"items", "version", "source", "known_user", "missing"}
    assert len(found["items"]) == 10
    for item in found["items"]:
        assert set(item) == {"item_id", "title", "probability", "retrieval_score"}


def test_an_unknown_user_is_somebody_new(client: TestClient, recommender: Recommender) -> None:
    history = recommender.items.ids[:2].to_pylist()
    features = {"country": recommender.bundle.users.table.column("country")[0].as_py()}
    given = {"history": history, "user_features": features, "context": {"device": "phone"}}
    expected = recommender.recommend(**given, k=5, seconds=NOON)
    found = ask(client, user=PRIVATE, **given, k=5, seconds=NOON, explain=True)
    assert_items(found["items"], expected)
    assert (found["source"], found["known_user"]) == ("model", False)
    nobody = ask(client, **given, k=5, seconds=NOON, explain=True)
    assert nobody["items"] == found["items"]
    assert nobody["known_user"] is False
    assert_items(ask(client, user=PRIVATE, k=3, explain=True)["items"], recommender.recommend(k=3))


def test_features_and_history_matter(client: TestClient, recommender: Recommender) -> None:
    items = recommender.items.ids.to_pylist()
    lists = [
        ask(client, history=history, k=20, seconds=NOON)["items"]
        for history in (items[:2], items[40:45])
    ]
    assert lists[0] != lists[1]
    assert not set(items[:2]) & {item["item_id"] for item in lists[0]}  # seen


def test_a_list_that_is_shorter_says_so(client: TestClient, recommender: Recommender) -> None:
    items = recommender.items.ids.to_pylist()
    found = ask(client, history=items[:-3], k=10)
    assert (len(found["items"]), found["missing"]) == (3, 7)


def test_similar(client: TestClient, recommender: Recommender) -> None:
    item = recommender.items.ids[5].as_py()
    found = client.post("/v1/similar", json={"item": item, "k": 4}).json()
    assert_items(found["items"], similar_to_item(recommender, item, k=4))
    assert found["version"] == recommender.bundle.manifest.version
    vector = recommender.items.columns["image_vector"][5]
    body = {"vector": vector.tolist(), "k": 4, "feature": "image_vector"}
    found = client.post("/v1/similar", json=body).json()
    expected = similar_to_vector(recommender, np.asarray(vector), k=4)
    assert [one["item_id"] for one in found["items"]] == [one.item_id for one in expected]


def test_filters(client: TestClient, recommender: Recommender) -> None:
    table = recommender.items.table
    category = table.column("category")[0].as_py()
    fitting = {
        item
        for item, one in zip(
            table.column("item_id").to_pylist(), table.column("category").to_pylist(), strict=True
        )
        if one == category
    }
    filters = [{"column": "category", "operator": "in", "values": [category]}]
    found = ask(client, history=["i00001"], k=100, filters=filters)
    assert {item["item_id"] for item in found["items"]} == fitting - {"i00001"}
    assert found["missing"] == 100 - len(found["items"])
    body = {"item": "i00001", "k": 100, "filters": filters}
    similar = client.post("/v1/similar", json=body).json()["items"]
    assert {item["item_id"] for item in similar} == fitting - {"i00001"}
    wrong = [{"column": "colour", "operator": "in", "values": ["red"]}]
    for route, body in (("recommend", {"history": ["i00001"]}), ("similar", {"item": "i00001"})):
        refused = client.post(f"/v1/{route}", json=body | {"filters": wrong})
        assert list(problems(refused, 422)) == ["filters[0].column"]


def test_explain(client: TestClient, recommender: Recommender) -> None:
    user = recommender.bundle.users.ids[3].as_py()
    shown = recommender.recommend(user=user, k=3, seconds=NOON)
    body = {"user": user, "k": 3, "seconds": NOON, "item": shown[1].item_id}
    found = client.post("/v1/explain", json=body).json()
    assert (found["outcome"], found["places"]["place"]) == ("shown", 2)
    assert found["places"]["probability"] == pytest.approx(shown[1].probability, abs=1e-5)
    assert found["version"] == recommender.bundle.manifest.version
    assert {"side", "feature", "value", "score", "logit"} == set(found["contributions"][0])
    history = recommender.items.ids[:2].to_pylist()
    new = {"user": PRIVATE, "history": history, "item": history[0]}
    assert client.post("/v1/explain", json=new).json()["outcome"] == "seen"
    wrong = client.post("/v1/explain", json={"user": user, "item": "nothing"})
    assert "is unknown" in problems(wrong, 422)["item"]
    assert list(problems(client.post("/v1/explain", json={"user": user}), 422)) == ["item"]


@pytest.mark.parametrize(
    ("body", "place", "problem"),
    [
        ({}, "body", "give item or vector, got neither"),
        ({"item": "i00001", "vector": [1.0]}, "body", "give item or vector, got both"),
        ({"item": "i00001", "feature": "image_vector"}, "feature", "says what `vector` is"),
        ({"item": "none"}, "item", "unknown item 'none'"),
        ({"vector": [1.0, 2.0]}, "vector", "must be 16 floating point numbers"),
        ({"vector": [0.0] * 16}, "vector", "must be finite and not all zeros"),
        ({"vector": [1e300]}, "vector[0]", "must be less than or equal to 1000000000000000"),
        ({"vector": [1.0] * 16, "feature": "sound"}, "vector", "vector_feature: got sound"),
    ],
)
def test_nothing_is_like_that(client: TestClient, body: dict, place: str, problem: str) -> None:
    found = problems(client.post("/v1/similar", json=body), 422)
    assert list(found) == [place]
    assert problem in found[place]


def test_what_the_bundle_does_not_know(client: TestClient) -> None:
    found = client.post("/v1/recommend", json={"history": ["nothing", "i00001"]})
    assert problems(found, 422) == {
        "history": "unknown items nothing; known are 80 items such as i00000, i00001, i00002"
    }
    found = client.post("/v1/recommend", json={"history": ["i00001"], "context": {"device": [1]}})
    ((_, problem),) = problems(found, 422).items()
    assert "`device` of kind categorical: needs one value a row" in problem


@pytest.mark.parametrize(
    ("content", "status", "place"),
    [
        (b'{"k": NaN}', 400, "body"),
        (b"[" * 50_000, 400, "body"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "body"),
        (b'{"version": "../../../etc/passwd"}', 422, "version"),
        (b"null", 422, "body"),
        (b"", 422, "body"),
    ],
)
def test_bodies_that_are_refused(
    client: TestClient, content: bytes, status: int, place: str
) -> None:
    headers = {"content-type": "application/json"}
    for route in ("/v1/recommend", "/v1/similar"):
        assert place in problems(client.post(route, content=content, headers=headers), status)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/xml", "multipart/form-data"])
def test_bodies_that_are_not_called_json(client: TestClient, kind: str) -> None:
    found = client.post("/v1/recommend", content=b"{}", headers={"content-type": kind})
    assert "must be application/json" in problems(found, 415)["content-type"]


def test_charset_may_be_named(client: TestClient) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/v1/recommend", content=b"{}", headers=headers).status_code == 200


@pytest.mark.parametrize("deadline", ["0", "-1", "x", "60001", "1.5", "nan", "9" * 400])
def test_deadlines_that_are_none(client: TestClient, deadline: str) -> None:
    found = client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": deadline})
    assert list(problems(found, 422)) == ["X-Deadline-Ms"]


@pytest.mark.parametrize(
    ("method", "path", "status", "place"),
    [
        ("GET", "/v1/nothing", 404, "path"),
        ("GET", "/v1/../../etc/passwd", 404, "path"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, "path"),
        ("GET", "/docs", 404, "path"),
        ("GET", "/v1/similar", 405, "method"),
        ("DELETE", "/v1/recommend", 405, "method"),
    ],
)
def test_paths_that_lead_nowhere(client: TestClient, method, path, status, place) -> None:
    found = client.request(method, path)
    assert list(problems(found, status)) == [place]
    assert ("allow" in found.headers) == (status == 405)


def test_it_lives_and_is_ready(client: TestClient, recommender: Recommender) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    manifest = recommender.bundle.manifest
    ready = {"status": "ready", "name": "tiny", "version": manifest.version}
    assert client.get("/readyz").json() == ready


def metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_count(client: TestClient, recommender: Recommender) -> None:
    route = 'twotower_requests_total{route="/v1/recommend",status="%d"}'
    stage = 'twotower_stage_seconds_count{stage="%s"}'
    names = [route % 200, route % 422, *(stage % s for s in ("queue", "index", "ranker"))]
    before = [metric(client, name) for name in names]
    user = recommender.bundle.users.ids[0].as_py()
    for _ in range(3):
        ask(client, user=user)
    client.post("/v1/recommend", json={"k": 0})
    after = [metric(client, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 1, 3, 3, 3]
    client.get("/nowhere")
    text = client.get("/metrics").text
    version = recommender.bundle.manifest.version
    assert f'twotower_bundle_info{{name="tiny",version="{version}"}} 1.0' in text
    assert metric(client, "twotower_waiting") == 0
    assert metric(client, "twotower_reload_failing") == 0
    assert 'route="other",status="404"' in text  # of a path that leads nowhere, not the path


def test_a_failure_inside_is_a_500_without_details(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(service.generation.recommender, "answer", fails)
    found = TestClient(create_app(service), raise_server_exceptions=False).post(
        "/v1/recommend", json={}
    )
    assert problems(found, 500) == {"server": "unexpected error; its log says more"}


def test_a_key(service: Service) -> None:
    client = TestClient(create_app(service, api_key="s3cret"))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "Bearer s3cret2"},
        {"Authorization": "Bearer "},
        {"X-API-Key": "s3cret"},
    ):
        for method, path in (("POST", "/v1/recommend"), ("GET", "/metrics"), ("POST", "/v1/x")):
            found = client.request(method, path, headers=headers)
            assert list(problems(found, 401)) == ["authorization"]
            assert found.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer s3cret"}
    assert client.post("/v1/recommend", json={}, headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_the_access_log_holds_nothing_of_users(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="twotower.access"):
        client.post(f"/v1/recommend?user={PRIVATE}", json={"user": PRIVATE, "k": 3})
        client.post("/v1/recommend", json={"user": {"id": PRIVATE}})
        client.get(f"/v1/recommend/{PRIVATE}")
        client.request("SECRET", "/healthz")
    written = [r.getMessage() for r in caplog.records if r.name == "twotower.access"]
    lines = [json.loads(line) for line in written]
    assert PRIVATE.lower() not in "".join(written).lower()
    shown = [(line["method"], line["route"], line["status"]) for line in lines]
    assert shown == [
        ("POST", "/v1/recommend", 200),
        ("POST", "/v1/recommend", 422),
        ("GET", "other", 404),
        ("other", "/healthz", 405),
    ]
    assert all(line["milliseconds"] > 0 and line["bytes"] > 20 for line in lines)


def in_loop(app: FastAPI, doing: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    """Several requests at a time."""

    async def run() -> None:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            await doing(client)

    asyncio.run(run())


def small_service(tiny_run, **settings: int) -> Service:
    return Service(ServerSettings(bundle=str(tiny_run.bundle), **settings))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


class Blocker:
    """Keeps the thread that answers busy until it may go on."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = threading.Event()
        self._may_go = threading.Event()

    async def begin(self) -> None:
        self._task = asyncio.create_task(self._service.call(self._block, deadline=60))
        await until(self._started.is_set)

    async def end(self) -> None:
        self._may_go.set()
        await self._task

    def _block(self, _: object) -> None:
        self._started.set()
        assert self._may_go.wait(60)


def test_too_many_wait(tiny_run) -> None:
    service = small_service(tiny_run, max_waiting=2, max_batch=2, deadline_ms=20_000)
    blocker = Blocker(service)

    async def doing(client: httpx2.AsyncClient) -> None:
        await blocker.begin()
        posts = [asyncio.create_task(client.post("/v1/recommend", json={})) for _ in range(2)]
        await until(lambda: len(service._batches) == 2)
        refused = await client.post("/v1/recommend", json={})
        assert problems(refused, 503) == {"server": "too many requests wait"}
        assert refused.headers["retry-after"] == "1"
        # It is refused by what it asks, before anybody looks at what that is.
        refused = await client.post("/v1/similar", content=b"no json")
        assert problems(refused, 503) == {"server": "too many requests wait"}
        alive = await client.get("/healthz")  # and ready: it is busy, not broken
        assert (alive.status_code, (await client.get("/readyz")).status_code) == (200, 200)
        late = await client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": "1"})
        assert late.status_code == 503
        await blocker.end()
        assert [post.status_code for post in await asyncio.gather(*posts)] == [200, 200]

    in_loop(create_app(service), doing)
    service.close()
    assert b'twotower_overloaded_total{reason="full"} 3.0' in service.metrics.render()
    shed = b'twotower_requests_total{route="/v1/similar",status="503"} 1.0'
    assert shed in service.metrics.render()


def test_a_deadline_passes(tiny_run) -> None:
    service = small_service(tiny_run, deadline_ms=50)
    blocker = Blocker(service)

    async def doing(client: httpx2.AsyncClient) -> None:
        await blocker.begin()
        first = await client.post("/v1/recommend", json={})
        second = await client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": "20"})
        for found in (first, second):
            shown = problems(found, 503)
            assert shown == {"server": "the deadline has passed before there was an answer"}
        longer = {"X-Deadline-Ms": "30000"}
        third = asyncio.create_task(client.post("/v1/recommend", json={}, headers=longer))
        await blocker.end()
        assert (await third).status_code == 200

    in_loop(create_app(service), doing)
    service.close()
    assert b'twotower_overloaded_total{reason="deadline"} 2.0' in service.metrics.render()


def test_one_address_has_too_many_in_flight(tiny_run) -> None:
    service = small_service(tiny_run, max_in_flight=2, deadline_ms=20_000)
    blocker = Blocker(service)

    async def doing(client: httpx2.AsyncClient) -> None:
        await blocker.begin()
        posts = [asyncio.create_task(client.post("/v1/recommend", json={})) for _ in range(2)]
        await until(lambda: len(service._batches) == 2)
        refused = await client.post("/v1/recommend", json={})
        assert "at most 2 requests" in problems(refused, 429)["client"]
        assert (await client.get("/healthz")).status_code == 200
        await blocker.end()
        assert [post.status_code for post in await asyncio.gather(*posts)] == [200, 200]
        assert (await client.post("/v1/recommend", json={})).status_code == 200

    in_loop(create_app(service), doing)
    service.close()


def test_together_or_alone_the_answers_are_the_same(tiny_run, recommender: Recommender) -> None:
    """Others in the batch, wrong ones among them, change nothing."""
    service = small_service(tiny_run, deadline_ms=20_000)
    users = recommender.bundle.users.ids.to_pylist()[:12]
    bodies = [{"user": user, "seconds": NOON, "k": 1 + n} for n, user in enumerate(users)]
    wrong = [{"history": ["nothing"]}, {"history": ["i00001"], "context": {"device": [1]}}]
    blocker = Blocker(service)

    async def doing(client: httpx2.AsyncClient) -> None:
        alone = [await client.post("/v1/recommend", json=body) for body in bodies]
        await blocker.begin()
        every = [*bodies[:5], *wrong, *bodies[5:]]
        posts = [asyncio.create_task(client.post("/v1/recommend", json=one)) for one in every]
        await until(lambda: len(service._batches) == len(every))
        await blocker.end()
        together = await asyncio.gather(*posts)
        assert [one.status_code for one in together[5:7]] == [422, 422]
        for one, other in zip(alone, [*together[:5], *together[7:]], strict=True):
            first, second = one.json()["items"], other.json()["items"]
            assert [item["item_id"] for item in first] == [item["item_id"] for item in second]
            for a, b in zip(first, second, strict=True):
                assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)

    in_loop(create_app(service), doing)
    service.close()


def test_the_document_names_every_route_and_every_status(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    changes = {"/v1/items:upsert", "/v1/items:remove"}
    probes = {"/healthz", "/readyz"}
    asking = {"/v1/recommend", "/v1/similar", "/v1/explain"}
    assert set(document["paths"]) == asking | changes | probes
    for route in asking | changes:
        post = document["paths"][route]["post"]
        statuses = {"200", "400", "401", "408", "413", "415", "422", "429", "503"}
        assert set(post["responses"]) == statuses
    asked = document["components"]["schemas"]["RecommendBody"]
    assert asked["additionalProperties"] is False
    assert asked["properties"]["history"]["maxItems"] == 1000
    assert (asked["properties"]["k"]["minimum"], asked["properties"]["k"]["maximum"]) == (1, 500)


@pytest.mark.parametrize(
    "wrong", [{"max_batch": 0}, {"max_waiting": 0}, {"deadline_ms": 0}, {"threads": 0}]
)
def test_settings_out_of_range(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, got 0"):
        ServerSettings(bundle="x", **wrong)


def test_settings_go_to_a_process_and_come_back() -> None:
    settings = ServerSettings(bundle="b", max_batch=3, deadline_ms=7, api_key_file="k")
    assert ServerSettings.from_json(settings.to_json()) == settings
