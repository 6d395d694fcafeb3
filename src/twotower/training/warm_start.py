"""Models that go on from those of an earlier run, whose vocabularies were smaller.

Everything that was learned is carried over: weights as they are, rows of tables to where their
values stand now, and what the optimizers know of both. The weights are those of the best epoch, the
optimizers' state that of the last one. Rows without an earlier value start from their content, see
`twotower.models.new_rows`, and with the optimizer's state of a new table.

Shapes: V rows of the tables of one width, V' of the earlier ones, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twotower.data.prepared import Entities, Prepared
from twotower.data.schema import DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.features.transforms import Categorical, Tags
from twotower.models.new_rows import embedders, start_new_rows
from twotower.models.tables import TableGroup
from twotower.training.carried import Carried
from twotower.training.optimizers import split_parameters
from twotower.training.read_checkpoint import read_checkpoint
from twotower.training.run_folder import BEST, LAST

log = logging.getLogger(__name__)

MODEL = "model."
DENSE, TABLES = "learning_rate", "table_learning_rate"


def warm_start(
    model: nn.Module,
    *,
    stage: str,
    run: Path,
    before: FeaturePipeline,
    pipeline: FeaturePipeline,
    prepared: Prepared,
) -> Carried:
    """Let a model go on from an earlier run.

    Args:
        model: Fresh, of the new features; changed in place.
        stage: ``retrieval`` or ``ranking``.
        run: Folder of the earlier run.
        before: Its features.
        pipeline: The new features, continued from those.
        prepared: The new data, whose users and items say what is new.

    Returns:
        What is to be carried into the training.

    Raises:
        DataError: When the earlier model was built otherwise; names every weight that differs.
    """
    folder = run / stage
    state = _load(folder / f"{BEST}.ckpt")["state_dict"]
    weights = {n.removeprefix(MODEL): w for n, w in state.items() if n.startswith(MODEL)}
    sources = _sources(model, before, pipeline)
    _copy(model, weights, sources, stage=stage)
    for side, embedder in embedders(model).items():
        entities = prepared.items if side == "item" else prepared.users
        known = _carried_rows(embedder.learned(), before, pipeline)
        filled = start_new_rows(embedder, _tensors(entities), known)
        for name, count in filled.items():
            log.info("%s: %d rows of `%s` are new or empty", stage, count, name)
    optimizers = _optimizer_states(folder / f"{LAST}.ckpt", model, sources, stage)
    return Carried(
        weights={n: w for n, w in state.items() if not n.startswith(MODEL)},
        optimizers=optimizers,
        sources=sources,
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError([f"{path}: missing; the run of warm_start has no such stage"])
    return read_checkpoint(path)


def _carried_rows(
    names: Mapping[str, object], before: FeaturePipeline, pipeline: FeaturePipeline
) -> dict[str, Tensor]:
    """(V,) bool by feature with a table: whether a row has the value that it had."""
    known = {}
    for name in names:
        old, new = before.transforms[name], pipeline.transforms[name]
        if isinstance(old, Categorical | Tags) and isinstance(new, Categorical | Tags):
            known[name] = torch.from_numpy(old.vocabulary.carried(new.vocabulary))
    return known


def _sources(
    model: nn.Module, before: FeaturePipeline, pipeline: FeaturePipeline
) -> dict[str, Tensor]:
    """Of every table parameter, from which earlier row each of its rows goes on."""
    found = {}
    for prefix, group in model.named_modules():
        if not isinstance(group, TableGroup):
            continue
        rows, start = [], 0
        known = _carried_rows(dict.fromkeys(group.names), before, pipeline)
        for name in group.names:
            same = known[name]
            rows.append(torch.where(same, start + torch.arange(len(same)), -1))
            start += before.transforms[name].num_rows
        found[f"{prefix}.rows.weight"] = torch.cat(rows)  # (V,)
    return found


@torch.no_grad()
def _copy(
    model: nn.Module, weights: Mapping[str, Tensor], sources: Mapping[str, Tensor], *, stage: str
) -> None:
    own = model.state_dict()
    problems = [f"`{name}` is missing" for name in own if name not in weights]
    problems += [f"`{name}` is not used" for name in weights if name not in own]
    for name, value in own.items():
        if name not in weights:
            continue
        old, source = weights[name], sources.get(name)
        fits = old.shape[1:] == value.shape[1:] if source is not None else old.shape == value.shape
        if not fits:
            problems.append(f"`{name}` is {tuple(value.shape)}, was {tuple(old.shape)}")
        elif source is None:
            value.copy_(old)
        else:
            known = (source >= 0).nonzero().flatten()
            value[known] = old[source[known]].to(value.dtype)
    if problems:
        raise DataError(
            [f"warm_start: models.{stage} is not that of the run; {text}" for text in problems]
        )


def _optimizer_states(
    path: Path, model: nn.Module, sources: Mapping[str, Tensor], stage: str
) -> dict[str, dict[int, Any]]:
    """State of every earlier optimizer by the name of its rate, if it fits the model."""
    if not path.is_file():
        log.warning("%s: no %s, the optimizers begin anew", stage, path)
        return {}
    (saved,) = _load(path)["optimizer_states"]
    tables, dense = split_parameters(model)
    params = {DENSE: dense, TABLES: tables}
    found = {}
    for member in saved["members"]:
        name = member["param_groups"][0].get("name", "")
        wanted = params.get(name, [])
        states = member["state"]
        if all(_fits(states.get(n, {}), p, name == TABLES) for n, p in enumerate(wanted)):
            found[name] = states
        else:
            log.warning("%s: state of `%s` does not fit, it begins anew", stage, name)
    return found


def _fits(state: Mapping[str, Tensor], param: Tensor, is_table: bool) -> bool:
    if is_table:
        return all(
            value.dim() < 2 or value.shape[1:] == param.shape[1:] for value in state.values()
        )
    return all(value.dim() == 0 or value.shape == param.shape for value in state.values())


def _tensors(entities: Entities | None) -> dict[str, Tensor]:
    if entities is None:
        return {}
    columns = {name: np.asarray(column) for name, column in entities.columns.items()}
    return {name: torch.from_numpy(column.copy()) for name, column in columns.items()}


def known_items(prepared: Prepared, before: FeaturePipeline, pipeline: FeaturePipeline) -> Tensor:
    """(C,) bool: items of the catalogue whose ids have the rows that they had.

    Args:
        prepared: The new data.
        before: Features of the earlier run.
        pipeline: The new features, continued from those.
    """
    _, _, items = prepared.require_events()
    names = [f.name for f in before.spec.features if f.side == "item" and f.kind == "id"]
    known = torch.ones(prepared.num_catalogue, dtype=torch.bool)
    for name, carried in _carried_rows(dict.fromkeys(names), before, pipeline).items():
        rows = torch.from_numpy(np.array(items.columns[name][: prepared.num_catalogue], np.int64))
        known &= (rows > 0) & carried[rows]
    return known


def check_warm_start(stages: Sequence[str], run: Path, *, split_tables: bool) -> None:
    """Refuse, before anything is prepared, a run that cannot be gone on from.

    Args:
        stages: That are to be trained.
        run: Folder of the earlier run.
        split_tables: Whether the trainer is to split its tables.

    Raises:
        DataError: Lists what is missing.
    """
    if not run.is_dir():
        raise DataError(
            [f"warm_start={run}: no run folder here; runs are written by `twotower train`"]
        )
    problems = [
        f"warm_start={run}: the run has no finished stage `{stage}`; leave it out of `stages` or "
        "train without warm_start"
        for stage in stages
        if not (run / stage / f"{BEST}.ckpt").is_file()
    ]
    if split_tables:
        problems.append(
            "warm_start: tables that are split over processes cannot go on from an earlier run; "
            "say trainer.split_tables=false"
        )
    if problems:
        raise DataError(problems)
