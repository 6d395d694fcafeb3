"""Switches the parts of the retrieval loss off, one at a time, and keeps the figures.

    python benchmarks/quality/ablation.py              seeds 0, 1 and 2
    python benchmarks/quality/ablation.py --seeds 3    one more
    python benchmarks/render.py                        write RESULTS.md

The data and the model are those of ``experiment/ablation.yaml``, the parts stand in
``ablation.yaml``. A seed that is run again replaces its figures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from run import HERE, keep, train

from twotower.config_files import read_yaml

PARTS = read_yaml(HERE / "ablation.yaml")


def main(seeds: list[int]) -> None:
    """Run all variants over the seeds and keep what they gave, one by one."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for number, (name, overrides) in enumerate(PARTS.items()):
                run = Path(scratch) / f"run-{seed}-{number}"
                keep("ablation", [name, str(seed)], train("ablation", seed, run, overrides))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    main(parser.parse_args().seeds)
