"""Mistakes in the words of a command: commands, switches, overrides, values, specs, requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.end_to_end.mistakes.mistake import Mistake, Place
from tests.end_to_end.mistakes.shop import Tables

Words = Callable[[Place], Sequence[str]]
CPU = ("trainer.accelerator=cpu", "quiet=true")


def said(*words: str) -> Words:
    """These words."""
    return lambda place: words


def training(*further: str) -> Words:
    """A training on good tables, and words that are wrong."""
    return lambda place: ["train", *Tables().write(), *CPU, *further]


def asked(command: str, *further: str) -> Words:
    """A request to the bundle of the tiny world."""
    return lambda place: [command, place.bundle, *further, "quiet=true"]


def exported(*further: str) -> Words:
    """An export of the run of the tiny world."""
    return lambda place: ["export", place.run, "quiet=true", *further]


def spec(text: str) -> Words:
    """A spec of features of one's own."""

    def words(place: Place) -> list[str]:
        Path("mine.yaml").write_text(text)
        further = ["features=file", "features.path=mine.yaml", "quiet=true"]
        return ["prepare", *Tables().write(), *further]

    return words


MISTAKES = {
    "overrides": [
        Mistake("a command that does not exist", said("trian"), "no command `trian`", "`train`"),
        Mistake("no command", said(), "no command given", "usage: twotower <command>"),
        Mistake(
            "a setting as a switch",
            said("train", "--epochs", "3"),
            "`--epochs`: no such switch",
            "given as key=value",
        ),
        Mistake(
            "a setting without =",
            said("train", "seed", "3"),
            "`seed`: not of the form key=value",
            "there is no `=`",
        ),
        Mistake(
            "a name with brackets without quotes",
            said("prepare", "data=tables", "data.interactions=my log (1).csv"),
            "`data.interactions=my log (1).csv`: not of the form key=value",
            "put the value in quotes twice: 'data.interactions=\"my log (1).csv\"'",
        ),
        Mistake(
            "an option that does not exist",
            said("train", "split=tempral"),
            "`split=tempral`: unknown",
            "did you mean `temporal`; valid: given, leave_one_out, random, temporal",
        ),
        Mistake(
            "a key that does not exist",
            said("train", "losses.retrieval.loss.temprature=0.1"),
            "`losses.retrieval.loss.temprature`: unknown",
            "did you mean `temperature`",
        ),
        Mistake(
            "an experiment that does not exist",
            said("train", "experiment=demoo"),
            "`experiment=demoo`: unknown",
            "did you mean `demo`; valid: clicks",
        ),
        Mistake(
            "a group without its folder",
            said("train", "models=dcn"),
            "`models=dcn`: `models` is no group with options",
            "groups are models/ranking, models/ranking/history, models/retrieval",
        ),
        Mistake(
            "a group that is chosen with a dot",
            said("train", "models.retrieval=two_tower_gru"),
            "`models.retrieval=two_tower_gru`",
            "choose with `models/retrieval=<option>`",
        ),
        Mistake(
            "a value where a list is expected",
            said("train", "stages=retrieval"),
            "`stages=retrieval`: must be a list",
            "write stages=[retrieval]",
        ),
        Mistake(
            "a stage that does not exist",
            said("train", "stages=[rankin]"),
            "got rankin",
            "stages: must be some of retrieval, ranking",
        ),
        Mistake(
            "a number in words",
            said("train", "training.retrieval.batch_size=many"),
            "`training.retrieval.batch_size`: must be int",
            "got 'many'",
        ),
        Mistake(
            "two mistakes at once",
            said("train", "split=tempral", "training.retrieval.batch_size=many", "seeed=3"),
            "`split=tempral`: unknown",
            "`seeed`: unknown, did you mean `seed`",
        ),
        Mistake(
            "no table is named",
            said("train", "data=tables"),
            "`data.interactions`: missing",
            "a value must be given",
        ),
        Mistake(
            "code from anywhere",
            said("train", "models.retrieval._target_=os.system"),
            "`os.system` may not be built from a config",
            "allowed: twotower.*",
        ),
    ],
    "values": [
        Mistake(
            "batches of no rows",
            training("training.retrieval.batch_size=0"),
            "got 0",
            "training: `batch_size` must be at least 1",
        ),
        Mistake(
            "no epoch",
            training("training.ranking.max_epochs=-1"),
            "got -1",
            "training: `max_epochs` must be at least 1",
        ),
        Mistake(
            "lists of no items",
            training("evaluation.ks=[0]"),
            "got [0]",
            "evaluation: `ks` must be list lengths of at least 1",
        ),
        Mistake(
            "a metric that does not exist",
            training("training.retrieval.monitor=accuracy"),
            "got accuracy",
            "training: `monitor` must be one of recall@10",
        ),
        Mistake(
            "a temperature of 0",
            training("losses.retrieval.loss.temperature=0"),
            "got 0",
            "`temperature` must be a number above 0",
            leaves=("prepared",),
        ),
        Mistake(
            "vectors of no width",
            training("models.retrieval.dim=0"),
            "got [128, 0]",
            "layers of a model must be at least 1 wide",
            leaves=("prepared",),
        ),
        Mistake(
            "a spec that is no YAML",
            spec("features: [\n  - {name: a"),
            "mine.yaml: cannot be read as YAML",
            "line 2",
        ),
        Mistake(
            "a feature of a kind that does not exist",
            spec("features:\n  - {name: genre, side: item, kind: colour}\n"),
            "got 'colour'",
            "`kind` must be one of id, categorical, tags, numeric, vector, time",
        ),
        Mistake(
            "a feature without a column",
            spec("features:\n  - {name: colour, side: item, kind: categorical}\n"),
            "feature `colour`: no column `colour` on the item side",
            "columns: item_id, genre",
        ),
        Mistake(
            "no items are wanted",
            asked("recommend", "user=u000001", "k=0"),
            "got 0",
            "k: must be at least 1",
        ),
        Mistake(
            "a user whom nobody knows",
            asked("recommend", "user=42"),
            "user: 42 is unknown",
            "For somebody new give user=null and history=[<item ids>]",
        ),
        Mistake(
            "an item that nobody knows",
            asked("recommend", "history=[shoes]"),
            "history: unknown items shoes",
            "known are 80 items such as i00000",
        ),
        Mistake(
            "a filter in words of one's own",
            asked("recommend", "user=u000001", "filters=[{column: category, equals: red}]"),
            "got {'column': 'category', 'equals': 'red'}",
            "filters[0]: must be {column: <name>, operator:",
        ),
        Mistake(
            "no candidates",
            exported("num_candidates=0"),
            "got 0",
            "num_candidates must be at least 1",
        ),
        Mistake(
            "an index that does not exist",
            exported("index=ivf"),
            "`index=ivf`: unknown",
            "valid: auto, cagra, flat, hnsw, ivf_flat, ivf_pq",
        ),
        Mistake(
            "as many users as one wants",
            said("plan", "users=many", "items=1e6"),
            "`users=many`",
            "could not be converted to Float",
        ),
    ],
}
