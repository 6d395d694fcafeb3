"""The commands that are killed: where each begins, its words, its result, and what must stay whole.

A base folder is made once and copied for every kill. It holds what was published before: prepared
data, a finished run, a bundle, lists in a store.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kill_and_resume import end_state  # noqa: E402

from tests.conftest import TINY_EXPORT, TINY_MODELS  # noqa: E402
from tests.world_windows import DATA, write_windows  # noqa: E402
from twotower.cli.main import main  # noqa: E402
from twotower.data.prepared import open_prepared  # noqa: E402
from twotower.data.synthetic import SyntheticSource  # noqa: E402
from twotower.export import manifest as names  # noqa: E402
from twotower.export.bundle import open_bundle  # noqa: E402
from twotower.serving.store import open_reader  # noqa: E402

WORLD = SyntheticSource(
    num_users=60, num_items=40, num_days=20, slates_per_user=10, slate_size=6, seed=0
)
TABLES = (*DATA, "data.users=users.parquet", "data.items=items-0.parquet")
FIRST, SECOND = "data.interactions=window-0.parquet", "data.interactions=window-1.parquet"
MODELS = (
    *("losses/retrieval=sampled_softmax_queue", "models.retrieval.dropout=0.2"),
    *("trainer.checkpoint_every=3", "evaluation.ks=[5,10]", "training.retrieval.monitor=recall@10"),
)
GATES = (*TINY_EXPORT, "gates.quality_metric=retrieval/test/recall@5")
EXPORT = (*GATES, "num_candidates=15")
WRITTEN_AT = 1_760_000_000


class Command(Protocol):
    """A command that may be killed anywhere."""

    name: str

    def words(self, work: Path) -> list[str]:
        """Its words, in the folder as it is: new, or left by a killed one."""

    def result(self, work: Path) -> Any:
        """What it ends with, to be compared bit by bit."""

    def hurt(self, work: Path) -> list[str]:
        """What was published before and is no longer whole, in words."""

    def around(self, whole: Path) -> Callable[[Path], None] | None:
        """Called in its process before it; `whole` is the folder of one that was not killed."""


@dataclass(frozen=True)
class CopiedOnnx:
    """Copies the ONNX files of an earlier export of the same weights, which take seconds to make.

    The export itself holds them against the models' own answers.

    Args:
        bundle: That export.
    """

    bundle: Path

    def __call__(self, work: Path) -> None:
        """Put the copying into the place of the exporter."""
        from twotower.export import stages

        made = (
            ("export_query_tower", names.QUERY_TOWER),
            ("export_item_tower", names.ITEM_TOWER),
            ("export_ranker", names.RANKER),
        )
        for function, name in made:
            setattr(stages, function, _Copy(self.bundle / name))


@dataclass(frozen=True)
class _Copy:
    source: Path

    def __call__(self, *given: Any, **options: Any) -> None:
        shutil.copyfile(self.source, next(value for value in given if isinstance(value, Path)))


def make_base(folder: Path) -> None:
    """Tables in two windows; the first one prepared, trained on, exported, and scored for all."""
    folder.mkdir()
    write_windows(folder, WORLD, [0.5, 1.0])
    train = ("hydra.run.dir=runs/tiny/earlier", "name=tiny", *TABLES, FIRST)
    with chdir(folder):
        for words in (
            ["train", *train, *TINY_MODELS, *MODELS],
            ["export", "run=runs/tiny/earlier", *EXPORT],
            ["batch", "bundle=bundles/tiny", f"seconds={WRITTEN_AT}", "k=5", *BATCH],
        ):
            if main(words) != 0:
                sys.exit(f"{words[0]} failed")


BATCH = ("chunk_size=8", "ttl_days=null", "store.path=stores", "quiet=true")


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path; without locks."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != ".lock"
    }


def broken(opening: Callable[[], object], what: str) -> list[str]:
    """What is no longer whole."""
    try:
        opening()
    except (ValueError, OSError) as error:
        return [f"{what}: {error}"]
    return []


def bundle_files(work: Path) -> dict[str, str]:
    """Digests of the files of the published bundle, but of profiles, whose sketches draw lots."""
    found = open_bundle(work / "bundles" / "tiny").manifest.files
    return {name: digest for name, digest in found.items() if not name.startswith("reference/")}


def bundle_hurt(work: Path) -> list[str]:
    """Whether what is published is no whole bundle."""
    return broken(lambda: open_bundle(work / "bundles" / "tiny"), "bundle")


class Prepare:
    """Prepares the second window beside the first."""

    name = "prepare"

    def words(self, work: Path) -> list[str]:
        """See `Command`."""
        return ["prepare", *TABLES, SECOND, "quiet=true"]

    def result(self, work: Path) -> Any:
        """See `Command`."""
        return files(work / "prepared")

    def hurt(self, work: Path) -> list[str]:
        """See `Command`."""
        folders = (path.parent for path in work.glob("prepared/[!.]*/manifest.json"))
        return [
            problem for path in folders for problem in broken(lambda p=path: open_prepared(p), "")
        ]

    def around(self, whole: Path) -> None:
        """See `Command`."""
        return None


class Train:
    """Trains both stages; after a kill it is resumed, or begun again where nothing was."""

    name = "train"

    def words(self, work: Path) -> list[str]:
        """See `Command`."""
        run = work / "runs" / "tiny" / "killed"
        if (run / "config.yaml").is_file():
            return ["train", f"resume={run}", "quiet=true"]
        return ["train", f"hydra.run.dir={run}", "name=tiny", *TABLES, FIRST, *TINY_MODELS, *MODELS]

    def result(self, work: Path) -> Any:
        """See `Command`."""
        left = [path.name for path in (work / "runs").rglob(".*")]
        latest = (work / "runs" / "tiny" / "latest").resolve().name
        return end_state(work / "runs" / "tiny" / "killed"), left, latest

    def hurt(self, work: Path) -> list[str]:
        """See `Command`."""
        latest = (work / "runs" / "tiny" / "latest").resolve().name
        run = work / "runs" / "tiny" / "earlier"
        whole = broken(lambda: end_state(run), "the earlier run")
        return whole + ([] if latest in ("earlier", "killed") else [f"latest is {latest}"])

    def around(self, whole: Path) -> None:
        """See `Command`."""
        return None


class Export:
    """Exports the run once more and publishes it."""

    name = "export"

    def words(self, work: Path) -> list[str]:
        """See `Command`."""
        return ["export", "run=runs/tiny/earlier", *EXPORT]

    def result(self, work: Path) -> Any:
        """See `Command`."""
        left = [path.name for path in work.glob("bundles/tiny/.[!l]*")]
        return bundle_files(work), left

    def hurt(self, work: Path) -> list[str]:
        """See `Command`."""
        return bundle_hurt(work)

    def around(self, whole: Path) -> Callable[[Path], None]:
        """See `Command`."""
        return CopiedOnnx((whole / "bundles" / "tiny" / "current").resolve())


class Batch:
    """Writes longer lists of a later time over those that are there."""

    name = "batch"

    def words(self, work: Path) -> list[str]:
        """See `Command`."""
        later = f"seconds={WRITTEN_AT + 60}"
        return ["batch", "bundle=bundles/tiny", later, "k=10", *BATCH]

    def result(self, work: Path) -> Any:
        """See `Command`."""
        return files((work / "batches" / "tiny" / "current" / "lists").resolve()), self.lists(work)

    def lists(self, work: Path) -> list[Any]:
        """What is found of every user."""
        users = pq.read_table(work / "users.parquet")["user_id"].to_pylist()
        look = open_reader(str(work / "stores" / "tiny"))
        return [(one.status, one.written_at, one.items) for one in map(look.lookup, users)]

    def hurt(self, work: Path) -> list[str]:
        """See `Command`."""
        found = {(status, at, len(items)) for status, at, items in self.lists(work)}
        whole = ({("found", WRITTEN_AT, 5)}, {("found", WRITTEN_AT + 60, 10)})
        return [] if found in whole else [f"lists of {found}"]

    def around(self, whole: Path) -> None:
        """See `Command`."""
        return None


class Retrain:
    """Makes the next version of the bundle, of the second window."""

    name = "retrain"

    def words(self, work: Path) -> list[str]:
        """See `Command`."""
        words = ["retrain", "bundle=bundles/tiny", "interactions=window-1.parquet", "max_epochs=1"]
        return [*words, "items=items-1.parquet", *GATES]

    def result(self, work: Path) -> Any:
        """See `Command`."""
        (run,) = (work / "runs" / "tiny").glob("retrain-*")
        left = [path.name for path in work.glob("bundles/tiny/.[!l]*")]
        report = (run / "retrain.json").is_file()
        return end_state(run), bundle_files(work), left, report

    def hurt(self, work: Path) -> list[str]:
        """See `Command`."""
        return bundle_hurt(work)

    def around(self, whole: Path) -> Callable[[Path], None]:
        """See `Command`."""
        return CopiedOnnx((whole / "bundles" / "tiny" / "current").resolve())


COMMANDS: tuple[Command, ...] = (Prepare(), Train(), Export(), Batch(), Retrain())
