"""Bad input through the real commands: one message, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.mistakes.shop import Tables, clicks, contents
from twotower.cli.main import main
from twotower.data.prepared import open_prepared

FAST = ("trainer.accelerator=cpu", "quiet=true")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(work: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command that must refuse its input; the lines of its message."""

    def run(*argv: str, logged: str = "") -> list[str]:
        before = contents(work)
        capsys.readouterr()
        status = main(list(argv))
        printed = capsys.readouterr()
        assert status == 2, printed.err
        assert printed.out == ""
        assert "Traceback" not in printed.err
        log, _, message = printed.err.partition("error: ")
        assert message
        assert "error" not in message
        assert log == logged
        assert contents(work) == before
        return message.splitlines()

    return run


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_column_is_missing(refused, command: str) -> None:
    tables = Tables()
    tables.interactions[0] = "user_id,movie,timestamp"
    fast = FAST if command == "train" else ("quiet=true",)
    assert refused(command, *tables.write(), *fast) == [
        "interactions.csv: column `item_id` is missing; available: user_id, movie, timestamp; if "
        "it is one of these, say data.columns.item_id=<name>"
    ]


def test_a_column_has_the_wrong_type(refused) -> None:
    tables = Tables()
    tables.interactions[1:] = [row.replace(",", ".0,", 1) for row in tables.interactions[1:]]
    assert refused("train", *tables.write(), *FAST) == [
        "interactions.csv: column `user_id` holds numbers with a decimal point; allowed: 64-bit "
        "integers or text"
    ]


def test_an_id_is_null(refused) -> None:
    tables = Tables()
    tables.interactions[2] = ",5,1700000000"
    tables.interactions[7] = ",6,1700000000"
    assert refused("train", *tables.write(), *FAST) == [
        "interactions.csv: column `user_id`: 2 rows without an id, at data row 2, 7 (from 1, "
        "header not counted): received null; allowed: 64-bit integers or text"
    ]


def test_an_item_stands_in_the_table_twice(refused) -> None:
    tables = Tables()
    tables.items += ["5,g1"]
    assert refused("train", *tables.write(), *FAST) == [
        "items.csv: column `item_id`: 1 row with an id that an earlier row has already, at data "
        "row 13 (from 1, header not counted): received '5'; allowed: one row an id"
    ]


def test_a_time_cannot_be_read(refused) -> None:
    tables = Tables()
    tables.interactions[4] = "3,4,yesterday"
    assert refused("train", *tables.write(), *FAST) == [
        "interactions.csv: column `timestamp`: 1 row with a time that cannot be read, at data row "
        "4 (from 1, header not counted): received 'yesterday'; allowed: integer seconds since "
        "1970, timestamps, dates or ISO 8601 text"
    ]


def test_a_label_is_out_of_range(refused) -> None:
    data = Tables().labelled("1", "7", "0").write()
    assert refused("train", *data, "data.label.column=click", *FAST) == [
        "interactions.csv: column `click` (`label`): 1 row outside the range, at data row 2 (from "
        "1, header not counted): received '7'; allowed: numbers from 0 to 1 (data.label.minimum, "
        "data.label.maximum)"
    ]


def test_a_label_that_is_not_there(refused) -> None:
    data = Tables().write()
    assert refused("train", *data, "data.label.column=clicked", *FAST) == [
        "interactions.csv: column `clicked` is missing; available: user_id, item_id, timestamp; if "
        "it is one of these, say data.label.column=<name>"
    ]


def test_a_label_that_nobody_declared(refused) -> None:
    tables = Tables().labelled()
    tables.interactions[0] = "user_id,item_id,timestamp,label"
    assert refused("train", *tables.write(), *FAST) == [
        "interactions.csv: there is a column `label`, but no label is declared, and every row "
        "would count as a positive; say data.label.column=label (and data.label.minimum, maximum, "
        "positive_from) or leave the column out"
    ]


@pytest.mark.parametrize("option", ["data=tables", "data=impressions"])
def test_a_label_is_declared_from_the_command_line(option: str, capsys) -> None:
    data = Tables().labelled().write()[1:]
    assert main(["prepare", option, *data, "data.label.column=click", "quiet=true"]) == 0
    assert not Path("runs").exists()
    (folder,) = Path("prepared").iterdir()
    assert open_prepared(folder).manifest["counts"]["negatives"] == 41  # of 81, from 0 on


