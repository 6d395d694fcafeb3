"""Mistakes of a newcomer, through the real commands: one message, exit status 2, nothing left.

The catalogue is in `mistakes/`. What a command says is held against four rules: the exit status is
that of bad input; the error stream ends with one message and holds no traceback; the message quotes
what was received and says what is allowed or to be done; no file is there that was not before,
unless it is whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TinyRun
from tests.end_to_end.mistakes import columns, machine, places, tables, words
from tests.end_to_end.mistakes.mistake import Mistake, Place, files_of
from tests.warm_process import NOT_ALLOWED, Ended, call
from twotower.cli.main import main
from twotower.data.prepared import open_prepared

CATALOGUE = [
    (kind, mistake)
    for group in (tables, columns, words, places, machine)
    for kind, mistakes in group.MISTAKES.items()
    for mistake in mistakes
]


def test_there_are_sixty_and_none_twice() -> None:
    names = [mistake.what for _, mistake in CATALOGUE]
    assert len(names) >= 60
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "mistake", [pytest.param(m, id=f"{kind}: {m.what}") for kind, m in CATALOGUE]
)
def test_a_mistake(
    mistake: Mistake,
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    argv = list(mistake.words(Place(work=work, tiny=tiny_run)))
    before = files_of(work)
    if mistake.around is None:
        capfd.readouterr()
        status = main(argv)
        out, err = capfd.readouterr()
        ended = Ended(status=status, out=out, err=err, files=tuple(files_of(work)))
    else:
        ended = call(argv, work, mistake.around, tmp_path / "said")
    if ended.status == NOT_ALLOWED:
        pytest.skip(ended.err)
    check_message(mistake, ended)
    after = files_of(work)
    assert {name: content for name, content in after.items() if name in before} == before
    new = {Path(name) for name in {*after, *ended.files} - {*before}}
    new = {path for path in new if path.name != ".lock" and path.parts[0] != "site"}
    assert {path.parts[0] for path in new} <= set(mistake.leaves), sorted(new)
    assert not [path for path in new if path.parts[0] == "small" and path.name.startswith(".")]
    for folder in work.glob("prepared/*"):
        open_prepared(folder)  # whole, or it says that it is not


def check_message(mistake: Mistake, ended: Ended) -> None:
    assert ended.status == mistake.status, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    _, mark, message = ended.err.partition("error: ")
    assert mark, ended.err
    assert "error: " not in message
    assert mistake.received in message
    assert mistake.then in message
