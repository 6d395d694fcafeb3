"""`twotower explain`: from the command line to a sentence and two tables."""

from __future__ import annotations

import pytest
from rich.console import Console

from twotower.cli.explain import explain
from twotower.cli.explain_tables import places_table
from twotower.cli.main import main
from twotower.config import compose
from twotower.export.bundle import open_bundle
from twotower.index.cells import Probe
from twotower.serving.explanation import Explanation, Places


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_sentence_and_where_the_item_stands(tiny_run, capsys) -> None:
    bundle = open_bundle(tiny_run.bundle)
    user = bundle.users.ids[3].as_py()
    where = [f"bundle={tiny_run.bundle}", f"user={user}", "k=4"]
    item = bundle.items.ids[20].as_py()
    about = explain(compose("explain", [*where, f"item={item}"]))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert main(["explain", *where, f"item={item}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == about.sentence
    first, *lines = printed.out.splitlines()
    assert first == about.sentence
    assert f"{about.title} ({item}) for user {user}" in printed.out
    cells = {}
    for line in lines:
        for step in ("score, exact search", "of what may be shown", "candidate", "ranker", "shown"):
            if line.startswith(step):
                cells[step] = line.removeprefix(step).split()[:2]
    places = about.places

    def said(place: int | None) -> str:
        return "-" if place is None else str(place)

    assert cells == {
        "score, exact search": [said(places.exact_rank), "80"],
        "of what may be shown": [said(places.allowed_rank), str(places.num_allowed)],
        "candidate": [said(places.candidate_rank), str(places.num_candidates)],
        "ranker": [said(places.ranker_rank), str(places.num_candidates)],
        "shown": [said(places.place), "4"],
    }
    assert f"probability {places.probability:.4f}, logit {places.logit:.3f}" in printed.out
    words = " ".join(printed.out.split())
    assert "by occlusion: how much lower the retrieval's score and the ranker's logit are" in words
    for part in about.contributions:
        (line,) = [line for line in lines if line.startswith(f"{part.feature} ")]
        assert f"{part.logit:+.3f}" in line
        assert part.score is None or f"{part.score:+.3f}" in line


def test_filters_histories_and_somebody_new(tiny_run, capsys) -> None:
    items = open_bundle(tiny_run.bundle).items
    row = items.table["category"].to_pylist().index("jazz")
    where = [f"bundle={tiny_run.bundle}", f"item={items.ids[row].as_py()}"]
    rule = "filters=[{column: category, operator: not_in, values: [jazz]}]"
    assert main(["explain", *where, rule, f"history=[{items.ids[0].as_py()}]"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "Left out by a filter: `category` not in [jazz]; the item has jazz.\n"
    )
    assert "for somebody new" in printed
    assert "would be; probability" in printed
    assert main(["explain", *where, "k=80"]) == 0
    printed = capsys.readouterr().out
    assert "nothing is known of the user, and popular items are shown." in printed
    assert "occlusion" not in printed


def test_the_cell_of_an_inverted_file() -> None:
    probe = Probe(cell=17, place=40, num_probes=31)
    places = Places(
        num_items=1000, num_allowed=900, num_candidates=20, score=0.5, exact_rank=7, probe=probe
    )
    about = Explanation(
        item_id="[red]7[/red]",
        title="[bold]Alien[/bold]",
        version="1",
        k=10,
        outcome="lost_by_index",
        sentence="Lost.",
        places=places,
    )
    console = Console(record=True, width=120)
    console.print(places_table("[bold]Alien[/bold] ([red]7[/red])", about))
    text = console.export_text()
    assert "cell 17, 40. nearest; 31 looked into" in text
    assert "[bold]Alien[/bold] ([red]7[/red])" in text
    assert "ranker" not in text


def test_quiet(tiny_run, capsys) -> None:
    item = open_bundle(tiny_run.bundle).items.ids[0].as_py()
    assert main(["explain", f"bundle={tiny_run.bundle}", f"item={item}", "+quiet=true"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["item=nothing"], "error: item: 'nothing' is unknown; known are 80 items such as "),
        (["item=i00000", "user=nobody"], "error: user: 'nobody' is unknown; known are 120 users"),
        (["item=i00000", "k=0"], "error: k: must be at least 1, got 0\n"),
        (
            ["item=i00000", "filters=[{column: x, operator: in, values: [1]}]"],
            "error: filters[0].column: unknown column `x`; allowed: `item_id`, ",
        ),
        (["item=i00000", "filters=[1]"], "error: filters[0]: must be {column: <name>, operator: "),
        ([], "error: `item`: "),
        (["item=i00000", "items=7"], "error: `items`: unknown, did you mean `item`; valid: "),
    ],
)
def test_what_cannot_be_explained(tiny_run, overrides, message, capsys) -> None:
    assert main(["explain", f"bundle={tiny_run.bundle}", *overrides]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
