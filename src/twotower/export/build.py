"""A trained run to a published bundle: data, both stages, golden requests, gates, publishing.

Shape letters: K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from twotower.data.prepared import Prepared
from twotower.export import manifest as names
from twotower.export.checks import check_features, check_precision
from twotower.export.data_files import catalogue_only, counts, write_data
from twotower.export.gates import (
    INDEX_RECALL,
    PARITY,
    SAME_TOP,
    SAME_TOP_ALONE,
    Gate,
    GateSettings,
    Measured,
    check_gates,
    known,
)
from twotower.export.golden import Requests, impression_requests
from twotower.export.manifest import FORMAT, Manifest
from twotower.export.parts import ExportParts as ExportParts
from twotower.export.screen_stage import Screen, export_screen
from twotower.export.stages import (
    RankingStage,
    RetrievalStage,
    export_ranking,
    export_retrieval,
    golden_answers,
)
from twotower.export.writer import BundleWriter, bundle_writer, publish, published
from twotower.index.base import IndexBuilder


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

    @property
    def passed(self) -> bool:
        """Whether all gates were passed."""
        return all(gate.passed for gate in self.gates)


def export_bundle(
    *,
    parts: ExportParts,
    root: Path,
    name: str,
    index_builder: IndexBuilder,
    gate_settings: GateSettings,
    num_candidates: int,
    ranker_precision: str = "float32",
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
        ranker_precision: ``float32``, or ``int8`` for a second ranker that screens the candidates.
        progress: Whether to show a progress bar.

    Returns:
        What became of it; when a gate says no the version folder stays, and ``current`` is where it
        was.

    Raises:
        ValueError: When run and data do not fit together; then nothing is left behind.
    """
    with staged_bundle(
        parts=parts,
        root=root,
        name=name,
        index_builder=index_builder,
        gate_settings=gate_settings,
        num_candidates=num_candidates,
        ranker_precision=ranker_precision,
        progress=progress,
    ) as staged:
        if not staged.passed:
            return staged
        publish(staged.folder)
        return replace(staged, published=True)


@contextmanager
def staged_bundle(
    *,
    parts: ExportParts,
    root: Path,
    name: str,
    index_builder: IndexBuilder,
    gate_settings: GateSettings,
    num_candidates: int,
    ranker_precision: str = "float32",
    progress: bool = False,
) -> Iterator[ExportResult]:
    """Write a bundle without publishing it; nobody else exports under its name meanwhile.

    Args:
        parts: As all others, see `export_bundle`.
        root: See there.
        name: See there.
        index_builder: See there.
        gate_settings: See there.
        num_candidates: See there.
        ranker_precision: See there.
        progress: See there.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
    check_precision(parts, ranker_precision)
    check_features(parts)
    data = catalogue_only(parts.prepared)
    with (
        tqdm(total=_num_steps(parts, ranker_precision), disable=not progress, leave=False) as bar,
        bundle_writer(root, name) as writer,
    ):
        write_data(writer.folder, data, parts.pipeline)
        retrieval = _retrieval(parts, data, writer.folder, index_builder, num_candidates, bar)
        requests = impression_requests(data) if retrieval is None else retrieval.requests
        ranking = _ranking(parts, data, writer.folder, requests, retrieval, bar)
        golden_answers(data, requests, retrieval, ranking).save(writer.folder / names.GOLDEN)
        screen = _screen(parts, data, writer.folder, num_candidates, ranker_precision, bar)
        if parts.describe is not None:
            bar.set_description("export: reference")
            parts.describe(writer.folder, data)
        measured = Measured(
            figures=_figures(parts, retrieval, ranking, screen),
            stages=parts.stages,
            fingerprint=parts.prepared.manifest["fingerprint"],
        )
        previous = published(writer.home)
        gates = check_gates(gate_settings, measured, known(previous))
        k = None if retrieval is None else num_candidates
        bar.set_description("export: writing")
        folder = writer.finish(
            _manifest(writer, parts, data, retrieval, k, measured, gates, ranker_precision)
        )
        bar.update()
        yield ExportResult(folder=folder, published=False, gates=gates, previous=previous)


def _num_steps(parts: ExportParts, ranker_precision: str) -> int:
    stages = 3 * (parts.two_tower is not None) + (parts.ranker is not None)
    return stages + (ranker_precision == "int8") + 1


def _manifest(
    writer: BundleWriter,
    parts: ExportParts,
    data: Prepared,
    retrieval: RetrievalStage | None,
    num_candidates: int | None,
    measured: Measured,
    gates: Sequence[Gate],
    ranker_precision: str,
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
        ranker_precision=None if parts.ranker is None else ranker_precision,
        remove_seen=parts.remove_seen,
        counts=counts(data),
        index=None if retrieval is None else retrieval.index,
        prepared={"folder": str(data.folder.resolve()), "fingerprint": measured.fingerprint},
        figures=measured.figures,
        gates=[asdict(gate) for gate in gates],
        files={},
        space=None if retrieval is None else parts.space or retrieval.tower_hash,
        run=parts.run,
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
    retrieval = export_retrieval(
        parts.two_tower.cpu().eval(),
        parts.pipeline.inputs("retrieval"),
        data,
        folder,
        index_builder=index_builder,
        num_candidates=num_candidates,
        remove_seen=parts.remove_seen,
        bar=bar,
    )
    towers = retrieval.tower_hash
    belongs = {names.TOWER_HASH: towers, names.SPACE: parts.space or towers}
    (folder / names.TOWER).write_text(json.dumps(belongs) + "\n")
    return retrieval


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


def _screen(
    parts: ExportParts,
    data: Prepared,
    folder: Path,
    num_candidates: int,
    ranker_precision: str,
    bar: tqdm,
) -> Screen | None:
    if parts.two_tower is None or ranker_precision != "int8":
        return None
    return export_screen(
        parts.two_tower,
        parts.pipeline.inputs("retrieval"),
        parts.pipeline.inputs("ranking"),
        data,
        folder,
        num_candidates=num_candidates,
        remove_seen=parts.remove_seen,
        bar=bar,
    )


def _figures(
    parts: ExportParts,
    retrieval: RetrievalStage | None,
    ranking: RankingStage | None,
    screen: Screen | None,
) -> dict[str, float]:
    figures = dict(parts.figures)
    figures[PARITY] = max(stage.parity for stage in (retrieval, ranking) if stage is not None)
    if retrieval is not None:
        figures[INDEX_RECALL] = retrieval.index_recall
    if screen is not None:
        figures[SAME_TOP] = screen.same_top
        figures[SAME_TOP_ALONE] = screen.same_top_alone
    return figures
