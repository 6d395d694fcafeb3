"""Random requests after the document; `benchmarks/serving/fuzz.py` sends as many as one likes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("fuzz")


def ask(fuzz, tiny_run, folder: Path, cases: int) -> dict:
    settings = ServerSettings(
        bundle=str(tiny_run.bundle), deadline_ms=60_000, journal=str(folder / "items.journal")
    )
    service = Service(settings)
    known = fuzz.known_by(service.generation.recommender.bundle)
    counts = fuzz.fuzz(create_app(service), known, cases=cases)
    service.close()
    return counts


def test_no_random_request_is_an_error_of_the_server(fuzz, tiny_run, tmp_path) -> None:
    counts = ask(fuzz, tiny_run, tmp_path, 600)
    assert sum(counts.values()) >= 600
    for route in ("POST /v1/recommend", "POST /v1/similar"):
        # Many got an answer, and many were refused.
        assert counts[route, 200] >= 3
        assert counts[route, 422] >= 10


@pytest.mark.slow
def test_nor_are_ten_thousand(fuzz, tiny_run, tmp_path) -> None:
    assert sum(ask(fuzz, tiny_run, tmp_path, 10_000).values()) >= 10_000


def test_an_error_of_the_server_is_found(fuzz, tiny_run, tmp_path, monkeypatch) -> None:
    async def fails(*_: object, deadline: float | None) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Service, "answer", fails)
    with pytest.raises(BaseException, match=r"Server error|planted"):
        ask(fuzz, tiny_run, tmp_path, 100)