@pytest.mark.parametrize("name", ["interactions", "items"])
def test_a_table_is_empty(refused, name: str) -> None:
    tables = Tables()
    del getattr(tables, name)[1:]
    assert refused("train", *tables.write(), *FAST) == [
        f"{name}.csv: the table is empty; at least one row is needed"
    ]


def test_a_table_is_not_there(refused) -> None:
    data = Tables().write()
    Path("items.csv").unlink()
    (line,) = refused("train", *data, *FAST)
    assert line.startswith("items.csv: ")
    (line,) = refused("train", "data=tables", *FAST)
    assert line == "`data.interactions`: missing, a value must be given"


def test_a_part_of_the_split_is_empty(refused) -> None:
    tables = Tables()
    tables.interactions = [f"{row},train" for row in tables.interactions]
    tables.interactions[0] = "user_id,item_id,timestamp,split"
    log = "The given split has no validation rows: 10 % of train held out\n"
    (line,) = refused("train", *tables.write(), "split=given", *FAST, logged=log)
    assert line.startswith("split=given: the test part is empty (81 rows in all, ")
    assert line.endswith("; every part needs at least one row")


def test_every_part_of_the_split_that_is_empty(refused) -> None:
    data = Tables().write()
    cuts = ("split.validation_from=2040-01-01", "split.test_from=2041-01-01")
    first, second = refused("train", *data, *cuts, *FAST)
    assert first.startswith("split=temporal: the validation part is empty (81 rows in all, 81 tra")
    assert second.startswith("split=temporal: the test part is empty (81 rows in all, 81 train")


def test_a_temporal_split_without_times(refused) -> None:
    assert refused("train", *clicks(), "stages=[ranking]", *FAST) == [
        "split=temporal needs a `timestamp` column; allowed without one: given, random"
    ]


def test_an_option_that_does_not_exist(refused) -> None:
    assert refused("train", "split=tempral") == [
        "`split=tempral`: unknown, did you mean `temporal`; valid: given, leave_one_out, random, "
        "temporal"
    ]


def test_a_key_that_does_not_exist(refused) -> None:
    (line,) = refused("train", "losses.retrieval.loss.temprature=0.1")
    assert line.startswith(
        "`losses.retrieval.loss.temprature`: unknown, did you mean `temperature`; valid: "
    )


def test_a_value_of_the_wrong_type(refused) -> None:
    assert refused("train", "training.retrieval.batch_size=many") == [
        "`training.retrieval.batch_size`: must be int, got 'many'"
    ]


def test_two_mistakes_at_once(refused) -> None:
    lines = refused("train", "split=tempral", "losses.retrieval.loss.temprature=0.1")
    assert [line.partition(";")[0] for line in lines] == [
        "`split=tempral`: unknown, did you mean `temporal`",
        "`losses.retrieval.loss.temprature`: unknown, did you mean `temperature`",
    ]


def test_two_values_of_the_wrong_type_at_once(refused) -> None:
    lines = refused("train", "training.retrieval.batch_size=many", "data.num_users=[1]")
    assert sorted(lines) == [
        "`data.num_users`: must be int, got [1]",
        "`training.retrieval.batch_size`: must be int, got 'many'",
    ]


def test_all_problems_of_all_tables_at_once(refused) -> None:
    tables = Tables()
    tables.interactions[2] = ",5,1700000000"
    tables.interactions[4] = "3,4,yesterday"
    tables.users[0] = "who,country"
    tables.items += ["5,g1"]
    lines = refused("train", *tables.write(), *FAST)
    assert [line.partition(" (from")[0] for line in lines] == [
        "interactions.csv: column `user_id`: 1 row without an id, at data row 2",
        "interactions.csv: column `timestamp`: 1 row with a time that cannot be read, at data row "
        "4",
        "users.csv: column `user_id` is missing; available: who, country; if it is one of these, "
        "say data.columns.user_id=<name>",
        "items.csv: column `item_id`: 1 row with an id that an earlier row has already, at data "
        "row 13",
    ]


def test_stages_that_do_not_exist(refused) -> None:
    assert refused("train", "stages=[rankin]", *FAST) == [
        "stages: must be some of retrieval, ranking, got rankin"
    ]
    assert refused("train", "stages=[]", *FAST) == [
        "stages: must be some of retrieval, ranking, got none"
    ]


