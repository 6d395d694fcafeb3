"""The typed fields of every command: those that our own code reads.

Each stands in a defaults list as ``<command>_schema``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainConfig:
    """Fields that `train` and `prepare` read."""

    name: str = MISSING
    seed: int = 0
    stages: list[str] = field(default_factory=lambda: ["retrieval", "ranking"])
    catalogue: str = "all"
    output_dir: str = MISSING
    prepared_dir: str = "prepared"
    resume: str | None = None
    quiet: bool = False
    data: Any = MISSING
    workers: Any = None
    split: Any = MISSING
    features: Any = MISSING
    models: Any = MISSING
    losses: Any = MISSING
    training: Any = MISSING
    trainer: Any = MISSING
    evaluation: Any = MISSING


@dataclass
class ExportConfig:
    """Fields that `export` reads."""

    run: str = MISSING
    name: str | None = None
    output_dir: str = "bundles"
    num_candidates: int = 200
    quiet: bool = False
    index: Any = MISSING
    gates: Any = MISSING


@dataclass
class EvaluateConfig:
    """Fields that `evaluate` reads."""

    bundle: str = MISSING
    prepared: str | None = None
    output_dir: str = "evaluations"
    quiet: bool = False
    evaluation: Any = MISSING


@dataclass
class EmbedConfig:
    """Fields that `embed` reads."""

    model: str = MISSING
    items: str = MISSING
    output: str = "item_vectors.parquet"
    item_id: str = "item_id"
    vector: str = "content_vector"
    tensor: str | None = None
    batch_size: int = 32
    quiet: bool = False
    encoder_input: Any = MISSING


@dataclass
class RecommendConfig:
    """Fields that `recommend` reads."""

    bundle: str = MISSING
    user: Any = None
    history: list[Any] = field(default_factory=list)
    similar_to: Any = None
    similar_to_vector: str | None = None
    vector_feature: str | None = None
    k: int = 10
    quiet: bool = False


SCHEMAS = (TrainConfig, ExportConfig, EvaluateConfig, RecommendConfig, EmbedConfig)
