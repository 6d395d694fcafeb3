"""False alarms of the data-drift monitor, and how soon it finds what has drifted.

    python benchmarks/monitoring/power.py                  20 worlds of 10 windows, ten minutes
    python benchmarks/monitoring/power.py --users 8000     the same with four times the users
    python benchmarks/monitoring/power.py --dealt          a world in which really nothing drifts
    python benchmarks/monitoring/power.py --worlds 2       to see it run

Windows of two days of the built-in world with forty profiled columns (`drifting.py`), held against
the reference of its first 20 days. A false alarm is a window without drift in which anything is an
alert. For the power, a drift sets in with every second window and goes on; it is found when an
alert names the column that drifts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
from drifting import (
    NUM_WINDOWS,
    Setting,
    World,
    new_ids,
    shifted_group,
    shifted_number,
    vanished,
)
from kept import keep_rows

from twotower.monitoring.data_drift import DataDriftSettings, data_drift

PSI, SHARE = 0.2, 0.05
RUN = 2  # windows in which a drift is to be found

USUAL = DataDriftSettings(false_alarm_rate=0.025)  # its half of 5 % of a whole report
CHANCE_ALONE = replace(
    USUAL, min_psi=0, min_jensen_shannon=0, min_ks=0, min_chi_squared=0, min_rate=0
)

Drift = Callable[[World, pa.Table, int], tuple[pa.Table, str]]


def number(world: World, rows: pa.Table, run: int) -> tuple[pa.Table, str]:
    name = f"number_{run % 13:02}"
    return shifted_number(rows, name, world.usual(name), PSI), f"context.{name}"


def group(world: World, rows: pa.Table, run: int) -> tuple[pa.Table, str]:
    name = f"group_{run % 12:02}"
    return shifted_group(rows, name, world.usual(name), PSI), f"context.{name}"


def items(_: World, rows: pa.Table, run: int) -> tuple[pa.Table, str]:
    return new_ids(rows, "item_id", SHARE, run), "item.item_id"


def users(_: World, rows: pa.Table, run: int) -> tuple[pa.Table, str]:
    return new_ids(rows, "user_id", SHARE, run), "user.user_id"


def nulls(_: World, rows: pa.Table, run: int) -> tuple[pa.Table, str]:
    name = f"number_{run % 13:02}"
    return vanished(rows, name, SHARE, run), f"context.{name}"


DRIFTS: dict[str, Drift] = {
    "one number of 41 columns, PSI 0.2": number,
    "one category of 41 columns, PSI 0.2": group,
    "5 % of the item ids are new": items,
    "5 % of the user ids are new": users,
    "5 % of one column are null": nulls,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--users", type=int, default=Setting.num_users)
    parser.add_argument("--dealt", action="store_true", help="sessions on random days; no power")
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    started = time.monotonic()
    alarms = {"chance alone": 0, "usual settings": 0}
    delays: dict[str, list[int]] = {name: [] for name in DRIFTS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.worlds):
            world = World(seed, Path(folder), Setting(num_users=given.users, dealt=given.dealt))
            for place in range(NUM_WINDOWS):
                profile = world.profile(world.window(place))
                rows.append(profile.num_rows)
                for name, settings in (("chance alone", CHANCE_ALONE), ("usual settings", USUAL)):
                    found = data_drift(profile, world.reference, settings)
                    alarms[name] += any(one.alert for one in found)
            for name, drift in ({} if given.dealt else DRIFTS).items():
                for first in range(0, NUM_WINDOWS, RUN):
                    run = seed * NUM_WINDOWS + first
                    delays[name].append(delay(world, drift, first, run))
            done = (seed + 1) * NUM_WINDOWS
            print(f"{done} windows: {alarms}", flush=True)
            print({name: found_by(of, RUN) for name, of in delays.items() if of}, flush=True)
    windows = given.worlds * NUM_WINDOWS
    minutes = (time.monotonic() - started) / 60
    print(f"{min(rows)} to {max(rows)} rows a window, {minutes:.0f} minutes")
    if given.keep:
        keep_tables(alarms, delays, windows, given.users, sum(rows) // len(rows))


def delay(world: World, drift: Drift, first: int, run: int) -> int:
    """Windows until a drift is found, 1 for at once; `RUN` + 1 when it is not."""
    for passed in range(RUN):
        rows, subject = drift(world, world.window(first + passed), run // RUN)
        found = data_drift(world.profile(rows), world.reference, USUAL)
        if any(one.alert and one.subject == subject for one in found):
            return passed + 1
    return RUN + 1


def found_by(delays: list[int], window: int) -> float:
    """Share of the runs in which the drift was found by a window."""
    return sum(one <= window for one in delays) / len(delays)


def keep_tables(
    alarms: dict[str, int], delays: dict[str, list[int]], windows: int, users: int, size: int
) -> None:
    """Write what `render.py` reads."""
    command = f"power.py --users {users} --keep"
    keep_rows(
        f"data_false_alarms_{users}",
        f"Data drift: false alarms of {windows} windows of about {size:,} rows of {users:,} "
        f"users, without drift, {USUAL.false_alarm_rate:.1%} asked for",
        command,
        {"an alert is": "", "windows": ",.0f", "with an alarm": ",.0f", "share": ".1%"},
        [
            {
                "an alert is": words,
                "windows": windows,
                "with an alarm": alarms[name],
                "share": alarms[name] / windows,
            }
            for name, words in (
                ("chance alone", "more than chance"),
                ("usual settings", "more than chance, and large enough to matter"),
            )
        ],
        where="one thread",
    )
    keep_rows(
        f"data_power_{users}",
        f"Data drift: delay until it is found, in windows of about {size:,} rows of "
        f"{users:,} users",
        command,
        {"drift": "", "runs": ",.0f", "in the 1st": ".1%", "by the 2nd": ".1%"},
        [
            {
                "drift": name,
                "runs": len(of),
                "in the 1st": found_by(of, 1),
                "by the 2nd": found_by(of, 2),
            }
            for name, of in delays.items()
        ],
        where="one thread",
    )


if __name__ == "__main__":
    main()
