"""Stages that go on from an earlier run: by id, everything that was learned is where it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.unit.training.conftest import SPEC, World
from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER
from twotower.data.schema import TIMESTAMP, DataError, Tables
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.features.continuation import Continuation
from twotower.features.infer import GivenSpec
from twotower.features.pipeline import FeaturePipeline
from twotower.losses.alignment import Anchor, NoAlignment
from twotower.losses.calibration import AsTrained
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.ranking import BinaryLogLoss
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.models.history import MeanPooling
from twotower.models.tables import halve_tables
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training.batches import EventBatches
from twotower.training.cross_version import MIN_KEPT, PAIRS, new_space
from twotower.training.examples import ImpressionExamples
from twotower.training.optimizers import OptimizerSettings
from twotower.training.retrieval import embed_catalogue
from twotower.training.settings import StageSettings, TrainerSettings
from twotower.training.stages import train_ranking, train_retrieval
from twotower.training.table_optimizers import LazyAdam, RowWiseAdagrad
from twotower.training.warm_start import check_warm_start, known_items, warm_start
from twotower.training.warm_towers import Warm

SPLIT = TemporalSplit(validation_share=0.2, test_share=0.2)
WORLD = SyntheticSource(
    num_users=60, num_items=40, num_days=20, slates_per_user=10, slate_size=6, seed=1
)


@dataclass(frozen=True)
class Window:
    """A part of the log as a source."""

    tables: Tables
    name: str

    def fingerprint(self):
        return self.name

    def read(self):
        return self.tables


def windows():
    """The first half without some users and items, and the second half without others."""
    tables = WORLD.read()
    log = tables.interactions
    times = log.column(TIMESTAMP).to_numpy()
    users, items = (
        log.column(name).to_numpy(zero_copy_only=False) for name in ("user_id", "item_id")
    )
    early = times < np.median(times)
    first = early & (users < "u000050") & (items < "i00033")
    second = ~early & (users >= "u000008") & (items >= "i00005")
    for name, chosen in (("first", first), ("second", second)):
        rows = pa.array(np.flatnonzero(chosen))
        yield Window(replace(tables, interactions=log.take(rows)), name)


def settings(table_optimizer=RowWiseAdagrad, max_epochs=2, monitor="ndcg@10"):
    optimizer = OptimizerSettings(
        learning_rate=0.01, table_learning_rate=0.1, table_optimizer=table_optimizer
    )
    return StageSettings(
        batch_size=64, max_epochs=max_epochs, patience=9, monitor=monitor, optimizer=optimizer
    )


def objective():
    return Objective(
        loss=SampledSoftmax(temperature=0.2),
        negatives=MixedNegatives(in_batch=True, num_uniform=8),
    )


def train(world, context, model, *, warm=None, of=None):
    return train_retrieval(
        context,
        model=model,
        inputs=world.pipeline.inputs("retrieval"),
        objective=objective(),
        batches=EventBatches(),
        settings=of or settings(),
        warm=warm,
    )


@pytest.fixture(scope="module")
def first(open_world):
    return open_world(next(windows()), SPLIT)


def continued(first, root, *, evict):
    _, window = windows()
    encoders = Continuation(provider=GivenSpec(given=SPEC), before=first.pipeline, evict=evict)
    prepared = prepare(source=window, splitter=SPLIT, encoders=encoders, root=root)
    return World(
        prepared=prepared, pipeline=FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    )


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    return continued(first, tmp_path_factory.mktemp("second"), evict=False)


@pytest.fixture(scope="module")
def evicted(first, tmp_path_factory):
    return continued(first, tmp_path_factory.mktemp("evicted"), evict=True)


@pytest.fixture(scope="module")
def run(first, tmp_path_factory):
    """Folder and towers of a run on the first window."""
    folder = tmp_path_factory.mktemp("run")
    model = first.towers()
    train(first, first.context(folder), model)
    return folder, model


def carry(world, first, folder, model, stage="retrieval"):
    return warm_start(
        model,
        stage=stage,
        run=folder,
        before=first.pipeline,
        pipeline=world.pipeline,
        prepared=world.prepared,
    )


def warm_of(world, first, alignment, before=None):
    known = known_items(world.prepared, first.pipeline, world.pipeline)
    return Warm(alignment=alignment, known=known, before=before)


def values(world, name):
    return world.pipeline.transforms[name].vocabulary.values.to_pylist()


@pytest.mark.parametrize("which", ["second", "evicted"])
def test_every_id_has_the_row_that_it_had(which, first, run, request):
    world, (folder, old) = request.getfixturevalue(which), run
    model = world.towers(seed=5)
    carry(world, first, folder, model)
    for side in ("query_embedder", "item_embedder"):
        learned, before = getattr(model, side).learned(), getattr(old, side).learned()
        for name in learned:
            if name == "image_vector":
                continue
            olds, news = values(first, name), values(world, name)
            assert torch.equal(learned[name][0][0], before[name][0][0])
            stays = set(olds) & (set(news) - {None})
            assert len(stays) >= 3
            for value in stays:
                assert olds.index(value) == news.index(value), (name, value)
                row = 1 + news.index(value)
                assert torch.equal(learned[name][0][row], before[name][0][row]), (name, value)
    tables = {f"{s}_embedder.tables.4.rows.weight" for s in ("query", "item")}
    state = old.state_dict()
    for name, weight in model.state_dict().items():
        assert name in tables or torch.equal(weight, state[name])


def test_new_ids_took_the_rows_of_those_that_vanished(first, evicted):
    olds, news = values(first, "item_id"), values(evicted, "item_id")
    gone = [row for row, value in enumerate(olds) if news[row] != value]
    assert gone
    assert {olds[row] for row in gone}.isdisjoint(news)
    fresh = set(news) - set(olds) - {None}
    assert fresh
    assert {row for row, value in enumerate(news) if value in fresh} >= set(gone[: len(fresh)])


def test_vectors_of_what_was_known_are_those_of_the_earlier_run(first, second, run):
    folder, old = run
    model = second.towers(seed=5)
    carry(second, first, folder, model)
    before = embed_catalogue(old, first.columns("retrieval"), first.prepared.num_catalogue)
    now = embed_catalogue(model, second.columns("retrieval"), second.prepared.num_catalogue)
    known = known_items(second.prepared, first.pipeline, second.pipeline)
    rows = {item: row for row, item in enumerate(first.prepared.items.ids.to_pylist())}
    items = second.prepared.items.ids.to_pylist()
    own_rows = second.prepared.items.columns["item_id"]
    for row, item in enumerate(items[: len(known)]):
        same = torch.allclose(now[row], before[rows[item]], atol=1e-6)
        # What has no row in either window is what it was, too.
        assert same == bool(known[row] or own_rows[row] == 0), item
    assert 20 < int(known.sum()) < int((own_rows > 0).sum())


@pytest.mark.parametrize("table_optimizer", [RowWiseAdagrad, LazyAdam])
def test_what_the_optimizers_know_goes_on(table_optimizer, first, evicted, tmp_path):
    model = first.towers()
    train(first, first.context(tmp_path), model, of=settings(table_optimizer))
    saved = torch.load(tmp_path / "retrieval" / "last.ckpt", weights_only=True)
    dense, tables = (m["state"] for m in saved["optimizer_states"][0]["members"])
    later = evicted.towers(seed=5)
    carried = carry(evicted, first, tmp_path, later)
    optimizer = settings(table_optimizer).optimizer.optimizer(later)
    carried.restore(optimizer, later)
    own_dense, own_tables = optimizer.members
    params = own_dense.param_groups[0]["params"]
    assert len(params) == len(dense)
    for place, param in enumerate(params):
        for name, value in dense[place].items():
            assert torch.equal(own_dense.state[param][name], value)
    fresh = settings(table_optimizer).optimizer.optimizer(evicted.towers()).members[1]
    for place, table in enumerate(own_tables.param_groups[0]["params"]):
        (name,) = (name for name, p in later.named_parameters() if p is table)
        source = carried.sources[name]
        initial = fresh.state[fresh.param_groups[0]["params"][place]]
        for name, value in own_tables.state[table].items():
            if not value.dim():
                assert torch.equal(value, tables[place][name])
                continue
            old = source >= 0
            assert torch.equal(value[old], tables[place][name][source[old]])
            assert torch.equal(value[~old], initial[name][~old])
            assert bool(value[old].any())


def test_training_goes_on(first, second, run, tmp_path):
    """The state reaches the optimizer of the training: its first steps are small ones."""
    folder, _ = run
    moved = {}
    for with_state in (True, False):
        model = second.towers()
        carried = carry(second, first, folder, model)
        start = model.item_embedder.learned()["item_id"][0].clone()
        context = second.context(tmp_path / str(with_state))
        context = replace(context, carried=carried if with_state else None)
        train(
            second,
            context,
            model,
            of=settings(max_epochs=1),
            warm=warm_of(second, first, NoAlignment()),
        )
        known = first.pipeline.transforms["item_id"].num_rows
        moved[with_state] = (model.item_embedder.learned()["item_id"][0] - start)[:known].norm()
    assert moved[True] < 0.9 * moved[False]


def test_tables_in_half_precision(first, second, tmp_path):
    half = TrainerSettings(accelerator="cpu", table_precision="bfloat16")
    model = first.towers()
    train(first, first.context(tmp_path / "one", half), model)
    later = second.towers(seed=5)
    carried = carry(second, first, tmp_path / "one", later)
    known = first.pipeline.transforms["item_id"].num_rows
    table = later.item_embedder.learned()["item_id"][0]
    assert torch.equal(table[:known], model.item_embedder.learned()["item_id"][0][:known].float())
    context = replace(second.context(tmp_path / "two", half), carried=carried)
    train(
        second,
        context,
        later,
        of=settings(max_epochs=1),
        warm=warm_of(second, first, NoAlignment()),
    )
    assert later.item_embedder.learned()["item_id"][0].dtype == torch.bfloat16
    back = second.towers()
    halve_tables(back)
    carry(second, first, tmp_path / "one", back)  # and a narrow model takes the rows as they are
    assert torch.equal(back.item_embedder.learned()["item_id"][0][:known].float(), table[:known])


def test_an_anchor_keeps_the_space_and_a_free_training_is_measured(first, second, run, tmp_path):
    folder, old = run
    distances, spaces = {}, {}
    for name, alignment in (("held", Anchor(weight=10.0)), ("free", NoAlignment())):
        model = second.towers()
        carried = carry(second, first, folder, model)
        before = embed_catalogue(model, second.columns("retrieval"), second.prepared.num_catalogue)
        warm = warm_of(second, first, alignment, new_space(old))
        context = replace(second.context(tmp_path / name), carried=carried)
        trained = train(
            second, context, model, of=replace(settings(max_epochs=8), keep="last"), warm=warm
        )
        moved = (trained.retriever.items - before).square().sum(dim=1)
        distances[name], spaces[name] = float(moved[warm.known].mean()), trained.space
    assert distances["held"] < 0.3 * distances["free"]
    for space in spaces.values():
        old_pair, *crossed = (space.recall[pair] for pair in PAIRS)
        assert space.inherited == (min(crossed) >= MIN_KEPT * old_pair)
        assert (space.space == new_space(old).space) == space.inherited
    pairs = {space.recall["old_queries_old_items"] for space in spaces.values()}
    assert len(pairs) == 1  # the old version is the same


def test_the_ranker_goes_on_from_its_own_tables(first, second, run, tmp_path):
    def of_ranking(world, folder, model, carried=None):
        return train_ranking(
            replace(world.context(folder), carried=carried),
            model=model,
            inputs=world.pipeline.inputs("ranking"),
            loss=BinaryLogLoss(),
            source=ImpressionExamples(),
            retriever=None,
            calibrator=AsTrained(),
            settings=settings(max_epochs=1, monitor="auc"),
        )

    old = of_ranking(first, tmp_path / "one", first.ranker()).model
    model = second.ranker(seed=5)
    carried = carry(second, first, tmp_path / "one", model, stage="ranking")
    known = first.pipeline.transforms["item_id"].num_rows
    tables = [m.item_embedder.learned()["item_id"][0][:known] for m in (model, old)]
    assert torch.equal(*tables)
    assert set(carried.optimizers) == {"learning_rate", "table_learning_rate"}
    of_ranking(second, tmp_path / "two", model, carried)


def test_another_architecture_is_refused(first, second, run):
    folder, _ = run
    inputs = second.pipeline.inputs("retrieval")
    model = TwoTower(
        inputs=inputs,
        dim=16,
        embedding_dim=4,
        hidden=[12],
        history=MeanPooling,
        similarity=Cosine(),
    )
    with pytest.raises(
        DataError, match=r"models.retrieval is not that of the run; `query_mlp.*16.*8"
    ):
        carry(second, first, folder, model)


def test_what_is_missing_is_named(run, tmp_path):
    folder, _ = run
    check_warm_start(["retrieval"], folder, split_tables=False)
    with pytest.raises(DataError, match="no finished stage `ranking`"):
        check_warm_start(["retrieval", "ranking"], folder, split_tables=False)
    with pytest.raises(DataError, match=r"trainer\.split_tables=false"):
        check_warm_start(["retrieval"], folder, split_tables=True)


def test_a_lost_state_is_said(first, second, run, tmp_path, caplog):
    folder, _ = run
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "best.ckpt").symlink_to(folder / "retrieval" / "best.ckpt")
    carried = carry(second, first, tmp_path, second.towers())
    assert carried.optimizers == {}
    assert "the optimizers begin anew" in caplog.text
