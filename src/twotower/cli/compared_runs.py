"""What a run shows of itself in TensorBoard's tab HPARAMS: its settings and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from twotower.training.stages import RANKING, RETRIEVAL

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What changes the figures; the others say where files lie and what is shown meanwhile.
COMPARED = ("seed", "data", "split", "features", "losses", "models", "training", "trainer")


def run_settings(cfg: DictConfig) -> dict[str, float | str]:
    """The settings of a run by their keys, as an override would name them.

    An object is shown by the name of its class; what is null is left out.

    Args:
        cfg: The composed config.
    """
    return {key: value for name in COMPARED for key, value in _leaves(name, _plain(cfg[name]))}


def run_figures(metrics: Mapping[str, float], ks: Sequence[int]) -> dict[str, float]:
    """The few figures by which runs are compared, by ``<stage>/<metric>``.

    Args:
        metrics: All figures of a run.
        ks: Lengths of the lists, the headline one first.
    """
    longest = max(ks)
    wanted = {
        **{
            f"{RETRIEVAL}/{name}": f"{RETRIEVAL}/test/{name}"
            for name in (f"recall@{longest}", f"ndcg@{ks[0]}")
        },
        **{f"{RANKING}/{name}": f"{RANKING}/test/{name}" for name in ("auc", "log_loss")},
        **{f"{stage}/seconds": f"{stage}/train/seconds" for stage in (RETRIEVAL, RANKING)},
    }
    return {short: metrics[name] for short, name in wanted.items() if name in metrics}


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _leaves(key: str, value: object) -> Iterator[tuple[str, float | str]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, str(value["_target_"]).rpartition(".")[2]
        for name, child in value.items():
            if not str(name).startswith("_"):
                yield from _leaves(f"{key}.{name}", child)
    elif isinstance(value, bool):
        yield key, str(value).lower()
    elif value is not None:
        yield key, value if isinstance(value, int | float) else str(value)
