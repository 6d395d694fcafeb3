"""What to do about a figure of a bundle that has changed."""

from __future__ import annotations

from twotower.monitoring.slices import ALL


def advice_of(subject: str, statistic: str, value: float, reference: float) -> str:
    """One sentence.

    Args:
        subject: The slice.
        statistic: The figure.
        value: Of the window.
        reference: Of the reference.
    """
    rises = value > reference
    where = "" if subject == ALL else f" where {subject}"
    if statistic == "calibration":
        side = "too many" if rises else "too few"
        return (
            f"The ranker expects {side} clicks{where}: calibrate again on recent labels, and "
            "retrain if the AUC has fallen too."
        )
    if statistic == "ctr":
        what = "more" if rises else "less"
        return (
            f"Users click {what} than they did{where}: see whether the page, the label or the "
            "traffic has changed, and retrain on the new window if tastes have."
        )
    if rises == (statistic == "log_loss"):
        return f"The bundle is worse{where} than it was: retrain on recent windows."
    return (
        f"The bundle looks better{where} than it was: make sure that labels are complete and that "
        "no column tells the outcome."
    )
