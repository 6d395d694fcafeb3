"""The dispatcher: finds commands, imports them only when asked."""

import subprocess
import sys
import types

import pytest

from twotower.cli.main import COMMANDS, main


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag, capsys):
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in ("prepare", "train", "export", "evaluate", "recommend", "doctor"):
        assert [line for line in lines if line.strip().startswith(f"{command} ")]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("twotower 0.")


def test_unknown_command_names_the_closest(capsys):
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no command `trian`, did you mean `train`\n")
    assert captured.out == ""


def test_no_command(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: no command given\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_gets_the_rest_and_gives_the_status(command, monkeypatch):
    module = types.ModuleType(f"twotower.cli.{command}")
    module.main = lambda argv: 3 if argv == ["a=1", "--help"] else 1
    monkeypatch.setitem(sys.modules, f"twotower.cli.{command}", module)
    assert main([command, "a=1", "--help"]) == 3


def test_dispatcher_and_entry_wrapper_load_nothing_heavy():
    heavy = ("torch", "pytorch_lightning", "faiss", "onnxruntime", "pyarrow", "matplotlib")
    code = (
        "import sys, twotower.cli.main, twotower.cli.run, twotower.cli.doctor\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
