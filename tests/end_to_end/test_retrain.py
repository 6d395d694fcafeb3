"""`twotower retrain`: the next version of a bundle, published only when it is no worse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY_EXPORT, export_tiny, train_tiny
from tests.world_windows import DATA, write_windows
from twotower.cli.main import main
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import Drift
from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender

SOURCE = SyntheticSource(
    num_users=200,
    num_items=120,
    num_days=40,
    slates_per_user=30,
    slate_size=6,
    seed=0,
    drift=Drift(start_share=0.5, taste_shift=0.5),
)
QUALITY = "gates.quality_metric=retrieval/test/recall@20"
OPTIONS = (*TINY_EXPORT, "max_epochs=2", QUALITY)


@dataclass(frozen=True)
class Shop:
    """A folder with windows and a published bundle."""

    work: Path

    @property
    def bundle(self) -> Path:
        return self.work / "bundles" / "tiny"

    @property
    def current(self) -> str:
        return open_bundle(self.bundle).folder.name

    def retrain(self, *words: str, window: str = "window-1.parquet") -> int:
        with chdir(self.work):
            return main(["retrain", "bundle=bundles/tiny", f"interactions={window}", *words])

    def reports(self) -> list[dict]:
        paths = sorted(
            self.work.glob("runs/tiny/retrain-*/retrain.json"), key=lambda p: p.stat().st_mtime
        )
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The first window, trained on and published."""
    work = tmp_path_factory.mktemp("shop")
    write_windows(work, SOURCE, [0.5, 1.0])
    with chdir(work):
        paths = ["data.users=users.parquet", "data.items=items-0.parquet"]
        run = train_tiny(
            work,
            [*DATA, "data.interactions=window-0.parquet", *paths],
            *("training.retrieval.max_epochs=6", "trainer.checkpoint_every=5"),
            *("evaluation.ks=[5,10,20]", "training.retrieval.monitor=recall@10"),
        )
        export_tiny(work, run, "num_candidates=20", QUALITY)
    return work


def copy(made: Path, target: Path) -> Shop:
    return Shop(Path(shutil.copytree(made, target / "shop", symlinks=True)))


@pytest.fixture(scope="module")
def renewed(made, tmp_path_factory) -> tuple[Shop, str]:
    """After a window of turned tastes, and the version before it."""
    shop = copy(made, tmp_path_factory.mktemp("renewed"))
    before = shop.current
    assert shop.retrain("items=items-1.parquet", *OPTIONS) == 0
    return shop, before


def test_the_next_version_is_published_and_the_last_one_kept(renewed):
    shop, before = renewed
    assert shop.current != before
    assert open_bundle(shop.bundle / before).folder.name == before
    (report,) = shop.reports()
    assert report["published"]
    assert report["reasons"] == []
    assert Path(report["old"]).name == before
    assert Path(report["new"]).name == shop.current
    compared = {one["name"]: one for one in report["compared"]}
    assert compared["retrieval/recall@20"]["difference"]["low"] > 0
    assert all(gate["passed"] for gate in report["gates"])


def test_ids_keep_their_rows(renewed):
    shop, before = renewed
    old, new = (
        open_bundle(shop.bundle / name).pipeline.transforms["item_id"].vocabulary.values
        for name in (before, "current")
    )
    assert len(new) > len(old)
    assert new[: len(old)].equals(old)
    assert shop.reports()[0]["rows"]["item_id"] == [1 + len(old), 1 + len(new)]


def test_new_items_are_recalled_from_day_one(renewed):
    shop, _ = renewed
    (report,) = shop.reports()
    of_new = next(one for one in report["compared"] if "new_items" in one["name"])
    assert of_new["old"]["value"] == 0
    assert of_new["new"]["low"] > 0


def test_the_space_is_that_of_the_measurement(renewed):
    shop, before = renewed
    (report,) = shop.reports()
    old, new = (open_bundle(shop.bundle / name).manifest.space for name in (before, "current"))
    assert old is not None
    assert report["space"]["space"] == new
    assert report["space"]["inherited"] == (old == new)
    recall = report["space"]["recall"]
    held = min(recall["old_queries_new_items"], recall["new_queries_old_items"])
    assert report["space"]["inherited"] == (held >= 0.95 * recall["old_queries_old_items"])


def test_both_versions_answer(renewed):
    shop, before = renewed
    for name in (before, "current"):
        answers = Recommender(open_bundle(shop.bundle / name)).recommend(user="u000003", k=5)
        assert len(answers) == 5


