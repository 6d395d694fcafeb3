"""A trained run to a published bundle: data, both stages, golden requests, gates, publishing.

Shape letters: K candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.export import manifest as names
from twotower.export.bundle import Golden
from twotower.export.data_files import catalogue_only, counts, write_data
from twotower.export.gates import INDEX_RECALL, PARITY, Gate, GateSettings, Measured, check_gates
from twotower.export.golden import Requests, impression_requests
from twotower.export.manifest import (
    FORMAT,
    BundleError,
    Manifest,
    read_manifest,
)
from twotower.export.stages import RankingStage, RetrievalStage, export_ranking, export_retrieval
from twotower.export.writer import BundleWriter, bundle_writer, publish, published
from twotower.features.pipeline import FeaturePipeline
from twotower.index.base import IndexBuilder
from twotower.losses.calibration import Calibration
from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportParts:
    """What a run gives.

    Args:
        prepared: The data set it was trained on.
        pipeline: Its features with their fitted state.
        two_tower: The towers, or None; the export moves them to the CPU.
        ranker: The ranker, or None; the export moves it to the CPU.
        calibration: From the ranker's logits to probabilities; None without one.
        remove_seen: Whether items that a user took before are kept out of the recommendations.
        figures: Metrics of the run by name.

    Raises:
        ValueError: When there is no model, or the ranker lacks what it needs.
    """

    prepared: Prepared
    pipeline: FeaturePipeline
    two_tower: TwoTower | None
    ranker: DCNv2 | None
    calibration: Calibration | None
    remove_seen: bool
    figures: Mapping[str, float]

    def __post_init__(self) -> None:
        problems = []
        if self.two_tower is None and self.ranker is None:
            problems.append("export: the run has neither towers nor a ranker; one is needed")
        if self.ranker is not None and self.calibration is None:
            problems.append("export: a ranker needs its `calibration`")
        if self.ranker is not None and self.ranker.takes_retrieval and self.two_tower is None:
            problems.append("export: the ranker takes the score of the towers, but there are none")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the run has trained."""
        models = {"retrieval": self.two_tower, "ranking": self.ranker}
        return tuple(stage for stage, model in models.items() if model is not None)

    @property
    def retrieval_score(self) -> bool:
        """Whether the ranker takes the score of the retrieval."""
        return self.ranker is not None and self.ranker.score_scale is not None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What became of an export.

    Args:
        folder: The version folder.
        published: Whether ``current`` points to it now.
        gates: How it stood at the gates.
        previous: What ``current`` pointed to before, or None.
    """

    folder: Path
    published: bool
    gates: tuple[Gate, ...]
    previous: Path | None


def export_bundle(
    *,
    parts: ExportParts,
    root: Path,
    name: str,
    index_builder: IndexBuilder,
    gate_settings: GateSettings,
    num_candidates: int,
    progress: bool = False,
) -> ExportResult:
    """Write a bundle, and publish it when it passes its gates.

    Args:
        parts: What the run gives.
        root: Folder of all bundles.
        name: Name of the bundle; its version is the time.
        index_builder: Makes the index.
        gate_settings: What the bundle must prove.
        num_candidates: How many items the retrieval hands to the ranker, K.
        progress: Whether to show a progress bar.

    Returns:
        What became of it; when a gate says no the version folder stays, and ``current`` is where it
        was.

    Raises:
        ValueError: When run and data do not fit together; then nothing is left behind.
    """
    _check_features(parts)
    data = catalogue_only(parts.prepared)
    with (
        tqdm(total=_num_steps(parts), disable=not progress, leave=False) as bar,
        bundle_writer(root, name) as writer,
    ):
        write_data(writer.folder, data, parts.pipeline)
        retrieval = _retrieval(parts, data, writer.folder, index_builder, num_candidates, bar)
        requests = impression_requests(data) if retrieval is None else retrieval.requests
        ranking = _ranking(parts, data, writer.folder, requests, retrieval, bar)
        _golden(data, requests, retrieval, ranking).save(writer.folder / names.GOLDEN)
        measured = Measured(
            figures=_figures(parts, retrieval, ranking),
            stages=parts.stages,
            fingerprint=parts.prepared.manifest["fingerprint"],
        )
        previous = published(writer.home)
        gates = check_gates(gate_settings, measured, _known(previous))
        k = None if retrieval is None else num_candidates
        bar.set_description("export: writing")
        folder = writer.finish(_manifest(writer, parts, data, retrieval, k, measured, gates))
        bar.update()
        passed = all(gate.passed for gate in gates)
        if passed:
            publish(folder)
    return ExportResult(folder=folder, published=passed, gates=gates, previous=previous)


def _num_steps(parts: ExportParts) -> int:
    return 3 * (parts.two_tower is not None) + (parts.ranker is not None) + 1


def _manifest(
    writer: BundleWriter,
    parts: ExportParts,
    data: Prepared,
    retrieval: RetrievalStage | None,
    num_candidates: int | None,
    measured: Measured,
    gates: Sequence[Gate],
) -> Manifest:
    return Manifest(
        format=FORMAT,
        name=writer.home.name,
        version=writer.version,
        created=writer.created.isoformat(timespec="seconds"),
        stages=parts.stages,
        metric=None if parts.two_tower is None else parts.two_tower.metric,
        dim=None if retrieval is None else retrieval.query_vectors.shape[1],
        tower_hash=None if retrieval is None else retrieval.tower_hash,
        feature_digest=parts.pipeline.digest(),
        calibration=None if parts.calibration is None else asdict(parts.calibration),
        num_candidates=num_candidates,
        retrieval_score=parts.retrieval_score,
        remove_seen=parts.remove_seen,
        counts=counts(data),
        index=None if retrieval is None else retrieval.index,
        prepared={"folder": str(data.folder.resolve()), "fingerprint": measured.fingerprint},
        figures=measured.figures,
        gates=[asdict(gate) for gate in gates],
        files={},
    )


def _check_features(parts: ExportParts) -> None:
    """The encoded columns are those of the data set, so its features must be those of the run."""
    folder = parts.prepared.folder / FEATURES_FOLDER
    found, expected = FeaturePipeline.load(folder).digest(), parts.pipeline.digest()
    if found != expected:
        raise BundleError(
            [
                f"{folder}: digest of the features {found}, the run was trained with {expected}; "
                "train again on this data set"
            ]
        )


def _retrieval(
    parts: ExportParts,
    data: Prepared,
    folder: Path,
    index_builder: IndexBuilder,
    num_candidates: int,
    bar: tqdm,
) -> RetrievalStage | None:
    if parts.two_tower is None:
        return None
    return export_retrieval(
        parts.two_tower.cpu().eval(),
        parts.pipeline.inputs("retrieval"),
        data,
        folder,
        index_builder=index_builder,
        num_candidates=num_candidates,
        remove_seen=parts.remove_seen,
        bar=bar,
    )


def _ranking(
    parts: ExportParts,
    data: Prepared,
    folder: Path,
    requests: Requests,
    retrieval: RetrievalStage | None,
    bar: tqdm,
) -> RankingStage | None:
    if parts.ranker is None or parts.calibration is None:
        return None
    return export_ranking(
        parts.ranker.cpu().eval(),
        parts.pipeline.inputs("ranking"),
        data,
        folder,
        calibration=parts.calibration,
        requests=requests,
        found=None if retrieval is None else retrieval.found,
        bar=bar,
    )


def _golden(
    data: Prepared,
    requests: Requests,
    retrieval: RetrievalStage | None,
    ranking: RankingStage | None,
) -> Golden:
    context = data.interactions.context
    return Golden(
        context={name: np.asarray(c[requests.interactions]) for name, c in context.items()},
        user_rows=requests.user_rows,
        history_ends=requests.history_ends,
        query_vectors=None if retrieval is None else retrieval.query_vectors,
        candidates=requests.candidates() if retrieval is None else retrieval.found.rows,
        candidate_scores=None if retrieval is None else retrieval.found.scores,
        logits=None if ranking is None else ranking.logits,
        probabilities=None if ranking is None else ranking.probabilities,
    )


def _figures(
    parts: ExportParts, retrieval: RetrievalStage | None, ranking: RankingStage | None
) -> dict[str, float]:
    figures = dict(parts.figures)
    figures[PARITY] = max(stage.parity for stage in (retrieval, ranking) if stage is not None)
    if retrieval is not None:
        figures[INDEX_RECALL] = retrieval.index_recall
    return figures


def _known(version: Path | None) -> Measured | None:
    """What is known of a published version; None where there is none that can be read."""
    if version is None:
        return None
    try:
        manifest = read_manifest(version)
    except BundleError as error:
        log.warning("The published bundle cannot be compared with: %s", error)
        return None
    return Measured(
        figures=manifest.figures,
        stages=manifest.stages,
        fingerprint=manifest.prepared["fingerprint"],
    )
