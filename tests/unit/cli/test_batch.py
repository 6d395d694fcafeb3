"""`twotower batch` and `twotower lookup`: from the command line to a store and back."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.redis_server import redis_binary, redis_server
from twotower.cli.main import main
from twotower.export.bundle import open_bundle

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def batch(tiny_run, *overrides: str) -> int:
    return main(["batch", f"bundle={tiny_run.bundle}", "k=5", *overrides])


def users_of(tiny_run) -> list[str]:
    return open_bundle(tiny_run.bundle).users.ids.to_pylist()


def test_tables_that_a_person_can_read(tiny_run, capsys) -> None:
    assert batch(tiny_run) == 0
    printed = capsys.readouterr()
    rows = [line.strip("│ ").split("│") for line in printed.out.splitlines() if "│" in line]
    figures = {what.strip(): figure.strip() for what, figure in rows}
    assert figures["users"] == figures["scored now"] == "120"
    assert (figures["without a list"], figures["store"]) == ("0", "stores/tiny")
    folder = Path("batches/tiny") / figures["version"]
    assert f"written: {folder.absolute()}" in printed.out
    assert "120/120" in printed.err  # the bar
    report = json.loads((folder / "batch.json").read_text())
    assert report["users_per_second"] == pytest.approx(120 / report["seconds"])
    user = users_of(tiny_run)[3]
    assert main(["lookup", "name=tiny", f"user={user}", "k=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip().startswith(f"Top 4 for user {user} (found, bundle 20")
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["1", "2", "3", "4"]
    assert lines[-1].startswith(f"list of '{user}', ")


def test_quiet_prints_nothing(tiny_run, capsys) -> None:
    assert batch(tiny_run, "+quiet=true", "name=mail") == 0
    assert main(["lookup", "name=mail", "user=nobody", "quiet=true"]) == 0
    assert capsys.readouterr() == ("", "")


def test_statuses_of_a_lookup(tiny_run, capsys) -> None:
    assert main(["lookup", "name=tiny", "user=nobody"]) == 2
    assert capsys.readouterr().err == (
        "error: stores/tiny: nothing was published; `twotower batch bundle=<bundle>` does that\n"
    )
    assert batch(tiny_run, f"seconds={int(time.time()) - 3 * 3600}", "quiet=true") == 0
    assert main(["lookup", "name=tiny", "user=nobody", "max_age_hours=4"]) == 0
    assert "(fallback, bundle" in capsys.readouterr().out
    assert main(["lookup", "name=tiny", "user=nobody", "max_age_hours=2"]) == 3
    printed = capsys.readouterr()
    assert "(stale, bundle" in printed.out
    assert printed.err == (
        "refused: stores/tiny: 'nobody' has no list: popular items, 3.0 hours old; at most 2.0 "
        "hours is wanted\n"
    )


def test_too_many_failed(tiny_run, capsys, monkeypatch) -> None:
    def refuse(*_: object, allowed: object) -> None:
        raise ValueError("no vector")

    monkeypatch.setattr("twotower.serving.recommender.Recommender.rank", refuse)
    assert batch(tiny_run) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "refused: 120 of 120 users so far have no list, more than the share max_failed_share=0.01 "
        "of all; nothing was published (no vector: 120)"
    )
    assert main(["lookup", "name=tiny", "user=nobody"]) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["k=0", "keep=0"], "k must be at least 1, got 0\nkeep must be at least 1, got 0"),
        (["store=lmbd"], "`store=lmbd`"),
        (["store=redis", "store.url=redis://127.0.0.1:1/0"], "redis://127.0.0.1:1/0#tiny: "),
    ],
)
def test_bad_input_has_one_message(tiny_run, capsys, overrides, message) -> None:
    assert batch(tiny_run, *overrides, "quiet=true") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not Path("stores").exists()


@pytest.mark.parametrize(
    ("package", "store", "message"),
    [
        ("lmdb", "lmdb", "store=lmdb needs LMDB, which is not installed: pip install"),
        ("redis", "redis", "store=redis needs its client, which is not installed: pip install"),
    ],
)
def test_a_missing_package_names_its_extra(tiny_run, capsys, monkeypatch, package, store, message):
    monkeypatch.setitem(sys.modules, package, None)
    assert batch(tiny_run, f"store={store}", "quiet=true") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "'twotower[batch]'" in printed
    assert batch(tiny_run, "store=none", "quiet=true") == 0
    assert main(["lookup", "name=tiny", "user=x", "store=none"]) == 2
    assert "store=none keeps nothing to look up" in capsys.readouterr().err


def test_redis(tiny_run, capsys, tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="the client of Redis is not installed (extra `batch`)")
    if redis_binary() is None:
        pytest.skip("no redis-server is installed")
    with redis_server(tmp_path) as url:
        store = ["store=redis", f"store.url={url}"]
        assert batch(tiny_run, *store) == 0
        assert f"{url}#tiny" in capsys.readouterr().out
        user = users_of(tiny_run)[7]
        assert main(["lookup", "name=tiny", f"user={user}", *store]) == 0
        assert f"Top 5 for user {user} (found, bundle" in capsys.readouterr().out
