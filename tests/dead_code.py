"""What nobody calls: `make check` runs this and fails where the package holds anything of the kind.

Vulture reads names. Callers are the package itself, the benchmarks, the notebooks, and the configs,
whose ``_target_`` names classes and functions; not the tests, which would keep anything alive.

python tests/dead_code.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from vulture import Vulture

ROOT = Path(__file__).parents[1]

# What is called from elsewhere, and by whom. A name that is not found unused any more has to go.
CALLED_BY = {
    "Lightning": [
        *("on_*", "configure_optimizers", "train_description", "storage_options"),
        *("batch_index", "gradient_clip_val", "gradient_clip_algorithm"),
        *("creates_processes_externally", "main_address", "main_port", "detect", "world_size"),
        *("load_checkpoint", "map_location", "weights_only"),
        *("set_world_size", "global_rank", "set_global_rank", "node_rank", "get_metrics"),
    ],
    "torch": ["get_extra_state", "set_extra_state"],
    "Hydra": ["setup"],
    "numpy, for whom rows are taken": ["__getitem__"],
    "Prometheus": ["collect"],
    "Triton's Python backend": ["TritonBackend"],
    "readers of its files: golden.npz, answers over HTTP": ["candidate_scores", "age_seconds"],
    "pydantic": ["model_config"],
    "a user's program, as docs show it": ["nearest_items", "own_towers", "canonical_tables"],
    "tests, which hold a bundle or a sketch against it": ["golden", "RANK_ERROR", "COUNT_ERROR"],
    "libraries whose objects have these settings": [
        *("caption", "sampler", "preserve_order", "enable_progress_bars", "itopk_size"),
        *("useFloat16", "shard_type", "efConstruction", "min_points_per_centroid", "grad_dtype"),
        *("log_severity_level", "intra_op_num_threads", "ValueClass", "should_exit"),
        "exit_on_error",
        *("tensor_path", "metadata_path", "image_path"),
    ],
}
ELSEWHERE = "callers"
ROUTES = ["@router.*"]  # FastAPI calls what stands behind a route


def names_in_configs(folder: Path) -> Iterator[str]:
    """Last parts of the dotted paths that YAML files name."""
    for path in folder.rglob("*.yaml"):
        for target in re.findall(r"_target_: *([\w.]+)", path.read_text()):
            yield target.rpartition(".")[2]


def unused(paths: list[Path], callers: list[str], ignored: list[str]) -> list[str]:
    """What is defined below some paths and called neither there nor by the callers.

    Args:
        paths: Files and folders.
        callers: Code of each of the callers.
        ignored: Names that are called from elsewhere; with ``*`` for any text.
    """
    vulture = Vulture(ignore_names=ignored, ignore_decorators=ROUTES)
    for code in callers:
        vulture.scan(code, filename=ELSEWHERE)
    vulture.scavenge([str(path) for path in paths])
    return [
        f"{item.filename}:{item.first_lineno}: {item.message}"
        for item in vulture.get_unused_code()
        if str(item.filename) != ELSEWHERE
    ]


def callers() -> list[str]:
    """The code of notebooks and benchmarks, and a line for every name that a config holds."""
    cells = [
        cell.source
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]
    scripts = [path.read_text() for path in (ROOT / "benchmarks").rglob("*.py")]
    return ["\n".join(cells), *scripts, "\n".join(names_in_configs(ROOT / "configs"))]


def main() -> int:
    """Print what nobody calls; 1 where there is anything."""
    paths = [ROOT / name for name in ("src", "train.py", "export.py")]
    ignored = [name for names in CALLED_BY.values() for name in names]
    found = unused(paths, callers(), ignored)
    whole = " ".join(unused(paths, callers(), []))
    found += [
        f"{__file__}: `{name}` is called now, or gone: take it off the list"
        for name in ignored
        if not re.search(rf"'{re.escape(name).replace(re.escape('*'), '.*')}'", whole)
    ]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
