"""From a published bundle and a new window to the next version.

Every step leaves what it made where a second call finds it: the prepared data by their fingerprint,
the run by a digest of all that decides what it is. So a call that was killed is made again with the
same words and goes on; until its last step, which moves ``current`` at once, nothing that is
published has changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from twotower.cli.load_run import load_run, open_data
from twotower.cli.run import TRAINING_NEEDS
from twotower.cli.train import train
from twotower.config import build, check
from twotower.config_files import read_yaml
from twotower.data.prepared import FEATURES_FOLDER
from twotower.data.schema import DataError
from twotower.export.build import staged_bundle
from twotower.export.bundle import Bundle, open_bundle
from twotower.export.gates import Gate
from twotower.export.writer import publish, published
from twotower.features.pipeline import FeaturePipeline
from twotower.serving.comparison import Compared, compare_bundles
from twotower.serving.recommender import Recommender
from twotower.training.cross_version import Space
from twotower.training.run_folder import CONFIG, read_metrics, write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

REPORT = "retrain.json"
TABLES = "twotower.data.tables.TableSource"
SPEC_FILE = "twotower.config_files.spec_file"
# Cuts of the split that belong to the old window.
CUTS = ("validation_from", "test_from")


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """What happened.

    Args:
        old: Version that was published.
        new: Version that was made.
        published: Whether the new one is published now.
        reasons: Why it is not; empty where it is.
        run: Folder of the run.
        seconds: Of training, by stage.
        rows: Rows of the tables by feature: known before, in the new version.
        space: Of the new version's vectors, None without a retrieval stage that says it.
        gates: How the new version stood at its gates.
        compared: Both versions on the newest window.
    """

    old: Path
    new: Path
    published: bool
    reasons: Sequence[str]
    run: Path
    seconds: dict[str, float]
    rows: dict[str, tuple[int, int]]
    space: Space | None
    gates: Sequence[Gate]
    compared: Sequence[Compared]

    @property
    def report(self) -> Path:
        """The file that says all of this."""
        return self.run / REPORT

    def save(self) -> None:
        """Write the report."""
        document = asdict(self)
        document |= {name: str(getattr(self, name)) for name in ("old", "new", "run")}
        write_json(self.report, document)


def next_version(cfg: DictConfig) -> Retrained:
    """Make the next version of a bundle, and publish it when it is not worse.

    Args:
        cfg: Config of the command.

    Raises:
        DataError: When the bundle is not the published one, its run is gone, or the window cannot
            be used.
    """
    old = _published_bundle(Path(cfg.bundle))
    run = _run_of(old, cfg.run)
    training = training_config(cfg, old, run)
    check(training, TRAINING_NEEDS)
    train(training, summary=False)
    trained = load_run(Path(training.output_dir))
    home = old.folder.parent
    with staged_bundle(
        parts=trained.parts(read_metrics(trained.folder)),
        root=home.parent,
        name=home.name,
        index_builder=build(cfg.index),
        gate_settings=build(cfg.gates),
        num_candidates=old.manifest.num_candidates or 0,
        ranker_precision=old.manifest.ranker_precision or "float32",
        progress=not cfg.quiet,
    ) as staged:
        compared = compare_bundles(
            Recommender(old),
            Recommender(open_bundle(staged.folder)),
            trained.prepared,
            build(training.evaluation),
        )
        reasons = [f"gate {gate.name}" for gate in staged.gates if not gate.passed]
        reasons += [
            f"{one.name} is worse by {-one.difference.value:.4f}, {one.difference}"
            for one in compared
            if one.is_worse
        ]
        if published(home) != old.folder:
            reasons.append(f"another version was published meanwhile, {published(home)}")
        done = Retrained(
            old=old.folder,
            new=staged.folder,
            published=not reasons,
            reasons=reasons,
            run=trained.folder,
            seconds=_seconds(trained.folder, training.stages),
            rows=_rows(old.pipeline, trained.pipeline),
            space=Space.load(trained.folder),
            gates=staged.gates,
            compared=compared,
        )
        if done.published:
            publish(staged.folder)
        done.save()
    return done


def _published_bundle(path: Path) -> Bundle:
    bundle = open_bundle(path)
    current = published(bundle.folder.parent)
    if current != bundle.folder:
        raise DataError(
            [f"bundle={path}: the published version is {current or 'none'}; retraining goes on "
             "from what is published"]
        )  # fmt: skip
    if bundle.query_tower is None:
        raise DataError(
            [f"bundle={path}: holds no retrieval stage; `twotower train warm_start=<run>` and "
             "`twotower export` renew a ranker alone"]
        )  # fmt: skip
    return bundle


def _run_of(bundle: Bundle, given: str | None) -> Path:
    """Folder of the run that a bundle was exported from."""
    folder = given or bundle.manifest.run
    if folder is None or not (Path(folder) / CONFIG).is_file():
        raise DataError(
            [f"{bundle.folder}: its run is not in {folder}; say where with run=<folder>"]
        )
    digest = FeaturePipeline.load(Path(folder) / FEATURES_FOLDER).digest()
    space = Space.load(Path(folder))
    if digest != bundle.manifest.feature_digest or (
        space is not None and space.space != bundle.manifest.space
    ):
        raise DataError([f"{folder}: is not the run that {bundle.folder} was exported from"])
    return Path(folder)


def training_config(cfg: DictConfig, bundle: Bundle, run: Path) -> DictConfig:
    """The config of the run, on the new window.

    Args:
        cfg: Config of the command.
        bundle: The published bundle.
        run: Its run.
    """
    training = read_yaml(run / CONFIG)
    training.data = _window(cfg, training.data, run, bundle)
    for name in CUTS:
        if name in training.split:
            training.split[name] = None
    training.features = {"_target_": SPEC_FILE, "path": str((run / "features.yaml").resolve())}
    training.warm_start, training.evict_vanished = str(run.resolve()), cfg.evict_vanished
    training.losses.alignment = cfg.losses.alignment
    for stage in training.stages:
        training.training[stage].max_epochs = cfg.max_epochs
        training.training[stage].min_steps = 0
    training.resume, training.quiet = None, cfg.quiet
    training.name, training.prepared_dir = bundle.manifest.name, cfg.prepared_dir
    decides: dict[str, Any] = {
        "version": bundle.manifest.version,
        "data": build(training.data).fingerprint(),
        "config": {
            name: OmegaConf.to_container(training[name])
            for name in ("training", "losses", "split", "stages")
        },
        "evict": cfg.evict_vanished,
    }
    digest = blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder = Path(cfg.output_dir).resolve() / training.name
    training.output_dir = str(folder / f"retrain-{digest}")
    return training


def _window(cfg: DictConfig, data: DictConfig, run: Path, bundle: Bundle) -> DictConfig:
    """The tables of the new window, read as those of the run were."""
    if data.get("_target_") == TABLES:
        node = data.copy()
    else:
        label = open_data(run).manifest["label"]
        context = [f.source_column for f in bundle.pipeline.spec.features if f.side == "context"]
        node = OmegaConf.create(
            {
                "_target_": TABLES,
                "users": None,
                "items": None,
                "columns": {},
                "label": None
                if label is None
                else {"_target_": "twotower.data.tables.declared_label", **label},
                "context": [name for name in context if name != "timestamp"],
                "on_bad_rows": "fail",
                "name": "window",
            }
        )
    node.interactions = cfg.interactions
    for name in ("users", "items"):
        if cfg[name] is not None:
            node[name] = cfg[name]
    return node


def _rows(old: FeaturePipeline, new: FeaturePipeline) -> dict[str, tuple[int, int]]:
    return {
        name: (transform.num_rows, new.transforms[name].num_rows)
        for name, transform in old.transforms.items()
        if transform.num_rows
    }


def _seconds(run: Path, stages: Sequence[str]) -> dict[str, float]:
    figures = read_metrics(run)
    return {stage: figures[f"{stage}/train/seconds"] for stage in stages}
