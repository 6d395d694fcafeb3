"""What the features are (`FeatureSpec`, written by a person) and what models see (`ModelInputs`).

Encoded columns, ``R`` rows each, by kind; row 0 of a table is "missing or never seen in training".
Rows of tables are stored as int32 and are int64 in a batch.

================  ===========  ===================================================================
kind              shape        content
================  ===========  ===================================================================
``id``            (R,)   int   row of the embedding table
``categorical``   (R,)   int   row of the embedding table
``tags``          (R, T) int   rows of the embedding table, padded with 0
``numeric``       (R, 2) f32   standardised value (0 when missing), 1 when missing
``vector``        (R, D) f32   the vector, unit length (zeros when missing)
``time``          (R, 4) f32   sines of the hour of day and the day of week, then their cosines
================  ===========  ===================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from twotower.data.schema import BATCH_COLUMNS
from twotower.data.schema import HISTORY_MASK as HISTORY_MASK
from twotower.data.schema import HISTORY_PREFIX as HISTORY_PREFIX
from twotower.data.schema import HISTORY_TIME as HISTORY_TIME
from twotower.data.schema import RETRIEVAL_RANK as RETRIEVAL_RANK
from twotower.data.schema import RETRIEVAL_SCORE as RETRIEVAL_SCORE
from twotower.data.schema import TASK_PREFIX as TASK_PREFIX

Side = Literal["user", "item", "context"]
Kind = Literal["id", "categorical", "tags", "numeric", "vector", "time"]
Stage = Literal["retrieval", "ranking"]

TABLE_KINDS: tuple[Kind, ...] = ("id", "categorical", "tags")
OPTION_KINDS: dict[str, tuple[Kind, ...]] = {
    "dim": (*TABLE_KINDS, "vector"),
    "min_count": TABLE_KINDS,
    "log": ("numeric",),
    "separator": ("tags",),
    "max_tags": ("tags",),
}
SPEC_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature as a person declares it.

    Args:
        name: Name of the feature and, unless `column` is given, of the column. It names files
            and inputs of the models: without ``/`` and none of the names that a batch uses itself.
        side: Which table it comes from: user, item, or context (the interaction itself).
        kind: How it is encoded; see the table of this module.
        column: Column it is read from.
        dim: Width of its embedding; 0 leaves the width to the model.
        min_count: Values seen less often in the training part share row 0.
        stages: Stages whose model may look at it.
        log: Numeric only: take log(1 + x) before standardising; values below 0 count as 0.
        separator, max_tags: Tags only: what parts a text, and how many tags are kept.
    """

    name: str
    side: Side
    kind: Kind
    column: str = ""
    dim: int = 0
    min_count: int = 1
    stages: tuple[Stage, ...] = ("retrieval", "ranking")
    log: bool = False
    separator: str = "|"
    max_tags: int = 8

    def __post_init__(self) -> None:
        problems = [
            f"`{field}` must be one of {', '.join(allowed)}, got {value!r}"
            for field, value, allowed in (
                ("side", self.side, get_args(Side)),
                ("kind", self.kind, get_args(Kind)),
                *(("stages", stage, get_args(Stage)) for stage in self.stages),
            )
            if value not in allowed
        ]
        problems += [
            f"`{option}` must be at least {minimum}, got {value}"
            for option, value, minimum in (
                ("dim", self.dim, 0),
                ("min_count", self.min_count, 1),
                ("max_tags", self.max_tags, 1),
            )
            if value < minimum
        ]
        problems += self._misplaced() if not problems else []
        if not self.stages:
            problems.append(f"`stages` must name at least one of {', '.join(get_args(Stage))}")
        if not is_feature_name(self.name):
            problems.append(
                "a name must not be empty, hold `/`, begin with `history.` or `task.` or be one of "
                f"{', '.join(BATCH_COLUMNS)}; give the feature another name and say "
                "`column: <name>`"
            )
        if problems:
            raise ValueError("\n".join(f"feature `{self.name}`: {text}" for text in problems))

    def _misplaced(self) -> list[str]:
        """Options that do nothing for the kind."""
        defaults = {f.name: f.default for f in fields(self)}
        return [
            f"`{option}` does nothing for kind {self.kind}; allowed for {', '.join(kinds)}"
            for option, kinds in OPTION_KINDS.items()
            if self.kind not in kinds and getattr(self, option) != defaults[option]
        ]

    @property
    def source_column(self) -> str:
        """The column the feature is read from."""
        return self.column or self.name


