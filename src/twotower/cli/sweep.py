"""A sweep: trainings one after the other, with settings that Optuna proposes.

The study lies in the folder of the sweep, so that a killed sweep goes on: the training that was cut
off continues from its last checkpoint, and what is proposed after it is what would have been
proposed anyway. Judged is by validation alone. Settings are proposed by the tree-structured Parzen
estimator, Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization".
"""

from __future__ import annotations

import fcntl
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from twotower.cli.run import Failed
from twotower.cli.sweep_results import REASON, SECONDS, print_results, write_results
from twotower.cli.sweep_space import Space, read_space
from twotower.config import RUN_CONFIG, ConfigError, build
from twotower.config_compose import with_params
from twotower.training.board import compare_runs
from twotower.training.pruning import PRUNED, STUDY_NAME, open_trial, study_url
from twotower.training.stages import STAGES

if TYPE_CHECKING:
    from hydra_plugins.twotower_optuna import OptunaSweeper

log = logging.getLogger(__name__)

STUDY_FILE = "study.db"
BEGAN = "began"  # when the training was started last, seconds since 1970
TERMS = "terms"  # what must stay when a sweep goes on


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What trials are judged by.

    Args:
        stage: Stage that measures it.
        name: Figure of `metrics.json`.
        direction: Whether larger or smaller is better.
    """

    stage: str
    name: str
    direction: Literal["maximize", "minimize"]

    @staticmethod
    def of(cfg: DictConfig, stage: str | None) -> Objective:
        """The monitored metric of a stage.

        Args:
            cfg: A composed training config.
            stage: The stage; the last one that is trained if None.

        Raises:
            ConfigError: When the stage is not trained.
        """
        trained = [name for name in STAGES if name in cfg.stages]
        chosen = stage or (trained[-1] if trained else None)
        if chosen not in trained:
            names = ", ".join(trained) or "none"
            raise ConfigError(
                [f"`hydra.sweeper.stage`: must be a stage that is trained ({names}), got {chosen}"]
            )
        settings = build(cfg.training[chosen])
        return Objective(
            stage=chosen,
            name=f"{chosen}/validation/{settings.monitor}",
            direction="minimize" if settings.mode == "min" else "maximize",
        )

    def value(self, result: object) -> float | Failed:
        """The value of a trial, from what its job returned."""
        if isinstance(result, Failed):
            return result
        value = result.get(self.name, math.nan) if isinstance(result, dict) else math.nan
        return value if math.isfinite(value) else Failed(f"{self.name} is {value}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep in its folder.

    Args:
        folder: Where the study and the run folders of the trials lie.
        objective: What trials are judged by.
        space: What is searched.
        sweeper: Settings, and the launcher of jobs.
    """

    folder: Path
    objective: Objective
    space: Space
    sweeper: OptunaSweeper

    def open(self) -> optuna.Study:
        """The study of the folder, a new one where there is none.

        Raises:
            ConfigError: When the folder holds something else, or a sweep that began differently.
        """
        path = self.folder / STUDY_FILE
        if not path.is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError([f"`hydra.sweep.dir`: {self.folder} is not empty and holds no sweep"])
        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=study_url(path),
            direction=self.objective.direction,
            load_if_exists=True,
        )
        now = {
            "objective": self.objective.name,
            "settings": [text for text in self.space.fixed if not _is_quiet(text)],
            "search space": dict(self.space.searched),
            "n_startup_trials": self.sweeper.n_startup_trials,
            "seed": self.sweeper.seed,
        }
        began = study.user_attrs.get(TERMS, now)
        problems = [
            f"{self.folder}: the sweep began with {key} {began[key]}, got {now[key]}"
            for key in now
            if began[key] != now[key]
        ]
        if problems:
            raise ConfigError(problems)
        study.set_user_attr(TERMS, now)
        return study

    def run(self, study: optuna.Study) -> None:
        """Go on with the trial that was cut off, then train until there are enough."""
        for cut_off in study.get_trials(states=[TrialState.RUNNING]):
            trial = open_trial(self.folder / STUDY_FILE, cut_off.number, num_complete=0)
            self._train(study, trial, self._rest(trial))
        while (number := len(study.get_trials(deepcopy=False))) < self.sweeper.n_trials:
            # Not one generator for all: after a kill it would begin anew and repeat itself.
            seeds = np.random.SeedSequence([self.sweeper.seed, number])
            study.sampler = TPESampler(
                seed=int(seeds.generate_state(1)[0]), n_startup_trials=self.sweeper.n_startup_trials
            )
            trial = study.ask(self.space.distributions)
            self._train(study, trial, self._overrides(trial))

    def _overrides(self, trial: optuna.Trial) -> list[str]:
        """What a trial is started with."""
        overrides = self.space.overrides(trial.params)
        if self.sweeper.prune:
            overrides.append(
                "+trainer.pruning={_target_:twotower.training.pruning.MedianPruning,"
                f"study:{_quoted(self.folder.resolve() / STUDY_FILE)},trial:{trial.number},"
                f"monitor:{self.objective.name},num_complete:{self.sweeper.n_startup_trials}}}"
            )
        return overrides

    def _rest(self, trial: optuna.Trial) -> list[str]:
        """What a trial that was cut off goes on with; the time it had taken is put down."""
        folder = self.folder / str(trial.number)
        if not (folder / RUN_CONFIG).is_file():
            return self._overrides(trial)
        last = max(path.stat().st_mtime for path in folder.rglob("*"))
        known = trial.user_attrs
        trial.set_user_attr(SECONDS, known.get(SECONDS, 0.0) + max(0.0, last - known[BEGAN]))
        return [f"resume={_quoted(folder)}", *filter(_is_quiet, self.space.fixed)]

    def _train(self, study: optuna.Study, trial: optuna.Trial, overrides: Sequence[str]) -> None:
        """Run a trial and put down what came of it."""
        began = time.time()
        trial.set_user_attr(BEGAN, began)
        value = self._launch(trial, overrides)
        seconds = round(trial.user_attrs.get(SECONDS, 0.0) + time.time() - began, 1)
        trial.set_user_attr(SECONDS, seconds)
        if isinstance(value, Failed):
            trial.set_user_attr(REASON, " ".join(value.reason.split()))
            study.tell(trial.number, state=TrialState.FAIL)
            log.warning("Trial %d failed: %s", trial.number, value.reason)
        else:
            self._show(trial, value, seconds)
            pruned = PRUNED in study.trials[trial.number].user_attrs
            study.tell(trial, None if pruned else value, TrialState.PRUNED if pruned else None)
            log.info("Trial %d: %s %.4f", trial.number, self.objective.name, value)
        write_results(study, self.folder, self.objective.name, self.space)

    def _launch(self, trial: optuna.Trial, overrides: Sequence[str]) -> float | Failed:
        if trial.params.keys() != self.space.distributions.keys():
            return Failed("cut off before it began")
        place = f"hydra.sweep.dir={_quoted(self.folder)}"
        return self.objective.value(self.sweeper.launch([*overrides, place], trial.number))

    def _show(self, trial: optuna.Trial, value: float, seconds: float) -> None:
        """Let TensorBoard compare the trials by what is searched and by validation alone.

        A link to the last one would count as one more.
        """
        (self.folder / "latest").unlink(missing_ok=True)
        figures = {self.objective.name.rpartition("/")[2]: value, "seconds": seconds}
        compare_runs(self.folder / str(trial.number), self.space.shown(trial.params), figures)


