"""Lists that `twotower batch` has stored, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from twotower.cli.main import main
from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings
from twotower.serving.store import open_reader

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")


@pytest.fixture(scope="module")
def store(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five items for every user."""
    work = tmp_path_factory.mktemp("batch")
    with chdir(work):
        assert main(["batch", f"bundle={tiny_run.bundle}", "k=5", "quiet=true"]) == 0
    return work / "stores" / "tiny"


def client_of(tiny_run, **settings: object) -> Iterator[TestClient]:
    service = Service(ServerSettings(bundle=str(tiny_run.bundle), deadline_ms=20_000, **settings))
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def client(tiny_run, store: Path) -> Iterator[TestClient]:
    yield from client_of(tiny_run, batch_store=str(store))


def ask(client: TestClient, user: str, status: int = 200, **query: object) -> dict:
    found = client.get("/v1/recommend", params={"user": user, "mode": "batch"} | query)
    assert found.status_code == status, found.text
    return found.json()


def test_a_stored_list(client: TestClient, tiny_run, store: Path) -> None:
    expected = open_reader(str(store)).lookup("u000003", k=4)
    found = ask(client, "u000003", k=4)
    assert [item["item_id"] for item in found["items"]] == [i.item_id for i in expected.items]
    assert [item["probability"] for item in found["items"]] == [
        item.probability for item in expected.items
    ]
    assert (found["status"], found["source"]) == ("found", "model")
    assert found["version"] == (tiny_run.bundle / "current").resolve().name
    assert 0 <= found["age_seconds"] < 600
    assert len(ask(client, "u000003")["items"]) == 5


def test_somebody_without_a_list_gets_popular_items(client: TestClient) -> None:
    found = ask(client, "nobody")
    assert (found["status"], found["source"], len(found["items"])) == ("fallback", "popular", 5)


def test_an_old_list_is_called_stale(tiny_run, store: Path) -> None:
    for client in client_of(tiny_run, batch_store=str(store), batch_max_age_hours=0.0):
        assert ask(client, "u000003")["status"] == "stale"


def test_nothing_is_stored(tiny_run, tmp_path: Path) -> None:
    for client in client_of(tiny_run, batch_store=str(tmp_path / "stores" / "none")):
        (problem,) = ask(client, "u000003", 404)["problems"]
        assert problem == {
            "place": "user",
            "problem": "nothing was published; `twotower batch bundle=<bundle>` does that",
        }


def test_a_store_that_cannot_be_read(client: TestClient, monkeypatch, caplog) -> None:
    from twotower.serving.store import StoreReader
    from twotower.serving.stored_list import StoreError

    def fails(*_: object, k: int | None) -> None:
        raise StoreError("connection refused at secret-host")

    monkeypatch.setattr(StoreReader, "lookup", fails)
    (problem,) = ask(client, "u000003", 503)["problems"]
    assert problem["problem"] == "the batch store cannot be read; the log says more"
    assert "secret-host" in caplog.text


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"user": "u", "mode": "online"}, "mode"),
        ({"user": "u"}, "mode"),
        ({"mode": "batch"}, "user"),
        ({"user": "u" * 513, "mode": "batch"}, "user"),
        ({"user": "u", "mode": "batch", "k": 0}, "k"),
        ({"user": "u", "mode": "batch", "k": "x"}, "k"),
    ],
)
def test_what_cannot_be_looked_up(client: TestClient, query: dict, place: str) -> None:
    found = client.get("/v1/recommend", params=query)
    assert found.status_code == 422
    assert [problem["place"] for problem in found.json()["problems"]] == [place]


def test_there_is_no_store(tiny_run) -> None:
    for client in client_of(tiny_run):
        (problem,) = ask(client, "u000003", 422)["problems"]
        assert problem["place"] == "mode"
        assert "has no batch_store" in problem["problem"]
