"""torch-rechub: its DCNv2 (full-rank cross layers beside the perceptron), trainer and loader."""

from __future__ import annotations

import time

import torch
from measure import Clock, Run, main
from rows import read_clicks, sizes
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCNv2
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

DIM, LAYERS, CROSS_LAYERS = 16, [256, 128, 64], 3


def train(run: Run, clock: Clock) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    counts = sizes(run.data)
    clicks = read_clicks(run.data, run.rows, run.large)
    table = {**clicks.categorical, **clicks.dense}
    rest = {"x_val": table, "y_val": clicks.labels, "x_test": table, "y_test": clicks.labels}
    generator = DataGenerator(table, clicks.labels)
    loader, _, _ = generator.generate_dataloader(**rest, batch_size=run.batch)
    ready = time.process_time()
    features = [
        *(SparseFeature(name, vocab_size=counts[name], embed_dim=DIM) for name in clicks.names),
        *(DenseFeature(name) for name in clicks.dense),
    ]
    model = DCNv2(
        features,
        n_cross_layers=CROSS_LAYERS,
        mlp_params={"dims": LAYERS},
        model_structure="parallel",
        use_low_rank_mixture=False,
    )
    trainer = CTRTrainer(model, n_epoch=1)
    return ready, trainer.train_one_epoch(clock.batches(loader))


if __name__ == "__main__":
    main("torch-rechub DCNv2", ("parallel",), train)
