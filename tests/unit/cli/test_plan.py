"""`twotower plan`: from the command line to tables, words and a file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from twotower.cli.main import main
from twotower.cli.plan import plan
from twotower.config import compose
from twotower.config_schema import PlanConfig

SHOP = ("users=1e5", "items=2e4")


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def cells(printed: str, first: str) -> list[str]:
    """The numbers of the row that begins with some words."""
    [line] = [line for line in printed.splitlines() if line.strip().startswith(first)]
    return line.replace(first, "").split()


def test_tables_and_words(capsys, tmp_path) -> None:
    assert main(["plan", "users=1e8", "items=1e9", "dim=64"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    # 1.1e9 rows of 64 float32, in either stage; one accumulator a row.
    assert cells(printed.out, "embedding tables") == ["282", "GB", "282", "GB"]
    assert cells(printed.out, "optimiser of the tables") == ["4.40", "GB", "4.40", "GB"]
    assert cells(printed.out, "item vectors") == ["256", "GB"]
    assert cells(printed.out, "examples") == ["9,000,000,000", "36,000,000,000"]
    for kind in ("flat", "ivf_flat", "ivf_pq", "hnsw", "cagra"):
        assert f" {kind} " in printed.out
    assert printed.out.count("chosen") == 1
    words = " ".join(printed.out.split())
    assert "- Training: tables and optimiser of a stage take 286 GB" in words
    assert "with TorchRec (row-wise sharding)" in words
    assert list(tmp_path.iterdir()) == []


def test_a_small_business_and_eighty_columns(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", *SHOP, "gpu=none"]) == 0
    printed = capsys.readouterr().out
    assert "no GPU is needed" in printed
    assert "cagra" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_the_file(capsys, tmp_path) -> None:
    assert main(["plan", *SHOP, "output=plan.json", "+quiet=true"]) == 0
    assert capsys.readouterr() == ("", "")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["question"]["users"] == 100_000
    assert document["training"]["stages"][0]["tables"] == (120_000 + 2) * 64 * 4
    assert document["chosen"]["option"]["kind"] == "flat"
    assert document["advice"][0].startswith("Training: ")


def test_numbers_of_every_kind() -> None:
    cfg = compose("plan", ["users=250000", "items=1.5e4", "interactions_per_day=2e5", "quiet=true"])
    question = plan(cfg).question
    assert (question.users, question.items) == (250_000, 15_000)
    assert question.num_interactions == 6_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["items=1e6"], "error: `users`: missing, a value must be given\n"),
        (["users=0", "items=1e6"], "error: `users` must be a whole number of at least 1, got 0\n"),
        (
            ["users=0.5", "items=9"],
            "error: `users` must be a whole number of at least 1, got 0.5\n",
        ),
        (
            ["users=nan", "items=9"],
            "error: `users` must be a whole number of at least 1, got nan\n",
        ),
        (
            ["users=inf", "items=9"],
            "error: `users` must be a whole number of at least 1, got inf\n",
        ),
        (["users=9", "items=3e9"], "error: `items` must be at most 2,147,483,647, rows are "),
        ([*SHOP, "dim=0"], "error: `dim` must be a whole number of at least 1, got 0\n"),
        ([*SHOP, "recall=95"], "error: `recall` must lie in (0, 1], got 95.0\n"),
        ([*SHOP, "recal=0.9"], "error: `recal`: unknown, did you mean `recall`; valid: "),
        ([*SHOP, "gpu=h1000"], "error: `gpu` must be one of h100, h200, a100, l4, none, got h1000"),
        ([*SHOP, "users=many"], "error: `users=many`: Value 'many' of type 'str' could not be "),
        ([*SHOP, "output=plan.txt"], "error: `output` must be <name>.json in a folder that is "),
        ([*SHOP, "output=no/plan.json"], "error: `output` must be <name>.json in a folder that "),
    ],
)
def test_what_is_refused(overrides, message, capsys, tmp_path) -> None:
    assert main(["plan", *overrides]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_it_does_without_torch() -> None:
    code = (
        "import sys; from twotower.cli.main import main\n"
        "main(['plan', 'users=10', 'items=10', 'quiet=true']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_page_on_capacity_shows_what_is_printed(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = Path(__file__).parents[3] / "docs" / "capacity.md"
    section = page.read_text(encoding="utf-8").split("## A billion items")[1].split("\n## ")[0]
    command = section.split("```bash\n")[1].splitlines()[0].split()
    shown = [line for line in section.split("```text\n")[1].split("```")[0].splitlines() if line]
    assert main(command[1:]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(shown) > 15
    assert [line for line in shown if line != "..." and line not in printed] == []


def test_the_page_names_every_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
    asked = page.split("## What it is asked")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in asked.splitlines() if line.startswith("| `")]
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named | {"output", "quiet"} == {field.name for field in fields(PlanConfig)}
