"""The doctor's command: arguments, table, exit status."""

import pytest

from twotower.cli import doctor
from twotower.planning.doctor import Finding


@pytest.fixture
def findings(monkeypatch):
    """The findings to be shown, and what the examination was asked."""
    asked, found = [], []

    def examine(facts, *, folder, data):
        asked.append((str(folder), None if data is None else str(data)))
        return found

    monkeypatch.setattr(doctor, "gather", lambda: None)
    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setenv("COLUMNS", "200")
    return asked, found


def test_healthy_machine(findings, capsys):
    asked, found = findings
    found += [
        Finding(name="torch", state="ok", detail="2.13.0"),
        Finding(name="disk", state="warn", detail="3 GB", remedy="tidy"),
    ]
    assert doctor.main([]) == 0
    assert asked == [(".", None)]
    assert "2.13.0" in capsys.readouterr().out


def test_something_needed_is_broken(findings, capsys):
    found = findings[1]
    remedy = "`pip install -e '.[cpu]'`"
    found.append(Finding(name="faiss", state="fail", detail="gone", remedy=remedy))
    assert doctor.main([]) == 2
    assert remedy in capsys.readouterr().out


def test_paths_are_handed_on(findings, tmp_path):
    assert doctor.main([f"folder={tmp_path}", "data=/some/where=x"]) == 0
    assert findings[0] == [(str(tmp_path), "/some/where=x")]


def test_wrong_arguments_are_listed_together(findings, capsys):
    assert doctor.main(["dta=1", "data=", "folder=nowhere"]) == 2
    shown = capsys.readouterr().err
    assert "`dta`: unknown, did you mean `data`; valid: data, folder" in shown
    assert "`data`: must be a path, as in `data=<path>`" in shown
    assert "`folder`: no folder `nowhere`" in shown
    assert findings[0] == []


def test_help(capsys):
    assert doctor.main(["--help"]) == 0
    assert "data=<path>" in capsys.readouterr().out
