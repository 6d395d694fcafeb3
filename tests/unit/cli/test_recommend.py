"""`twotower recommend`: from the command line to a table of items."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from twotower.cli.main import main
from twotower.cli.recommend import recommend
from twotower.cli.tables import items_table
from twotower.config import compose
from twotower.export.bundle import open_bundle
from twotower.planning.capacity_memory import vector_bytes
from twotower.serving.requests import Recommendation


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def answers(*overrides: str) -> list[Recommendation]:
    return recommend(compose("recommend", [*overrides, "quiet=true"]))


def test_a_table_that_a_person_can_read(tiny_run, capsys) -> None:
    bundle = open_bundle(tiny_run.bundle)
    user = bundle.users.ids[3].as_py()
    assert main(["recommend", f"bundle={tiny_run.bundle}", f"user={user}", "k=4"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].strip() == f"Top 4 for user {user} (bundle tiny)"
    assert lines[1].split() == ["#", "title", "item", "prob.", "score", "was", "why"]
    rows = [line for line in lines if line[:1].isdigit()]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    shown = answers(f"bundle={tiny_run.bundle}", f"user={user}", "k=4")
    for row, item in zip(rows, shown, strict=True):
        assert item.title in row
        assert item.item_id in row
        assert "like The" in row


def test_somebody_new(tiny_run, capsys) -> None:
    items = open_bundle(tiny_run.bundle).items.ids
    history = f"history=[{items[1].as_py()},{items[2].as_py()}]"
    assert main(["recommend", f"bundle={tiny_run.bundle}", history]) == 0
    assert "Top 10 for somebody new" in capsys.readouterr().out
    assert main(["recommend", f"bundle={tiny_run.bundle}", "user=null"]) == 0
    assert "popular: nothing is known of the user" in capsys.readouterr().out


def test_items_like_an_item_and_like_a_vector(tiny_run, tmp_path, capsys) -> None:
    bundle = open_bundle(tiny_run.bundle)
    item, title = (bundle.items.table.column(n)[5].as_py() for n in ("item_id", "title"))
    assert main(["recommend", f"bundle={tiny_run.bundle}", f"similar_to={item}", "k=3"]) == 0
    printed = capsys.readouterr().out
    assert f"Top 3 like {item} (bundle tiny)" in printed
    assert printed.count(f"like {title}") == 3
    path = tmp_path / "picture.npy"
    np.save(path, bundle.items.columns["image_vector"][5])
    where = [f"bundle={tiny_run.bundle}", f"similar_to_vector={path}"]
    assert main(["recommend", *where, "k=3"]) == 0
    printed = capsys.readouterr().out
    assert "Top 3 like picture.npy (bundle tiny)" in printed
    assert printed.count("like the vector") == 3
    assert answers(*where, "k=3") == answers(*where, "k=3", "vector_feature=image_vector")


def test_filters_and_what_they_leave(tiny_run, capsys) -> None:
    bundle = open_bundle(tiny_run.bundle)
    table = bundle.items.table
    titles = [
        title
        for title, category, price in zip(
            *(table.column(name).to_pylist() for name in ("title", "category", "price")),
            strict=True,
        )
        if category == "jazz" and price is not None and price >= 5
    ]
    given = (
        "filters=[{column: category, operator: in, values: [jazz]}, "
        "{column: price, operator: at_least, values: 5}]"
    )
    where = [f"bundle={tiny_run.bundle}", given]
    history = f"history=[{bundle.items.ids[0].as_py()}]"
    for asked in ([], [history], [f"similar_to={bundle.items.ids[0].as_py()}"]):
        assert main(["recommend", *where, *asked, "k=70"]) == 0
        printed = capsys.readouterr().out
        *lines, last = printed.splitlines()
        rows = [line for line in lines if line[:2].strip().isdigit()]
        assert len(rows) == len(titles)
        assert all(any(title in row for title in titles) for row in rows)
        missing = f"{70 - len(titles)} of 70 items are missing: the filters let no more through"
        assert last.strip() == missing
    assert main(["recommend", *where, f"k={len(titles)}"]) == 0
    assert "missing" not in capsys.readouterr().out
    assert main(["recommend", f"bundle={tiny_run.bundle}", "k=81"]) == 0
    assert "1 of 81 items are missing: there are no more" in capsys.readouterr().out


def test_quiet(tiny_run, capsys) -> None:
    assert main(["recommend", f"bundle={tiny_run.bundle}", "+quiet=true"]) == 0
    assert capsys.readouterr() == ("", "")


def test_current_a_version_and_the_home_are_one_bundle(tiny_run) -> None:
    version = (tiny_run.bundle / "current").resolve()
    places = (tiny_run.bundle, tiny_run.bundle / "current", version)
    assert len({tuple(answers(f"bundle={place}", "k=3")) for place in places}) == 1  # popular


def test_ids_that_look_like_numbers(csv_run) -> None:
    """9007199254740994 is no float64, `1e5` and `100000` are two items."""
    where = f"bundle={csv_run.bundle}"
    number, text, neighbour = (
        {item.item_id for item in answers(where, f"user={user}", "k=30")}
        for user in ("9007199254740994", "'9007199254740994'", "9007199254740995")
    )
    assert number == text != neighbour  # all but what each of them has taken
    exponent, plain = (answers(where, f"history=[{i}]", "k=1")[0] for i in ("'1e5'", "100000"))
    assert exponent.reason.startswith("like Title 1 (")
    assert plain.reason.startswith("like Title 0 (")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["user=nobody"], "error: user: 'nobody' is unknown; known are 120 users such as "),
        (
            ["history=[nothing,more]"],
            "error: history: unknown items nothing, more; known are 80 items such as",
        ),
        (["similar_to=nothing"], "error: unknown item 'nothing'; known are 80 items such as "),
        (["similar_to_vector=no.npy"], "error: no.npy: no such file or folder\n"),
        (
            ["similar_to=a", "user=b"],
            "error: give one of user or history, similar_to, similar_to_vector; got user or "
            "history and similar_to\n",
        ),
        (["vector_feature=x"], "error: vector_feature says what similar_to_vector is, and that "),
        (
            ["filters=[{column: colour, operator: in, values: [red]}]"],
            "error: filters[0].column: unknown column `colour`; allowed: `item_id`, `title`, ",
        ),
        (
            ["filters=[{column: price, operator: at_most, values: [cheap]}]"],
            "error: filters[0].values: of column `price`: must be a finite number, got 'cheap'\n",
        ),
        (
            ["filters=[{column: price}]"],
            "error: filters[0]: must be {column: <name>, operator: <in, not_in, at_least or at_mo",
        ),
        (["filters=[jazz]"], "error: filters[0]: must be {column: <name>, operator: <in, not_in,"),
        (["k=0"], "error: k: must be at least 1, got 0\n"),
        (["k=many"], "error: `k=many`: Value 'many' of type 'str' could not be converted to Int"),
        (["users=7"], "error: `users`: unknown, did you mean `user`; valid: "),
    ],
)
def test_what_cannot_be_answered(tiny_run, overrides, message, capsys) -> None:
    assert main(["recommend", f"bundle={tiny_run.bundle}", *overrides]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_text_of_others_is_no_markup(capsys) -> None:
    item = Recommendation(
        item_id="[red]7[/red]",
        title="[bold]Alien[/bold] [director's cut]",
        probability=0.125,
        retrieval_score=None,
        retrieval_rank=None,
        reason="like [x]",
    )
    Console().print(items_table("Top 1 [of many]", [item]))
    printed = capsys.readouterr().out
    for text in ("[red]7[/red]", "[bold]Alien[/bold] [director's cut]", "like [x]", "[of many]"):
        assert text in printed
    assert "0.1250" in printed


def test_vectors_of_two_bundles_are_as_large_as_planned(tiny_run, csv_run) -> None:
    sizes = []
    for run in (tiny_run, csv_run):
        path = run.bundle / "current" / "item_vectors.npy"
        num_items, dim = np.load(path).shape
        assert path.stat().st_size == vector_bytes(num_items, dim)
        sizes.append(num_items)
    assert sizes[0] > 2 * sizes[1]
