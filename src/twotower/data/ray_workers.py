"""The stages of preparing on Ray Data, for logs that would take one machine too long.

A stage is mapped over the numbers of its inputs; Ray spreads the calls over its cluster and gives
the results back in order. Blocks lie in the scratch folder inside ``prepared_dir``, which all
machines must see under the same path, as they must have this package and the inputs. What the
driver does alone is small beside the stages: it numbers the ids of the blocks, cuts the log into
parts, counts the values of categories and writes the sorted columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from twotower.data.schema import DataError

Input = TypeVar("Input")
Result = TypeVar("Result")

RESULT, PROBLEMS = "result", "problems"


@dataclass(frozen=True, kw_only=True)
class RayWorkers:
    """Tasks of a Ray cluster.

    Args:
        address: Of the cluster, as `ray.init` takes it; None for the one that this process is
            connected to, or else for a new one on this machine.

    Raises:
        ValueError: When Ray is not installed.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        _import_ray()

    def map(self, function: Callable[[Input], Result], inputs: Iterable[Input]) -> Iterator[Result]:
        """See `Workers`."""
        ray = _import_ray()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False)
        given = list(inputs)
        if not given:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        shared = ray.put((function, given))  # sent once, not with every task

        def call(row: dict[str, Any]) -> dict[str, Any]:
            stage, all_inputs = ray.get(shared)
            try:
                return {RESULT: stage(all_inputs[row["id"]]), PROBLEMS: None}
            except DataError as error:  # would come back as an error of Ray
                return {RESULT: None, PROBLEMS: error.problems}

        numbers = ray.data.range(len(given), override_num_blocks=len(given))
        for row in numbers.map(call).iter_rows():
            if row[PROBLEMS] is not None:
                raise DataError(list(row[PROBLEMS]))
            yield row[RESULT]


def _import_ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            "workers=ray needs Ray, which is not installed: pip install 'twotower[distributed]'; "
            "workers=threads takes the cores of this machine"
        ) from error
    module: ModuleType = ray
    return module
