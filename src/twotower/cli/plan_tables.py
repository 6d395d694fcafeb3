"""The tables that `twotower plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from twotower.planning.capacity_advice import in_bytes, in_hours
from twotower.planning.capacity_serving import in_milliseconds

if TYPE_CHECKING:
    from twotower.planning.capacity import Plan


def memory_table(plan: Plan) -> Table:
    """Memory of both stages in training, part by part."""
    table = _table("Training", ("", "retrieval", "ranking"))
    for name, part in (
        ("embedding tables", "tables"),
        ("optimiser of the tables", "optimizer"),
        ("columns of the log", "columns"),
        ("a step", "step"),
        ("together", "memory"),
        ("checkpoints on disk", "checkpoints"),
    ):
        cells = [in_bytes(getattr(stage, part)) for stage in plan.training.stages]
        table.add_row(name, *cells)
    table.add_row("examples", *(f"{stage.examples:,}" for stage in plan.training.stages))
    table.add_row("one CPU core", *(in_hours(stage.core_hours) for stage in plan.training.stages))
    gpu = plan.question.machine.gpu
    if gpu is not None:
        hours = [in_hours(stage.gpu_hours or 0.0) for stage in plan.training.stages]
        table.add_row(f"one {gpu.name}", *hours)
        gpus = [str(stage.memory_gpus or "none") for stage in plan.training.stages]
        table.add_row("GPUs that hold it", *gpus)
    return table


def needs_table(plan: Plan) -> Table:
    """Disk and memory of everything else."""
    table = _table("Besides", ("", "disk", "memory"))
    storage = plan.storage
    table.add_row("prepared data set", in_bytes(storage.prepared), "")
    table.add_row("preparing it", "", in_bytes(storage.preparing))
    table.add_row("checkpoints", in_bytes(storage.checkpoints), "")
    table.add_row("item vectors", in_bytes(storage.vectors), "")
    if plan.chosen is not None:
        table.add_row("building the index", "", in_bytes(plan.exporting))
    table.add_row("models that serve", in_bytes(storage.models), in_bytes(storage.models))
    items = plan.question.stored_items
    table.add_row(f"store of {items} items a user", in_bytes(storage.store), "")
    return table


def serving_table(plan: Plan) -> Table:
    """The kinds of index side by side."""
    columns = ("index", "on", "RAM", "GPU", "GPUs", "cores", "nodes", "ms", "recall", "fits")
    table = _table("Serving", columns)
    machine = plan.question.machine
    table.caption = (
        "ms: a request alone; recall: on hard vectors, at least; a node: "
        f"{machine.gpus} GPUs, {machine.cores} cores, {in_bytes(machine.ram)}"
    )
    for serving in plan.serving:
        option = serving.option
        verdict = "no" if serving.problems else "split" if serving.is_divided else "yes"
        style = "dim" if serving.problems else ""
        if serving is plan.chosen:
            verdict, style = "chosen", "bold"
        table.add_row(
            option.kind + (" codes" if option.note == "not re-ranked" else ""),
            option.place,
            in_bytes(option.ram) if option.ram else "",
            in_bytes(option.gpu) if option.gpu else "",
            str(serving.gpus or ""),
            f"{serving.cores:,.0f}",
            str(serving.machines),
            in_milliseconds(serving.milliseconds),
            f"{option.recall:.3f}",
            verdict,
            style=style,
        )
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        numeric = column not in ("", "index", "on", "fits") or column in ("retrieval", "ranking")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table
