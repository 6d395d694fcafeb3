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
    warm_start: str | None = None
    evict_vanished: bool = False
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
    ranker_precision: str = "float32"
    triton: Any = False
    quiet: bool = False
    index: Any = MISSING
    gates: Any = MISSING


@dataclass
class RetrainConfig:
    """Fields that `retrain` reads."""

    bundle: str = MISSING
    interactions: str = MISSING
    users: str | None = None
    items: str | None = None
    run: str | None = None
    max_epochs: int = 1
    evict_vanished: bool = False
    output_dir: str = "runs"
    prepared_dir: str = "prepared"
    quiet: bool = False
    losses: Any = MISSING
    index: Any = MISSING
    gates: Any = MISSING


@dataclass
class RollbackConfig:
    """Fields that `rollback` reads."""

    bundle: str = MISSING
    version: str | None = None
    quiet: bool = False


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
    filters: list[Any] = field(default_factory=list)
    k: int = 10
    quiet: bool = False


@dataclass
class BatchConfig:
    """Fields that `batch` reads."""

    bundle: str = MISSING
    name: str | None = None
    k: int = 100
    filters: list[Any] = field(default_factory=list)
    seconds: int | None = None
    chunk_size: int = 8192
    keep: int = 1
    ttl_days: float | None = 7.0
    max_failed_share: float = 0.01
    output_dir: str = "batches"
    quiet: bool = False
    store: Any = MISSING
    workers: Any = MISSING


@dataclass
class LookupConfig:
    """Fields that `lookup` reads."""

    name: str = MISSING
    user: Any = MISSING
    k: int | None = None
    max_age_hours: float | None = None
    quiet: bool = False
    store: Any = MISSING


@dataclass
class ServeConfig:
    """Fields that `serve` reads."""

    bundle: str = MISSING
    host: str = "127.0.0.1"
    port: int = 8080
    processes: int = 1
    max_batch: int = 16
    max_waiting: int = 128
    max_in_flight: int | None = None
    deadline_ms: int = 1000
    grace_seconds: float = 20.0
    reload_seconds: float = 1.0
    api_key_file: str | None = None
    journal: str | None = None
    batch_store: str | None = None
    batch_max_age_hours: float | None = None
    traffic: str | None = None
    traffic_per_second: float = 10.0
    traffic_days: int = 30
    access_log: bool = True
    page: bool = True
    quiet: bool = False


@dataclass
class ExplainConfig:
    """Fields that `explain` reads."""

    bundle: str = MISSING
    item: Any = MISSING
    user: Any = None
    history: list[Any] = field(default_factory=list)
    filters: list[Any] = field(default_factory=list)
    k: int = 10
    quiet: bool = False


@dataclass
class PlanConfig:
    """Fields that `plan` reads; the machine is one with eight GPUs, as NVIDIA's DGX H100 is."""

    users: float = MISSING
    items: float = MISSING
    dim: int = 64
    embedding_dim: int | None = None
    precision: str = "float32"
    optimizer: str = "rowwise_adagrad"
    hidden: list[int] = field(default_factory=lambda: [128])
    interactions_per_day: float | None = None
    positive_share: float = 1.0
    window_days: int = 30
    epochs: int = 3
    history: int = 20
    batch: int = 8192
    negatives: int = 512
    training_hours: float = 24.0
    queries_per_second: float = 1000.0
    latency_ms: float = 50.0
    recall: float = 0.95
    candidates: int = 200
    stored_items: int = 100
    index: list[str] = field(
        default_factory=lambda: ["flat", "ivf_flat", "ivf_pq", "hnsw", "cagra"]
    )
    gpu: str = "h100"
    gpu_memory_gb: float | None = None
    gpus: int = 8
    cores: int = 112
    ram_gb: float = 2000.0
    output: str | None = None
    quiet: bool = False


@dataclass
class MonitorConfig:
    """Fields that `monitor` reads."""

    bundle: str = MISSING
    interactions: str | None = None
    traffic: str | None = None
    reference: str | None = None
    previous: str | None = None
    users: str | None = None
    items: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    on_bad_rows: str = "fail"
    max_repeated: float = 0.01
    watch: Any = False
    poll_seconds: float = 60.0
    false_alarm_rate: float = 0.05
    output_dir: str = "monitoring"
    quiet: bool = False
    data_drift: Any = MISSING
    concept_drift: Any = MISSING
    model_drift: Any = MISSING


SCHEMAS = (
    *(TrainConfig, ExportConfig, EvaluateConfig, RecommendConfig, ExplainConfig, ServeConfig),
    *(EmbedConfig, BatchConfig, LookupConfig, PlanConfig, MonitorConfig),
    *(RetrainConfig, RollbackConfig),
)