def test_retrieval_on_a_flat_click_table(work: Path, capsys) -> None:
    """The prepared data is whole and stays, for the ranker; the run is not begun."""
    assert main(["train", *clicks(), "split=given", "stages=[retrieval]", *FAST]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: retrieval needs `user_id` and `item_id` in the interactions; a flat click table "
        "can only train the ranker: stages=[ranking]"
    )
    assert sorted(path.name for path in work.iterdir()) == ["clicks.csv", "prepared"]
    (folder,) = (work / "prepared").iterdir()
    open_prepared(folder)


@pytest.mark.parametrize("stages", ["[ranking]", "[retrieval,ranking]"])
def test_a_part_without_a_positive_is_seen_before_training(work: Path, stages: str, capsys) -> None:
    data = Tables().labelled().write()
    lines = Path("interactions.csv").read_text().splitlines()
    late = [f"{line[:-1]}0" for line in lines[64:]]  # from there on the test part begins
    Path("interactions.csv").write_text("\n".join([*lines[:64], *late]) + "\n")
    further = ("split.validation_share=0.1", "split.test_share=0.2")
    fixed = [*data, "data.label.column=click", *further, f"stages={stages}", *FAST]
    assert main(["train", *fixed]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the test part has no positive among its 18 rows; a positive is a row whose label "
        "is at least data.label.positive_from=1"
    )
    assert not (work / "runs").exists()


def test_a_part_where_all_bought_is_seen_before_training(work: Path, capsys) -> None:
    data = [*clicks(), "stages=[ranking]", "split=given"]
    lines = Path("clicks.csv").read_text().splitlines()
    bought = [f"{line},{int('test' in line or line.startswith('s0'))}" for line in lines[1:]]
    Path("clicks.csv").write_text("\n".join([f"{lines[0]},bought", *bought]) + "\n")
    assert main(["train", *data, "data.label.tasks={bought: 1}", *FAST]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "of one outcome" in line]
    assert error[-1].endswith(
        "the test part has only rows of one outcome in `bought` (data.label.tasks); a ranker of "
        "this task needs both"
    )
    assert not (work / "runs").exists()


def test_ranking_alone_on_positives_alone(work: Path, capsys) -> None:
    assert main(["train", *Tables().write(), "stages=[ranking]", *FAST]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the log holds positives alone, so the ranker learns on a retriever's candidates: "
        "train both stages, stages=[retrieval,ranking]"
    )
    assert not (work / "runs").exists()


