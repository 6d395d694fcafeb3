"""What is refused before a bundle is begun."""

from __future__ import annotations

from twotower.data.prepared import FEATURES_FOLDER
from twotower.export.manifest import BundleError
from twotower.export.parts import ExportParts
from twotower.features.pipeline import FeaturePipeline

PRECISIONS = ("float32", "int8")


def check_precision(parts: ExportParts, ranker_precision: str) -> None:
    """Refuse a ranker of integers where there is nothing to be screened, and unknown precisions.

    Args:
        parts: What the run gives.
        ranker_precision: ``float32`` or ``int8``.

    Raises:
        ValueError: Says what is allowed.
    """
    if ranker_precision not in PRECISIONS:
        allowed = ", ".join(PRECISIONS)
        raise ValueError(f"ranker_precision: must be one of {allowed}, got {ranker_precision!r}")
    if ranker_precision == "int8" and (parts.two_tower is None or parts.ranker is None):
        raise ValueError(
            "ranker_precision: int8 screens the candidates of a retrieval for a ranker; the run "
            f"has {' and '.join(parts.stages)} alone"
        )


def check_features(parts: ExportParts) -> None:
    """The encoded columns are those of the data set, so its features must be those of the run.

    Args:
        parts: What the run gives.

    Raises:
        BundleError: When they are not.
    """
    folder = parts.prepared.folder / FEATURES_FOLDER
    found, expected = FeaturePipeline.load(folder).digest(), parts.pipeline.digest()
    if found != expected:
        raise BundleError(
            [
                f"{folder}: digest of the features {found}, the run was trained with {expected}; "
                "train again on this data set"
            ]
        )
