"""What a recommender of some size needs: memory, disk, GPUs, hours, cores, and which index.

The formulas stand in `capacity_memory`, `capacity_work`, `capacity_index` and `capacity_recall`,
each with its source and a test that holds it against a real object at two sizes; here they are put
together. What no machine here could hold, a billion items, is these formulas on paper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from twotower.planning.capacity_memory import (
    prepared_bytes,
    preparing_bytes,
    store_bytes,
    vector_bytes,
)
from twotower.planning.capacity_question import Question
from twotower.planning.capacity_serving import ServingPlan, choose, model_bytes, plan_serving
from twotower.planning.capacity_training import TrainingPlan, plan_training


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes that are neither a model's in training nor an index.

    Args:
        prepared: Of the prepared data set, on disk.
        preparing: Of memory, while it is made.
        checkpoints: Of both stages, on disk.
        vectors: Of the item vectors in a bundle.
        models: Of memory, for the exported models and what they look up, on a machine that serves.
        store: Of the key-value store that a batch job fills.
    """

    prepared: int
    preparing: int
    checkpoints: int
    vectors: int
    models: int
    store: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer.

    Args:
        question: What was asked.
        training: Both stages.
        storage: Disk and memory besides.
        serving: With each kind of index.
        chosen: The one to take, or None where none can be taken.
    """

    question: Question
    training: TrainingPlan
    storage: Storage
    serving: tuple[ServingPlan, ...]
    chosen: ServingPlan | None

    @property
    def exporting(self) -> int:
        """Bytes of memory while the chosen index is built from the vectors; 0 without one."""
        if self.chosen is None:
            return 0
        return self.storage.vectors + self.chosen.option.ram + self.chosen.option.gpu

    def document(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)


def plan(question: Question) -> Plan:
    """Plan for a business of some size.

    Args:
        question: What is planned for.
    """
    training, serving = plan_training(question), plan_serving(question)
    storage = Storage(
        prepared=prepared_bytes(
            num_interactions=question.num_interactions,
            num_events=question.num_events,
            num_users=question.users,
            num_items=question.items,
        ),
        preparing=preparing_bytes(question.num_interactions),
        checkpoints=sum(stage.checkpoints for stage in training.stages),
        vectors=vector_bytes(question.items, question.dim),
        models=model_bytes(question),
        store=store_bytes(question.users, question.stored_items),
    )
    return Plan(
        question=question,
        training=training,
        storage=storage,
        serving=serving,
        chosen=choose(serving),
    )


def index_command(serving: ServingPlan) -> str:
    """The overrides of `export` that build an index.

    Args:
        serving: With that index.
    """
    shards = [f"index.num_shards={serving.num_shards}"] if serving.num_shards > 1 else []
    return " ".join([f"index={serving.option.kind}", *serving.option.overrides, *shards])
