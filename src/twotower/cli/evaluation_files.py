"""What `evaluate` reads beside the bundle, and what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from twotower.data.prepared import Prepared, open_prepared
from twotower.data.schema import DataError
from twotower.export.manifest import Manifest
from twotower.serving.evaluation import Evaluation
from twotower.training.run_folder import write_json

COLOURS = ("#2f7d4f", "#a34141", "#c98a2b", "#777777", "#3b6ea5")


def open_test_data(known: Mapping[str, str], folder: str | None) -> Prepared:
    """The prepared data set of a bundle.

    Args:
        known: Folder and fingerprint that the manifest names.
        folder: Where it lies now, or None for where it lay.

    Raises:
        DataError: When it is not there or is another one.
    """
    path = Path(folder or known["folder"])
    prepared = open_prepared(path)
    if prepared.manifest["fingerprint"] != known["fingerprint"]:
        raise DataError(
            [
                f"{path}: fingerprint {prepared.manifest['fingerprint']}, the bundle was trained "
                f"on {known['fingerprint']}; give its data with prepared=<folder>"
            ]
        )
    return prepared


def write_evaluation(root: Path, manifest: Manifest, evaluation: Evaluation) -> Path:
    """Write figures and plot of an evaluation.

    Args:
        root: Folder of evaluations.
        manifest: Of the bundle.
        evaluation: The figures.

    Returns:
        The folder they are in; a bundle itself is never changed.
    """
    folder = root / manifest.name / manifest.version
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in manifest.figures.items() if value is not None}
    write_json(folder / "evaluation.json", known | evaluation.metrics)
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    left = 0.0
    for (name, share), colour in zip(evaluation.attribution.shares().items(), COLOURS, strict=True):
        label = f"{name.replace('_', ' ')} {share:.1%}"
        axes.barh(["test positives"], [share], left=left, color=colour, label=label)
        left += share
    axes.set(xlim=(0, 1), title=f"Where test positives are lost, top {evaluation.k}")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.savefig(folder / "attribution.png", dpi=120)
    return folder
