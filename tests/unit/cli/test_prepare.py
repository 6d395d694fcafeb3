"""`twotower prepare`: data without models, and so without what models need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twotower.cli.main import main

CODE = """
import sys
from twotower.cli.main import main
status = main(sys.argv[1:])
print([name for name in ("torch", "pytorch_lightning", "scipy.stats") if name in sys.modules])
sys.exit(status)
"""


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},i{(user + n) % 7},{100 * user + n}" for user in range(9) for n in range(5)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return ["prepare", "data=tables", "data.interactions=log.csv"]


def test_it_starts_without_torch_and_says_what_it_has_made(log, tmp_path):
    command = [sys.executable, "-c", CODE, *log, "split=leave_one_out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    [folder] = (tmp_path / "prepared").iterdir()
    assert f"prepared data: prepared/{folder.name}" in done.stdout
    assert "interactions 45" in done.stdout


def test_what_it_builds_is_checked_and_overrides_of_the_rest_are_composed(log, capsys):
    assert main([*log, "split.validation_share=much"]) == 2
    assert "`split.validation_share`: must be float, got 'much'" in capsys.readouterr().err
    assert main([*log, "models.retrieval.dimm=3"]) == 2
    assert "did you mean `dim`" in capsys.readouterr().err