def test_impressions_where_there_are_none_are_seen_before_training(work: Path, capsys) -> None:
    assert main(["train", *Tables().write(), "training/examples=impressions", *FAST]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the log holds positives alone; the ranker needs impressions")
    assert not (work / "runs").exists()


def test_a_metric_by_user_without_users(work: Path, capsys) -> None:
    data = [*clicks(), "stages=[ranking]", "split=given"]
    assert main(["train", *data, "training.ranking.monitor=grouped_auc", *FAST]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: training: `monitor` must be one of auc, log_loss, normalised_entropy, "
        "calibration_error, got grouped_auc"
    )
    assert not (work / "runs").exists()


def test_a_setting_that_only_the_model_can_judge(work: Path, capsys) -> None:
    data = Tables().write()
    assert main(["train", *data, "losses.retrieval.loss.temperature=0", *FAST]) == 2
    assert "temperature" in capsys.readouterr().err
    assert not (work / "runs").exists()


def test_other_runs_stay(refused, work: Path) -> None:
    other = work / "runs" / "train" / "2020-01-01_00-00-00"
    other.mkdir(parents=True)
    (other / "metrics.json").write_text("{}")
    refused("train", "stages=[rankin]", *FAST)  # compares all that is there


def test_a_sweep_leaves_no_folder_of_a_refused_job(work: Path, capsys) -> None:
    argv = ["train", "-m", "stages=[rankin]", "seed=1,2", *FAST]
    assert main(argv) == 2
    assert capsys.readouterr().err.count("error: stages: must be some of") == 2
    assert not list(work.glob("runs/train/*/[0-9]*"))


def test_a_run_that_is_not_there(refused) -> None:
    assert refused("export", "run=gone") == [
        "gone: no run here (no config.yaml); runs are written by `twotower train`"
    ]
    (line,) = refused("train", "resume=gone")
    assert line == "`resume`: no run folder `gone`"


def test_resuming_with_other_settings_keeps_the_run(tiny_run, work: Path, refused) -> None:
    """Even a run that was stopped before its first stage began."""
    run = work / "run"
    shutil.copytree(tiny_run.run, run)
    for path in run.iterdir():
        if path.name not in ("config.yaml", "features", "features.yaml", "prepared.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(run)
    assert main(["train", f"resume={run}", "seed=3"]) == 2
    assert {name: c for name, c in contents(run).items() if name in before} == before


def test_a_bundle_that_is_not_there(refused) -> None:
    for command in ("recommend", "evaluate"):
        (line,) = refused(command, "bundle=gone")
        assert line.startswith("gone: no bundle here")
        assert "run `twotower export run=<run>`" in line


def test_an_unknown_user(tiny_run, refused) -> None:
    (line,) = refused("recommend", f"bundle={tiny_run.bundle}", "user=nobody")
    assert line.startswith("user: 'nobody' is unknown; known are 120 users such as ")
    assert line.endswith("For somebody new give user=null and history=[<item ids>]")


@pytest.mark.parametrize(
    "name",
    [
        *("item_vectors.npy", "query_tower.onnx", "ranker.onnx", "golden.npz", "popular.npy"),
        *("features/features.json", "items/table.arrow", "events/offsets.npy", "manifest.json"),
    ],
)
def test_a_bundle_with_one_changed_byte(tiny_run, work: Path, refused, name: str) -> None:
    version = work / "bundle"
    shutil.copytree((tiny_run.bundle / "current").resolve(), version)
    path = version / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    commands = ("recommend", "evaluate") if name == "golden.npz" else ("recommend",)
    for command in commands:
        (line, *_) = refused(command, f"bundle={version}")
        assert line.startswith(f"{path}: changed since it was written") or (
            name == "manifest.json" and line.startswith(f"{path}: ")
        )


def test_items_and_users_without_a_row_of_their_own(work: Path, capsys) -> None:
    """They are kept, their features are missing, and one warning a table says so."""
    tables = Tables()
    del tables.items[2:9]  # items 1 to 7
    del tables.users[1]  # user 0
    assert main(["prepare", *tables.write(), "quiet=true"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "in the inter" in line]
    assert warnings == [
        "1 of the 9 values of `user_id` are in the interactions alone, not in the table that "
        "describes them; they are kept and their features count as missing. First: 0",
        "7 of the 12 values of `item_id` are in the interactions alone, not in the table that "
        "describes them; they are kept and their features count as missing. First: 1, 2, 3, 4, 5",
    ]
    (folder,) = Path("prepared").iterdir()
    prepared = open_prepared(folder)
    assert json.loads((folder / "manifest.json").read_text())["counts"]["interactions"] == 81
    genres = dict(
        zip(prepared.items.ids.to_pylist(), prepared.items.columns["genre"].tolist(), strict=True)
    )
    assert {item for item, code in genres.items() if code == 0} == set(range(1, 8))
    assert len(genres) == 12
    ids = prepared.items.columns["item_id"]
    assert (ids > 0).all()  # they are known by their id
    countries = dict(
        zip(prepared.users.ids.to_pylist(), prepared.users.columns["country"].tolist(), strict=True)
    )
    assert [user for user, code in countries.items() if code == 0] == [0]


def test_an_encoder_that_reads_times_for_a_log_without_them(work: Path, capsys) -> None:
    tables = Tables()
    pairs = [line.rpartition(",")[0] for line in tables.interactions[1:]]
    parts = ["train"] * 63 + ["validation"] * 9 + ["test"] * 9
    rows = [f"{pair},{part}" for pair, part in zip(pairs, parts, strict=True)]
    tables.interactions = ["user_id,item_id,split", *rows]
    given = [*tables.write(), "split=given", "models/retrieval=two_tower_hstu", *FAST]
    assert main(["train", *given]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: HSTU reads the times of events, but the interactions have no `timestamp`; say "
        "`time_bias: false` of the history"
    )


def test_sequence_batches_for_an_encoder_without_an_order(work: Path, capsys) -> None:
    assert main(["train", *Tables().write(), "training/batches=sequence", *FAST]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: sequence batches need an encoder of the history that reads in order, such as "
        "models/retrieval=two_tower_transformer or two_tower_gru; got MeanPooling"
    )
    assert not (work / "runs").exists()
