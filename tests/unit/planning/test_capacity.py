"""A whole plan: what is refused, what is put together, what decides, and what is said of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.planning.meters import (
    NUM_ITEMS,
    NUM_USERS,
    inputs_of,
    ranker_model,
    towers_model,
)
from twotower.config import check, compose
from twotower.export.onnx import MAX_BYTES, export_query_tower, export_ranker
from twotower.losses.calibration import Calibration
from twotower.models.tables import halve_tables
from twotower.planning import capacity_training
from twotower.planning.capacity import index_command, plan
from twotower.planning.capacity_advice import advice, in_bytes, in_hours
from twotower.planning.capacity_question import Question
from twotower.planning.capacity_serving import MAX_MODEL, model_bytes, plan_serving, tables_bytes
from twotower.planning.capacity_training import plan_training, ranker_of, towers_of
from twotower.planning.capacity_work import NUM_RECENT

SHOP = Question(
    users=100_000,
    items=20_000,
    dim=64,
    embedding_dim=32,
    precision="float32",
    optimizer="rowwise_adagrad",
    hidden=(128,),
    interactions_per_day=100_000,
    positive_share=1.0,
    window_days=30,
    epochs=2,
    history=20,
    batch=4096,
    negatives=512,
    training_hours=24.0,
    queries_per_second=100.0,
    latency_ms=50.0,
    recall=0.95,
    candidates=200,
    stored_items=100,
    index=("flat", "ivf_flat", "ivf_pq", "hnsw", "cagra"),
    gpu="h100",
    gpu_memory_gb=None,
    gpus=8,
    cores=112,
    ram_gb=2000.0,
)
GIANT = replace(
    SHOP,
    users=100_000_000,
    items=1_000_000_000,
    embedding_dim=64,
    interactions_per_day=100_000_000,
    queries_per_second=1000.0,
)


def said(question: Question) -> str:
    return "\n".join(advice(plan(question)))


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match="users") as error:
        replace(
            SHOP,
            users=0,
            items=2.5,
            dim=-1,
            hidden=(64, 0),
            recall=1.5,
            positive_share=0.0,
            latency_ms=float("nan"),
            gpu_memory_gb=-1.0,
            precision="int4",
            optimizer="sgd",
            gpu="tpu",
            index=("flat", "annoy"),
        )
    assert str(error.value).splitlines() == [
        "`users` must be a whole number of at least 1, got 0",
        "`items` must be a whole number of at least 1, got 2.5",
        "`dim` must be a whole number of at least 1, got -1",
        "`hidden[1]` must be a whole number of at least 1, got 0",
        "`latency_ms` must be above 0 and finite, got nan",
        "`gpu_memory_gb` must be above 0 and finite, got -1.0",
        "`recall` must lie in (0, 1], got 1.5",
        "`positive_share` must lie in (0, 1], got 0.0",
        "`precision` must be one of float32, bfloat16, got int4",
        "`optimizer` must be one of rowwise_adagrad, lazy_adam, got sgd",
        "`gpu` must be one of h100, h200, a100, l4, none, got tpu",
        "`index[1]` must be one of flat, ivf_flat, ivf_pq, hnsw, cagra, got annoy",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": 2**31}, "`items` must be at most 2,147,483,647, rows are numbered by int32"),
        ({"users": float("inf")}, "`users` must be a whole number of at least 1, got inf"),
        ({"queries_per_second": 0.0}, "`queries_per_second` must be above 0 and finite, got 0.0"),
        ({"index": ()}, "`index` must name at least one of flat, "),
        ({"history": -1}, "`history` must be a whole number of at least 0, got -1"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match="must") as error:
        replace(SHOP, **changes)
    assert message in str(error.value)


def test_a_small_shop_needs_no_gpu():
    planned = plan(SHOP)
    assert planned.training.core_hours < 24
    assert planned.chosen is not None
    assert (planned.chosen.option.kind, planned.chosen.option.place) == ("flat", "cpu")
    assert planned.chosen.machines == 1
    assert "no GPU is needed, one CPU core does it in" in said(SHOP)
    assert "one machine is enough" in said(SHOP)


def test_a_giant_is_divided():
    planned = plan(GIANT)
    retrieval = planned.training.stages[0]
    # 1.1e9 rows of 64 float32, and one accumulator of 4 bytes each.
    assert retrieval.tables == (1_100_000_000 + 2) * 256
    assert retrieval.optimizer == (1_100_000_000 + 2) * 4
    # 0.9 x 80 GB a GPU: 286 GB of tables and 66 GB of columns take five.
    assert retrieval.memory_gpus == 5
    assert planned.training.gpus == 5
    assert planned.training.machines == 1
    words = said(GIANT)
    assert "their rows must be divided over 5 GPUs, with TorchRec (row-wise sharding)." in words
    assert "this release refuses to export it" in words
    assert planned.chosen is not None
    assert (planned.chosen.option.kind, planned.chosen.option.place) == ("ivf_pq", "gpu")
    flat = next(s for s in planned.serving if s.option.kind == "flat" and s.option.place == "gpu")
    # 256 GB over 72 GB.
    assert flat.gpu_pieces == 4


def test_machines_follow_from_gpus_and_hours():
    hasty = plan_training(replace(GIANT, training_hours=0.1))
    calm = plan_training(GIANT)
    assert hasty.gpus is not None
    assert calm.hours is not None
    assert hasty.hours is not None
    assert hasty.hours <= 0.1
    assert hasty.gpus == -(-calm.hours * calm.gpus // 0.1)
    assert hasty.machines == -(-hasty.gpus // 8)


def test_half_precision_and_the_optimizer():
    half = plan_training(replace(GIANT, precision="bfloat16")).stages[0]
    whole = plan_training(GIANT).stages[0]
    assert 2 * half.tables == whole.tables
    adam = replace(GIANT, optimizer="lazy_adam", precision="bfloat16")
    assert plan_training(adam).stages[0].optimizer == 2 * whole.tables  # its moments are not halved
    adam = replace(GIANT, optimizer="lazy_adam")
    assert plan_training(adam).stages[0].optimizer == 2 * whole.tables
    assert "Row-wise Adagrad would spare 559 GB a stage." in said(adam)


def test_half_precision_where_it_makes_tables_fit_one_gpu():
    """300M rows of 64 take 76.8 GB and their accumulators 1.2: more than 0.9 x 80 GB; half fits."""
    tight = replace(GIANT, users=100_000_000, items=200_000_000)
    hint = "In bfloat16 (trainer.table_precision) tables and optimiser take 39.6 GB and fit one GPU"
    assert "their rows must be divided" in said(tight)
    assert hint in said(tight)
    half = replace(tight, precision="bfloat16")
    assert "their rows must be divided" not in said(half)
    assert "trainer.table_precision" not in said(half)
    assert "trainer.table_precision" not in said(GIANT)  # 141 GB and 4.4 would not fit


def test_half_precision_of_tables_that_are_divided_is_refused():
    assert "divides float32 tables alone: plan with precision=float32." in said(
        replace(GIANT, precision="bfloat16")
    )
    assert "precision=float32" not in said(GIANT)


def test_columns_alone_can_be_too_much():
    busy = replace(SHOP, interactions_per_day=200_000_000)
    assert "the tables fit one H100 SXM, but not beside" in said(busy)


def test_a_step_that_fits_no_gpu():
    wide = replace(GIANT, batch=16_000_000)
    assert plan_training(wide).gpus is None
    assert "take a smaller batch" in said(wide)


@pytest.mark.parametrize("without", [{"gpu": "none"}, {"gpus": 0}])
def test_without_gpus(without):
    question = replace(GIANT, **without)
    planned = plan(question)
    assert planned.training.gpus is None
    assert {serving.option.place for serving in planned.serving} == {"cpu"}
    assert "plan with a GPU (gpu=h100)" in said(question)


def test_memory_of_a_gpu_can_be_given():
    small = replace(SHOP, gpu_memory_gb=0.5, batch=128)
    assert small.machine.gpu.memory == 500_000_000
    assert small.machine.gpu.bandwidth == SHOP.machine.gpu.bandwidth


def test_impressions_are_ranked_and_only_positives_retrieved():
    few = plan_training(replace(SHOP, positive_share=0.1))
    assert [stage.examples for stage in few.stages] == [2 * 300_000, 2 * 3_000_000]
    # Of positives alone at most 20 of a user, each with five other candidates.
    alone = plan_training(replace(SHOP, interactions_per_day=1_000_000))
    assert [stage.examples for stage in alone.stages] == [2 * 30_000_000, 2 * 100_000 * 20 * 6]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("users", 400_000),
        ("items", 80_000),
        ("embedding_dim", 64),
        ("interactions_per_day", 400_000),
        ("window_days", 60),
        ("epochs", 4),
        ("history", 50),
        ("dim", 128),
    ],
)
def test_more_never_takes_less(name, more):
    small, large = plan(SHOP), plan(replace(SHOP, **{name: more}))
    for before, after in zip(small.training.stages, large.training.stages, strict=True):
        assert after.memory >= before.memory
        assert after.core_hours >= before.core_hours
    for part in ("prepared", "preparing", "checkpoints", "vectors", "models", "store"):
        assert getattr(large.storage, part) >= getattr(small.storage, part)


def test_cores_follow_the_load():
    """Half busy at the peak: 100 requests a second of m milliseconds keep m / 10 cores, twice."""
    [flat] = plan_serving(replace(SHOP, index=("flat",), gpu="none"))
    assert flat.cores == pytest.approx(2 * flat.milliseconds / 10)
    [busier] = plan_serving(replace(SHOP, index=("flat",), gpu="none", queries_per_second=1e5))
    assert busier.cores == pytest.approx(1000 * flat.cores)
    assert busier.machines == -(-busier.cores // 112)


def test_an_index_that_is_late_is_not_taken():
    # 5 million x 64 are read in 211 ms of a core.
    many = replace(SHOP, items=5_000_000, gpu="none")
    planned = plan(many)
    assert planned.chosen is not None
    assert planned.chosen.option.kind != "flat"
    assert "flat on CPU (2" in said(many)
    assert " ms alone of 25)" in said(many)


def test_the_ranker_alone_can_be_late():
    slow = replace(SHOP, candidates=5_000, latency_ms=10.0)
    assert plan(slow).chosen is None
    assert "the ranker alone takes" in said(slow)
    assert "rank fewer candidates or allow more milliseconds" in said(slow)


def test_when_no_index_does_it_every_reason_is_given():
    question = replace(SHOP, items=50_000_000, index=("flat",), gpu="none")
    assert plan(question).chosen is None
    assert "no kind of index does it. flat on CPU: " in said(question)
    # 12.8 GB are read in 2.11 s of a core, which may be half of the milliseconds.
    late = round(plan(question).serving[0].milliseconds)
    assert 2_100 < late < 2_130
    [wanted] = re.findall(r"With latency_ms=(\d+) flat on CPU would do", said(question))
    assert plan(replace(question, latency_ms=float(wanted))).chosen is not None


def test_memory_of_machines_divides_an_index_or_leaves_no_room():
    tight = replace(
        SHOP, items=5_000_000, index=("ivf_flat",), gpu="none", ram_gb=1.4, latency_ms=100.0
    )
    assert plan(tight).serving[0].problems[-1] == "the models leave no memory"
    two = replace(tight, ram_gb=2.0)
    [divided] = plan(two).serving
    assert divided.is_divided
    assert f"lies on {divided.ram_pieces} machines, over which this release does not" in said(two)


def test_the_gpus_of_a_machine_share_an_index():
    """264 GB of inverted files over 72 GB a GPU are four."""
    large = replace(GIANT, index=("ivf_flat",))
    chosen = plan(large).chosen
    assert chosen is not None
    assert (chosen.option.place, chosen.gpu_pieces, chosen.num_shards) == ("gpu", 4, 4)
    assert index_command(chosen).endswith(" index.device=gpu index.num_shards=4")
    assert "larger than a GPU: FAISS divides it over 4 (`index.num_shards`)" in said(large)
    few = replace(large, gpus=3)
    chosen = plan(few).chosen
    assert chosen is not None
    assert (chosen.gpu_pieces, chosen.num_shards) == (4, 1)
    assert "num_shards" not in said(few)
    assert "lies on 4 GPUs, more than a machine has; this release divides it over" in said(few)
    small = plan(replace(SHOP, index=("flat",))).serving[1]
    assert (small.option.place, small.num_shards) == ("gpu", 1)
    assert "num_shards" not in index_command(small)


def test_a_graph_that_is_larger_than_a_gpu_cannot_be_taken():
    [cagra] = [s for s in plan(GIANT).serving if s.option.kind == "cagra"]
    # 512 GB, and 644 GB while it is pruned, over 72 GB.
    assert cagra.problems == ("larger than a GPU, and FAISS does not divide it over 17",)
    [fits] = [s for s in plan(replace(GIANT, items=10**7)).serving if s.option.kind == "cagra"]
    assert not fits.problems


def test_preparing_that_fits_no_memory():
    assert "Preparing takes" not in said(SHOP)
    assert "Preparing takes" in said(replace(SHOP, ram_gb=0.5))


def test_what_is_advised_can_be_done():
    """The overrides are those of `export`."""
    for serving in plan(GIANT).serving:
        cfg = compose("export", ["run=runs/x", *index_command(serving).split()])
        check(cfg)
        assert cfg.index._target_.startswith("twotower.index.")


def test_the_models_are_those_of_the_default_configs():
    cfg = compose("train")
    deep = cfg.models.ranking
    assert tuple(deep.deep.hidden) == capacity_training.RANKER_HIDDEN
    assert deep.cross.num_layers == capacity_training.CROSS_LAYERS
    assert deep.history.num_recent == NUM_RECENT
    assert list(cfg.models.retrieval.hidden) == list(compose("plan").hidden)
    drawn = cfg.training.examples.candidates
    assert drawn.num_negatives == capacity_training.CANDIDATES_PER_POSITIVE
    assert drawn.positives_per_user == capacity_training.POSITIVES_PER_USER


@pytest.mark.parametrize(
    ("width", "precision"), [(8, "float32"), (16, "float32"), (32, "bfloat16")]
)
def test_exported_models_hold_their_tables(width, precision, tmp_path: Path):
    """A file is the tables and little else; what is too large for a file is known."""
    question = replace(
        SHOP, users=NUM_USERS, items=NUM_ITEMS, embedding_dim=width, precision=precision
    )
    inputs = inputs_of(NUM_USERS, NUM_ITEMS, question.history)
    query, ranking = tmp_path / "query_tower.onnx", tmp_path / "ranker.onnx"
    towers, ranker = towers_model(towers_of(question)), ranker_model(ranker_of(question))
    if precision == "bfloat16":
        halve_tables(nn.ModuleList([towers, ranker]))
    export_query_tower(towers, inputs, query)
    calibration = Calibration(negative_rate=1.0)
    export_ranker(ranker, inputs, ranking, calibration=calibration)
    planned = tables_bytes(question)
    for path in (query, ranking):
        assert path.stat().st_size == pytest.approx(planned, rel=0.1)
    assert model_bytes(question) > 2 * planned
    assert MAX_MODEL == MAX_BYTES


def test_the_document_is_json():
    document = json.loads(json.dumps(plan(GIANT).document()))
    assert document["question"]["items"] == 1_000_000_000
    assert len(document["serving"]) == 10
    assert document["chosen"]["option"]["kind"] == "ivf_pq"
    assert document["training"]["stages"][1]["name"] == "ranking"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (999.9, "1.00 kB"), (12_345, "12.3 kB"), (281.6e9, "282 GB")],
)
def test_bytes_in_words(number, text):
    assert in_bytes(number) == text


@pytest.mark.parametrize(
    ("hours", "text"), [(0.001, "4 seconds"), (0.75, "45 minutes"), (47.0, "47.0 hours")]
)
def test_hours_in_words(hours, text):
    assert in_hours(hours) == text


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 2**31 - 1),
    items=st.integers(1, 2**31 - 1),
    dim=st.integers(1, 512),
    interactions=st.integers(1, 10**10),
    candidates=st.integers(1, 5_000),
    recall=st.floats(0.01, 1.0),
    queries=st.floats(0.01, 1e6),
    gpu=st.sampled_from(["h100", "l4", "none"]),
    gpus=st.integers(0, 8),
    ram=st.floats(0.1, 4_000),
)
def test_whatever_is_asked_is_answered(
    users, items, dim, interactions, candidates, recall, queries, gpu, gpus, ram
):
    planned = plan(
        replace(
            SHOP,
            users=users,
            items=items,
            dim=dim,
            embedding_dim=None,
            interactions_per_day=interactions,
            candidates=candidates,
            recall=recall,
            queries_per_second=queries,
            gpu=gpu,
            gpus=gpus,
            ram_gb=ram,
        )
    )
    words = advice(planned)
    assert words[0].startswith("Training: ")
    assert all(sentence.endswith(".") for sentence in words)
    json.dumps(planned.document(), allow_nan=False)
    for serving in planned.serving:
        assert serving.machines >= 1
        assert serving.milliseconds > 0
        assert 0 < serving.option.recall <= 1
        assert (serving.gpus > 0) == (serving.option.place == "gpu")
    if planned.chosen is not None:
        assert planned.chosen.option.recall >= recall - 1e-9
        assert planned.chosen.problems == ()
