"""How concept drift is looked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """How concept drift is looked for.

    Args:
        label_delay: Seconds after the end of a window until its labels have matured.
        max_missing_labels: Largest share of labels of a mature window that may not have come.
        positive_from: Smallest label of a success.
        false_alarm_rate: Share of windows without drift that raise an alert, over all figures.
        tolerance: Changes up to it are no drift, however sure: a share of the figure, of the AUC
            the difference.
        k: Length of the lists of which the recall is taken.
        recall_users: Of at most so many users; every one costs a request.
        min_users: A slice of fewer users is not judged.
        min_successes: Nor one with fewer successes, or fewer rows without success.
        max_values: So many values of a categorical column are slices.
        num_blocks: Groups of users that a window is for the sequential detectors.

    Raises:
        ValueError: When a setting is out of range.
    """

    label_delay: int = 0
    max_missing_labels: float = 0.05
    positive_from: float = 1.0
    false_alarm_rate: float = 0.05
    tolerance: float = 0.01
    k: int = 10
    recall_users: int = 5000
    min_users: int = 50
    min_successes: int = 50
    max_values: int = 10
    num_blocks: int = 32

    def __post_init__(self) -> None:
        problems = [
            f"concept: `{name}` must be at least {least}, got {value}"
            for name, value, least in (
                ("label_delay", self.label_delay, 0),
                ("tolerance", self.tolerance, 0),
                ("k", self.k, 1),
                ("recall_users", self.recall_users, 1),
                ("min_users", self.min_users, 2),
                ("min_successes", self.min_successes, 1),
                ("max_values", self.max_values, 0),
                ("num_blocks", self.num_blocks, 2),
            )
            if value < least
        ]
        if not 0 < self.false_alarm_rate < 1:
            rate = self.false_alarm_rate
            problems.append(f"concept: `false_alarm_rate` must lie between 0 and 1, got {rate}")
        if not 0 <= self.max_missing_labels < 1:
            share = self.max_missing_labels
            problems.append(f"concept: `max_missing_labels`: 0 or more, below 1, got {share}")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class NoConceptDrift:
    """Concept drift is not looked for."""
