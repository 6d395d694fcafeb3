"""`--help` of a command: its own groups, its own settings, at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twotower.cli.help import help_text
from twotower.cli.main import COMMANDS, main
from twotower.config import ConfigError

WITH_CONFIG = [name for name in COMMANDS if name != "doctor"]


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_it_says_what_the_command_does(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: twotower {command} ")
    assert COMMANDS[command] in text
    assert "\n  hydra:" not in text
    assert max(map(len, text.splitlines())) <= 160


def test_groups_are_those_of_the_command_alone():
    lines = help_text("batch", []).splitlines()
    assert "  store: [lmdb], none, redis" in lines
    assert "  workers: [one_thread], ray, threads" in lines
    assert not [line for line in lines if line.startswith(("  models/", "  run_folder", "  data:"))]


def test_choices_and_values_beside_it_are_seen(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.yaml").write_text("_target_: shop.Source\npath: x.db\n")
    text = help_text("train", ["data=shop", "seed=7"], str(tmp_path))
    assert "  data: impressions, movielens, [shop], synthetic, tables" in text
    assert "  seed: 7" in text
    assert "    path: x.db" in text
    assert text.index("  data: ") < text.index("  trainer: ")  # in the order of the config


def test_a_wrong_choice_is_an_error(capsys):
    with pytest.raises(ConfigError):
        help_text("train", ["data=tabels"])
    assert main(["train", "data=tabels", "--help"]) == 2
    assert "did you mean `tables`" in capsys.readouterr().err


def test_nothing_heavy_is_loaded():
    code = (
        "import sys; from twotower.cli.main import main; main(['train', '--help'])\n"
        "print([n for n in ('torch', 'pyarrow', 'numpy', 'faiss') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