def shuffle_training_part(path: Path, target: Path) -> None:
    """Break the link of users and items everywhere but in the newest tenth."""
    log = pq.read_table(path)
    times = log.column("timestamp").cast(pa.int64()).to_numpy()
    old = times < np.quantile(times, 0.9)
    order = np.arange(len(times))
    order[old] = np.random.default_rng(0).permutation(order[old])
    place = log.column_names.index("item_id")
    shuffled = log.column("item_id").take(pa.array(order))
    pq.write_table(log.set_column(place, "item_id", shuffled), target)


def test_a_worse_version_is_refused(made, tmp_path, capsys):
    """A window with broken labels is trained on; the newest part, which is right, tells."""
    shop = copy(made, tmp_path)
    before = shop.current
    shuffle_training_part(shop.work / "window-0.parquet", shop.work / "broken.parquet")
    words = ("items=items-0.parquet", *OPTIONS, "max_epochs=8", "losses/alignment=none")
    assert shop.retrain(*words, window="broken.parquet") == 3
    assert shop.current == before
    report = shop.reports()[-1]
    assert not report["published"]
    assert "is worse by" in " ".join(report["reasons"])
    assert "refused: not published: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "window", "message"),
    [
        (["bundle=bundles/none"], "window-1.parquet", "no bundle here"),
        ([], "none.parquet", "none.parquet"),
        (["run=nowhere"], "window-1.parquet", "its run is not in nowhere; say where with run="),
        (["items=users.parquet"], "window-1.parquet", "item_id"),
    ],
)
def test_bad_input_has_one_message_and_changes_nothing(made, words, window, message, capsys):
    shop = Shop(made)
    before = shop.current
    assert shop.retrain(*words, *OPTIONS, window=window) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert shop.current == before


def test_a_version_that_is_not_published_is_refused(renewed, capsys):
    shop, before = renewed
    assert shop.retrain(f"bundle=bundles/tiny/{before}", *OPTIONS) == 2
    assert "retraining goes on from what is published" in capsys.readouterr().err


def test_a_ranker_alone_is_renewed_by_hand(click_run, tmp_path, capsys):
    current = (click_run.bundle / "current").resolve()
    with chdir(tmp_path):
        words = [f"bundle={click_run.bundle}", "interactions=clicks.csv", *TINY_EXPORT]
        assert main(["retrain", *words]) == 2
        assert not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert (
        "holds no retrieval stage; `twotower train warm_start=<run>` and `twotower export`" in said
    )
    assert (click_run.bundle / "current").resolve() == current


CHILD = """
import json, os, random, signal, sys
from pathlib import Path

import torch
from twotower.cli import retraining, retrain_tables
from twotower.cli.main import main
from twotower.export.bundle import open_bundle

torch.set_num_threads(1)
work, deadly = Path(sys.argv[1]), int(sys.argv[2])
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}
steps = 0

def count(event, arguments):
    global steps
    if event in STEPS and str(work) in os.path.abspath(str(arguments[0])):
        steps += 1
        if steps == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

os.chdir(work)
sys.addaudithook(count)
status = main(["retrain", *sys.argv[3:]])
print(json.dumps([status, steps]))
"""


def run_child(shop: Shop, deadly: int) -> subprocess.CompletedProcess[str]:
    words = ["bundle=bundles/tiny", "interactions=window-1.parquet", "items=items-1.parquet"]
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(shop.work), str(deadly), *words, *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def num_steps(made, tmp_path_factory) -> int:
    """Steps in the file system of a retraining that nobody disturbs."""
    done = run_child(copy(made, tmp_path_factory.mktemp("whole")), 0)
    status, steps = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    return steps


@pytest.mark.parametrize(
    "share",
    [0.62, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.04, 0.21, 0.4, 0.8, 0.9, 0.97))],
)
def test_a_killed_retraining_hurts_nothing_and_goes_on(made, num_steps, tmp_path, share):
    """Killed by SIGKILL at a step in the file system; then made again with the same words."""
    shop = copy(made, tmp_path)
    before = shop.current
    killed = run_child(shop, int(share * num_steps))
    assert killed.returncode == -9, killed.stderr
    assert shop.current == before
    again = run_child(shop, 0)
    status, steps = json.loads(again.stdout.splitlines()[-1])
    assert status == 0, again.stderr
    assert steps < num_steps or share < 0.3  # what was done is not done again
    assert shop.current != before
    assert not [p for p in shop.bundle.iterdir() if p.name.startswith((".staging", ".current"))]
