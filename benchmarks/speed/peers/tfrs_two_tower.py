"""TensorFlow Recommenders: `tasks.Retrieval` on Keras towers, trained by Keras' `fit` with Adagrad.

The loader is tf.data on the columns in memory, shuffled and batched as its tutorials do. The
variant "bf16" is the same under Keras' policy `mixed_bfloat16`.
"""

from __future__ import annotations

import os
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TensorFlow Recommenders is written against Keras 2
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from measure import CACHED, WARM_UP, Clock, Run, main
from rows import ITEM_COLUMNS, USER_COLUMNS, read_events, sizes

DIM, TOWER = 32, (256, 128, 64)


class TwoTower(tfrs.Model):
    """The history shares the table of `item_id`; its last row is the padding."""

    def __init__(self, counts: dict[str, int], padding: int) -> None:
        super().__init__()
        self.padding = padding
        names = ("user_id", *USER_COLUMNS, *ITEM_COLUMNS)
        self.tables = {name: tf.keras.layers.Embedding(counts[name], DIM) for name in names}
        self.tables["item_id"] = tf.keras.layers.Embedding(padding + 1, DIM)
        self.user_tower, self.item_tower = (
            tf.keras.Sequential(
                [
                    *(tf.keras.layers.Dense(width, activation="relu") for width in TOWER[:-1]),
                    tf.keras.layers.Dense(TOWER[-1]),
                    tf.keras.layers.UnitNormalization(dtype="float32"),
                ]
            )
            for _ in range(2)
        )
        self.task = tfrs.tasks.Retrieval(temperature=0.05)

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """In-batch softmax, summed over the batch as the task does."""
        history = features["history"]  # (B, 50)
        vectors = self.tables["item_id"](history)  # (B, 50, D)
        known = tf.cast(history != self.padding, vectors.dtype)[..., None]
        mean = tf.reduce_sum(vectors * known, 1) / tf.reduce_sum(known, 1)
        user = [self.tables[name](features[name]) for name in ("user_id", *USER_COLUMNS)]
        item = [self.tables[name](features[name]) for name in ("item_id", *ITEM_COLUMNS)]
        return self.task(
            self.user_tower(tf.concat([*user, mean], axis=1)),
            self.item_tower(tf.concat(item, axis=1)),
        )


class Steps(tf.keras.callbacks.Callback):
    """Runs the clock around each step of `fit`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """A batch was handed over."""
        self.clock.begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Its weights are updated."""
        self.losses.append(float((logs or {})["loss"]))
        self.clock.end()


def train(run: Run, clock: Clock) -> tuple[float, float]:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(0)
    if run.variant == "bf16":
        tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    counts = sizes(run.data)
    padding = counts["item_id"]
    events = read_events(run.data, run.rows)
    every = np.arange(len(events.users))
    table = events.take(every) | {"history": events.padded_history(every, padding)}
    loader = tf.data.Dataset.from_tensor_slices(
        {name: column.astype(np.int32) for name, column in table.items()}
    )
    loader = loader.shuffle(len(every)).batch(run.batch, drop_remainder=True)
    if run.mode == "step":
        loader = loader.take(CACHED).cache()
    ready = time.process_time()
    model = TwoTower(counts, padding)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(learning_rate=0.1))
    steps = Steps(clock)
    total = WARM_UP + run.steps
    model.fit(loader.repeat(), epochs=1, steps_per_epoch=total, callbacks=[steps], verbose=0)
    return ready, sum(steps.losses) / len(steps.losses) / run.batch


if __name__ == "__main__":
    main("tensorflow-recommenders", ("adagrad", "bf16"), train)
