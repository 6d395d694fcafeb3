"""`hydra/sweeper=optuna`: Hydra's side of a sweep that Optuna steers.

Hydra takes sweepers from this package alone, and loads everything in it whenever a command starts:
nothing heavy is imported here. What a sweep does stands in `twotower.cli.sweep`. Annotations are
not postponed: a dataclass would look them up in a module that Hydra has not yet registered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConfig:
    """Keys below ``hydra.sweeper``; `OptunaSweeper` says what they mean."""

    _target_: str = "hydra_plugins.twotower_optuna.OptunaSweeper"
    n_trials: int = 20
    n_startup_trials: int = 10
    seed: int = 0
    stage: str | None = None
    prune: bool = True
    params: dict[str, Any] = field(default_factory=dict)


class OptunaSweeper(Sweeper):
    """Starts one training after the other, with settings that the last ones speak for.

    Args:
        n_trials: Trainings in all, failed ones and those of a sweep that is gone on with included.
        n_startup_trials: How many of them draw their settings at random.
        seed: Seed of what is drawn.
        stage: Stage whose `monitor` is searched by; the last that is trained if None.
        prune: Whether a training is stopped that lies below the median of the others.
        params: Values to search through by key, as they would stand on the command line.
    """

    def __init__(
        self,
        *,
        n_trials: int,
        n_startup_trials: int,
        seed: int,
        stage: str | None,
        prune: bool,
        params: DictConfig,
    ) -> None:
        self.n_trials = n_trials
        self.n_startup_trials = n_startup_trials
        self.seed = seed
        self.stage = stage
        self.prune = prune
        self.params = params
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher, which runs jobs."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep.

        Args:
            arguments: Overrides of the command line without those of Hydra's own part.

        Raises:
            ConfigError: When Optuna is not installed, or the sweep is described wrongly.
        """
        from twotower.config import ConfigError

        if find_spec("optuna") is None:
            raise ConfigError(["`hydra/sweeper=optuna` needs Optuna; install `twotower[sweep]`"])
        from twotower.cli.sweep import start_sweep

        start_sweep(self, arguments)

    def launch(self, overrides: Sequence[str], number: int) -> object:
        """Run one job; what the command returned."""
        if self.launcher is None:
            raise RuntimeError("Hydra calls `setup` before `sweep`")
        (job,) = self.launcher.launch([overrides], initial_job_idx=number)
        return job.return_value


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=OptunaSweeperConfig, provider="twotower"
)
