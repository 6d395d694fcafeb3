"""An export that is killed between any two of its steps in the file system.

One child process loads the models; it forks once for each point, and the fork kills itself there.
It knows nothing of the export: it counts the audit events that Python raises for every open, mkdir,
rename and the like.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twotower.export.build import ExportParts, ExportResult

CHILD = """
import importlib.util, json, os, signal, sys, traceback
from pathlib import Path

import faiss, pytest, torch
from twotower.data.prepared import open_prepared
from twotower.export.bundle import BundleError, open_bundle

conftest, prepared, exported, root = (Path(argument) for argument in sys.argv[1:])
spec = importlib.util.spec_from_file_location("world", conftest)
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
parts = world.make_parts(open_prepared(prepared))
world.skip_onnx(pytest.MonkeyPatch(), exported)
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}


def export(root, deadly=0):
    "Export in a fork and kill it before step `deadly`; how it ended and how many steps it took."
    read, write = os.pipe()
    child = os.fork()
    if not child:
        steps = 0

        def count(event, arguments):
            nonlocal steps
            if event in STEPS and str(root) in str(arguments[0]):
                steps += 1
                if steps == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            world.export_world(parts, root)
            os.write(write, str(steps).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    steps = os.read(read, 100).decode()
    os.close(read)
    return os.waitstatus_to_exitcode(status), int(steps or 0)


def current(home):
    "The version that readers find, after all of it was verified; None where there is none."
    try:
        return open_bundle(home).folder.name
    except BundleError as error:
        assert "no bundle here" in str(error), error
        return None


def observe(root, point):
    "What an export that is killed leaves, and what the next one makes of it."
    home = root / "world"
    before = current(home)
    status, _ = export(root, point)
    found = dict(point=point, status=status, before=before, after=current(home))
    found["left"] = sorted(path.name for path in home.glob(".[!l]*"))
    found["next_status"], found["steps"] = export(root)
    found["next"] = current(home)
    found["next_left"] = sorted(path.name for path in home.glob(".[!l]*"))
    found["versions"] = sorted(path.name for path in home.glob("[!.]*"))
    return found


export(root / "measure")
_, num_steps = export(root / "measure")
last = range(num_steps - 8, num_steps + 1)
early = range(1, last[0], num_steps // 6)
first = [observe(root / f"first-{point}", point) for point in (num_steps // 2, num_steps - 10)]
later = [observe(root / "measure", point) for point in (*early, *last)]
print(json.dumps({"first": first, "later": later}))
"""


@pytest.fixture(scope="module")
def observed(
    exported: ExportResult, parts: ExportParts, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    folders = (parts.prepared.folder, exported.folder, tmp_path_factory.mktemp("killed"))
    conftest = Path(__file__).with_name("conftest.py")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, (conftest, *folders))],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    for point in (*found["first"], *found["later"]):
        assert point["status"] == -9, done.stderr
        assert point["next_status"] == 0, done.stderr
    return found


def test_current_stays_or_is_the_new_one_and_is_whole(
    observed: dict[str, list[dict[str, Any]]],
) -> None:
    for point in observed["later"]:
        assert point["before"] is not None
        assert point["after"] == point["before"] or point["after"] > point["before"]
    # Killed between the rename of the link and the end: the new version is the published one.
    assert observed["later"][-1]["after"] > observed["later"][-1]["before"]
    assert observed["later"][0]["after"] == observed["later"][0]["before"]


def test_without_a_published_version_there_is_still_none(
    observed: dict[str, list[dict[str, Any]]],
) -> None:
    for point in observed["first"]:
        assert (point["before"], point["after"]) == (None, None)


def test_the_next_export_succeeds_and_cleans_up(
    observed: dict[str, list[dict[str, Any]]],
) -> None:
    left = [name for point in observed["later"] for name in point["left"]]
    assert sum(name.startswith(".staging-") for name in left) > 5
    assert any(name.startswith(".current-") for name in left)
    for point in (*observed["first"], *observed["later"]):
        assert point["next_left"] == [".published"]
        assert point["next"] == [name for name in point["versions"] if name != "current"][-1]
