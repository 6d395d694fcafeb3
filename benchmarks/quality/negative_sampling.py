"""What a ranker loses that is trained on a twentieth of the negatives, drawn anew in every epoch.

    python benchmarks/quality/negative_sampling.py              worlds 0, 1 and 2
    python benchmarks/quality/negative_sampling.py --seeds 3    one more
    python benchmarks/render.py                                 write RESULTS.md

The ranker of ``experiment=demo``, alone, on the built-in world with 8,000 users: among 160,000 test
impressions chance makes a smaller calibration error than among the demo's 40,000. An epoch of the
sample is a sixth of the whole, so it trains for six times as many. The test part is whole in both,
and predictions are those of the exported ranker: the sampling undone, calibrated on validation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from run import keep, train

RATE = "training.examples.impressions.negative_rate"
FORMS = {
    "all negatives": [f"{RATE}=1.0"],
    "one in twenty": [
        *(f"{RATE}=0.05", "training.ranking.max_epochs=18", "training.ranking.patience=12"),
    ],
}


def main(seeds: list[int]) -> None:
    """Train both on some worlds and keep what they gave, one by one."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for number, (name, overrides) in enumerate(FORMS.items()):
                run = Path(scratch) / f"run-{seed}-{number}"
                world = ["data.num_users=8000", f"data.seed={seed}"]
                further = ["stages=[ranking]", *world, *overrides]
                found = train("demo", seed, run, further)
                keep("negative_sampling", [name, str(seed)], found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    main(parser.parse_args().seeds)
