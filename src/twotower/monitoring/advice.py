"""What to do about a column that has drifted, in one sentence."""

from __future__ import annotations

from twotower.monitoring.bins import SCORE_COLUMN, Bins
from twotower.monitoring.profile import ColumnProfile

NUM_NAMED = 3


def advice_of(bins: Bins, column: ColumnProfile, statistic: str, rises: bool) -> str:
    """One sentence.

    Args:
        bins: The column.
        column: Its profile in the window.
        statistic: What has changed.
        rises: Whether a rate is above that of the reference.
    """
    source = {
        "user": "the table of users",
        "item": "the table of items",
        "context": "what the log writes down",
    }.get(bins.side, "")
    if bins.name == SCORE_COLUMN:
        return "The models see other requests than they learned from: look at the features first."
    if statistic == "unseen_rate" or (statistic == "missing_rate" and column.unseen.any()):
        if not rises:
            return f"Fewer new values of {bins.name} than usual: see whether new ones still arrive."
        named = ", ".join(column.top_unseen.top(NUM_NAMED))
        examples = f" (such as {named})" if named else ""
        return (
            f"Values{examples} that training did not see: retrain on the new window, or check "
            f"that ids in {source} are written as before."
        )
    if statistic in ("null_rate", "missing_rate"):
        if rises:
            return f"Values of {bins.name} are missing: check whoever fills {source}."
        return (
            f"Values of {bins.name} used to be missing: see that they mean the same, and retrain."
        )
    return (
        f"{bins.name} is distributed differently: check {source} for a change of unit or meaning; "
        "if the change is real, retrain on the new window."
    )
