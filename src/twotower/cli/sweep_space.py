"""What a sweep searches through: overrides with several values, as distributions of Optuna.

===========================  ======================================================
``a,b`` ``choice(a,b)``      one of some values, of any kind; options of groups too
``range(1,10,2)``            numbers in steps, the end left out
``interval(0.1,1)``          any number between the two
``int(interval(1,9))``       any whole number between the two, both included
``tag(log,interval(..))``    the same, with as many draws from 0.01 to 0.1 as from 0.1 to 1
===========================  ======================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from twotower.config import ConfigError

# Trials must be judged by one measure, and their folders are named by the sweep.
NEVER_SEARCHED = (
    *("name", "output_dir", "prepared_dir", "resume", "quiet"),
    *("stages", "data", "workers", "split", "catalogue", "evaluation"),
)
MONITORS = ("training.retrieval.monitor", "training.ranking.monitor")


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Args:
        fixed: Overrides that all trials share.
        searched: Overrides with several values, by key.
        distributions: The same for Optuna.
    """

    fixed: tuple[str, ...]
    searched: Mapping[str, str]
    distributions: dict[str, BaseDistribution]

    def overrides(self, values: Mapping[str, object]) -> list[str]:
        """The overrides of a trial, the shared ones first."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.distributions)]

    def shown(self, values: Mapping[str, object]) -> dict[str, float | str]:
        """Settings of a trial to be looked at, by short name.

        Args:
            values: By key; a number is one unless the key has also values that are none.
        """
        keys = list(self.distributions)
        names = dict(zip(keys, short_names(keys), strict=True))
        shown: dict[str, float | str] = {}
        for key, value in values.items():
            choices = getattr(self.distributions[key], "choices", (value,))
            numeric = all(_is_number(str(choice)) for choice in choices)
            shown[names[key]] = float(str(value)) if numeric else str(value)
        return shown


def read_space(overrides: Sequence[str]) -> Space:
    """Tell what is searched from what is fixed.

    Args:
        overrides: Overrides in Hydra's syntax; of two for one key the later one holds.

    Raises:
        ConfigError: When nothing is searched, or something in a way that cannot be; lists all.
    """
    fixed, searched, distributions, problems = [], {}, {}, []
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for key, override in {override.get_key_element(): override for override in parsed}.items():
        text = str(override.input_line)
        if not override.is_sweep_override():
            fixed.append(text)
            continue
        searched[key] = text.partition("=")[2]
        try:
            _check_key(override.key_or_group)
            distributions[key] = _distribution(override)
        except ValueError as error:
            problems.append(f"`{text}`: {error}")
    if not searched:
        problems.append(
            "nothing to search: give a key several values, such as `interval(0.01,0.1)`, on the "
            "command line or below `hydra.sweeper.params`"
        )
    if problems:
        raise ConfigError(problems)
    return Space(fixed=tuple(fixed), searched=searched, distributions=distributions)


def _check_key(key: str) -> None:
    first = key.replace("/", ".").split(".")[0]
    if first in NEVER_SEARCHED or key in MONITORS:
        raise ValueError(
            "must be the same in all trials, which could not be compared otherwise; so must "
            + ", ".join(name for name in (*NEVER_SEARCHED, *MONITORS) if name not in (first, key))
        )


def _distribution(override: Override) -> BaseDistribution:
    """The distribution of one override.

    Raises:
        ValueError: When the values leave nothing to choose, or go backwards.
    """
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        return _interval(swept)
    values = [str(value) for value in override.sweep_string_iterator()]
    if len(values) < 2:
        raise ValueError(f"at least two values are needed, got {', '.join(values) or 'none'}")
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"a value stands there twice: {', '.join(repeated)}")
    if isinstance(swept, RangeSweep) and all(_is_whole(value) for value in values):
        numbers = sorted(map(int, values))
        return IntDistribution(numbers[0], numbers[-1], step=int(abs(swept.step)))
    return CategoricalDistribution(values)


def _interval(swept: IntervalSweep) -> BaseDistribution:
    low, high = swept.start, swept.end
    if low is None or high is None or not low < high:
        raise ValueError(f"the interval must end above its begin, got {low} and {high}")
    log = "log" in swept.tags
    if unknown := sorted(set(swept.tags) - {"log"}):
        raise ValueError(f"the tag must be log, got {', '.join(unknown)}")
    if log and low <= 0:
        raise ValueError(f"an interval with the tag log must begin above 0, got {low}")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def short_names(keys: Sequence[str]) -> list[str]:
    """The last parts of keys, as many as tell them apart.

    Example:
        >>> short_names(["a.optimizer.rate", "b.optimizer.rate", "loss.temperature"])
        ['a.optimizer.rate', 'b.optimizer.rate', 'temperature']
    """
    names = []
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        unique = [e for e in ends if sum(k == e or k.endswith(f".{e}") for k in keys) == 1]
        names.append(unique[0] if unique else key)
    return names


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