@dataclass(frozen=True, kw_only=True)
class History:
    """Which of the user's earlier positives a model looks at.

    Args:
        length: How many of the latest events.
        features: Item features by which an event is described.
    """

    length: int = 20
    features: tuple[str, ...] = ("item_id",)

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"history: `length` must be at least 0, got {self.length}")


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """All features of a data set and the history; no two features share a name."""

    features: tuple[Feature, ...]
    history: History = History()

    def __post_init__(self) -> None:
        problems = _repeated_names(self.features)
        if not self.features:
            problems.append("feature spec: there is no feature; at least one is needed")
        if problems:
            raise ValueError("\n".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fields at their default left out; the form of the YAML file."""
        rows = []
        for feature in self.features:
            row = {f.name: getattr(feature, f.name) for f in fields(feature)}
            defaults = {f.name: f.default for f in fields(feature)}
            kept = {k: v for k, v in row.items() if defaults[k] != v}
            rows.append({k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()})
        history = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.history).items()
        }
        return {"version": SPEC_VERSION, "features": rows, "history": history}


def spec_from_dict(document: Mapping[str, Any]) -> FeatureSpec:
    """Read the form that `FeatureSpec.to_dict` gives.

    Args:
        document: Keys ``features`` (a list), ``history`` and, optionally, ``version``.

    Raises:
        ValueError: Lists every unknown key, missing name and value that is not allowed.
    """
    problems = [
        f"feature spec: unknown key `{key}`; allowed: version, features, history"
        for key in document
        if key not in ("version", "features", "history")
    ]
    if document.get("version", SPEC_VERSION) != SPEC_VERSION:
        problems.append(
            f"feature spec: version {document['version']!r}, this release reads {SPEC_VERSION}"
        )
    rows = document.get("features") or []
    if not isinstance(rows, list | tuple):
        problems.append(f"feature spec: `features` must be a list, got {rows!r}")
        rows = []
    features = [_parse(Feature, row, f"feature {n}", problems) for n, row in enumerate(rows, 1)]
    history = _parse(History, document.get("history") or {}, "history", problems)
    parsed = tuple(feature for feature in features if feature is not None)
    problems += _repeated_names(parsed)
    if problems or history is None:
        raise ValueError("\n".join(problems))
    return FeatureSpec(features=parsed, history=history)


def is_feature_name(name: str) -> bool:
    """Whether a feature may have this name."""
    taken = name in BATCH_COLUMNS or name.startswith((HISTORY_PREFIX, TASK_PREFIX))
    return bool(name) and "/" not in name and not taken


def _repeated_names(features: Sequence[Feature]) -> list[str]:
    counts = Counter(feature.name for feature in features)
    return [
        f"feature spec: the name `{name}` is used more than once"
        for name in sorted(counts)
        if counts[name] > 1
    ]


def _parse(cls: type[T], row: object, where: str, problems: list[str]) -> T | None:
    if not isinstance(row, Mapping):
        problems.append(f"{where}: must be keys with values, got {row!r}")
        return None
    declared = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    required = [name for name, f in declared.items() if f.default is MISSING]
    wrong = [
        f"{where}: unknown key `{key}`; allowed: {', '.join(declared)}"
        for key in row
        if key not in declared
    ]
    wrong += [f"{where}: `{key}` is missing" for key in required if key not in row]
    for key, value in row.items():
        if key in declared and not _fits(value, declared[key].default):
            name = _type_of(declared[key].default).__name__
            wrong.append(f"{where}: `{key}` must be of type {name}, got {value!r}")
    if not wrong:
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        except ValueError as error:
            wrong += [f"{where}: {line}" for line in str(error).splitlines()]
    problems.extend(wrong)
    return None


def _type_of(default: object) -> type:
    """Type of an option by its default; what has none is text."""
    if default is MISSING:
        return str
    return list if isinstance(default, tuple) else type(default)


def _fits(value: object, default: object) -> bool:
    expected = _type_of(default)
    if expected is list:
        return isinstance(value, list | tuple)
    return isinstance(value, expected) and isinstance(value, bool) == (expected is bool)


@dataclass(frozen=True, kw_only=True)
class FeatureInput:
    """One encoded column as a model sees it.

    Args:
        name: Key of the column in the model's input.
        side: user, item or context.
        kind: See the table of this module.
        dim: Width of the embedding the user asked for; 0 leaves it to the model.
        num_rows: Rows of the embedding table, row 0 included; 0 for kinds without a table.
        width: Second dimension of the encoded column; 0 for (R,).
        has_missing: Numeric only: whether training lacked values; else the second is not read.
    """

    name: str
    side: Side
    kind: Kind
    dim: int
    num_rows: int
    width: int
    has_missing: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What one stage's model is given.

    A batch is a dict: the columns of the table above by name, and for the history
    ``history.<item feature>`` (B, L, ...), oldest first and padded on the left, ``history.mask``
    (B, L) bool, True for an event, and if the log has times ``history.time`` (B, L) int64, seconds
    since 1970. The ranker may be given ``retrieval_score`` and ``retrieval_rank`` (B,) float32, the
    rank from 1. `tasks` names what a ranker foretells beside what is ranked by.
    """

    features: tuple[FeatureInput, ...]
    history_length: int
    history_features: tuple[str, ...]
    history_times: bool = False
    tasks: tuple[str, ...] = ()

    def of(self, *sides: Side) -> tuple[FeatureInput, ...]:
        """The features of some sides, in the order of the spec."""
        return tuple(f for f in self.features if f.side in sides)

    def history(self) -> tuple[FeatureInput, ...]:
        """The item features that describe an event of the history."""
        return tuple(f for f in self.features if f.name in self.history_features)