def start_sweep(sweeper: OptunaSweeper, arguments: Sequence[str]) -> None:
    """Check what a sweep is to do, do it or go on with it, and print what came out.

    Args:
        sweeper: Settings, and the launcher of jobs.
        arguments: Overrides of the command line.

    Raises:
        ConfigError: When the sweep is described wrongly, another process is at work on it, or no
            trial was completed.
    """
    cfg = sweeper.config
    if cfg is None or cfg.hydra.job.name != "train":
        raise ConfigError(["`hydra/sweeper=optuna` is for `train` alone"])
    problems = [
        f"`hydra.sweeper.{key}`: must be at least {least}, got {value}"
        for key, least in (("n_trials", 1), ("n_startup_trials", 1), ("seed", 0))
        if (value := getattr(sweeper, key)) < least
    ]
    if problems:
        raise ConfigError(problems)
    sweep = Sweep(
        folder=Path(cfg.hydra.sweep.dir),
        objective=Objective.of(cfg, sweeper.stage),
        space=read_space(with_params(sweeper.params, arguments)),
        sweeper=sweeper,
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = sweep.open()
    with (sweep.folder / "multirun.yaml").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"{sweep.folder}: another process is at work on it"]) from None
        file.truncate(0)
        OmegaConf.save(cfg, file)
        file.flush()
        log.info("After an interruption add hydra.sweep.dir=%s to the same command", sweep.folder)
        sweep.run(study)
    if not cfg.quiet:
        sources = cfg.hydra.runtime.config_sources
        config_dirs = [source.path for source in sources if source.provider == "command-line"]
        print_results(study, sweep.folder, sweep.objective.name, sweep.space, config_dirs)
    if not study.get_trials(states=[TrialState.COMPLETE]):
        raise ConfigError([f"{sweep.folder}: no trial was completed"])


def _is_quiet(override: str) -> bool:
    return override.startswith("quiet=")


def _quoted(path: Path) -> str:
    """A path as a value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"
