"""Fitting a stage: selection of the best epoch, checkpoints, and runs that are killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch

from twotower.data.schema import TRAIN, VALIDATION
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.features.frequency import ItemFrequency
from twotower.losses.calibration import Calibration
from twotower.losses.hard_negatives import HardNegatives
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.queue import CrossBatchQueue
from twotower.losses.ranking import BinaryLogLoss
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.losses.streaming_frequency import StreamingFrequency
from twotower.models import embedding
from twotower.training import fit
from twotower.training.evaluation import mean_metrics, rank_catalogue
from twotower.training.examples import ExampleBatches, ImpressionExamples
from twotower.training.fit import Fitted, fit_stage, seed_everything
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import RankingTask, click_metrics, probabilities
from twotower.training.retrieval import RetrievalTask
from twotower.training.settings import StageSettings, TrainerSettings

AS_TRAINED = Calibration(negative_rate=1.0)
EPOCHS = 3
OPTIMIZER = OptimizerSettings(
    learning_rate=0.01, table_learning_rate=0.1, warmup_share=0.2, final_share=0.1, max_norm=1.0
)


class Killed(BaseException):
    """Stands for the end of the process."""


class Life:
    """Counts down what a process gets done before it is killed; None is for ever."""

    def __init__(self, left=None):
        self.left = left

    def passing(self, function):
        def counted(*arguments):
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return function(*arguments)

        return counted


def stage_settings(monitor, batch_size, patience=EPOCHS):
    return StageSettings(
        batch_size=batch_size,
        max_epochs=EPOCHS,
        patience=patience,
        monitor=monitor,
        optimizer=OPTIMIZER,
    )


def uniform_and_in_batch():
    return Objective(
        loss=SampledSoftmax(temperature=0.2),
        negatives=MixedNegatives(in_batch=True, num_uniform=7),
    )


def streaming_frequency():
    frequency = StreamingFrequency(num_buckets=30, num_hashes=2, rate=0.1)
    return Objective(
        loss=SampledSoftmax(temperature=0.2),
        negatives=MixedNegatives(in_batch=True, num_uniform=7, frequency=frequency),
    )


def cross_batch_queue():
    queue = CrossBatchQueue(size=200, warm_up=2)
    return Objective(
        loss=SampledSoftmax(temperature=0.2),
        negatives=MixedNegatives(in_batch=True, num_uniform=7, queue=queue),
    )


def hard_negatives():
    return Objective(
        loss=SampledSoftmax(temperature=0.2),
        negatives=MixedNegatives(in_batch=True, num_uniform=7),
        hard=HardNegatives(num=2, num_queries=10, every=3, warm_up=2),
    )


def fit_retrieval(
    world, folder, trainer_settings, life, patience=EPOCHS, objective=uniform_and_in_batch
):
    """One process that trains retrieval: 4 batches an epoch, dropout, random negatives."""
    prepared, columns = world.prepared, world.columns("retrieval")
    seed_everything(5)
    model = world.towers(dropout=0.3)
    train_rows = np.flatnonzero(prepared.interactions.split == TRAIN)
    frequency = ItemFrequency.count(prepared, train_rows)
    task = RetrievalTask(
        model=model,
        objective=objective(),
        columns=columns,
        item_probability=torch.from_numpy(frequency.probability()),
        optimizer=OPTIMIZER,
    )
    queries = world.context(folder).evaluation.queries(prepared, VALIDATION)

    def evaluate():
        ranked = rank_catalogue(
            model, columns, queries, num_catalogue=prepared.num_catalogue, k=5, remove_seen=True
        )
        means = mean_metrics(ranked, queries, [5])
        return {f"retrieval/validation/{name}": value for name, value in means.items()}

    examples = torch.from_numpy(prepared.events.interactions[prepared.train_events()])
    size = -(-len(examples) // 4)
    loader = ShuffledBatches(
        examples, batch_size=size, seed=5, assemble=life.passing(columns.examples)
    )
    fitted = fit_stage(
        stage="retrieval",
        task=task,
        loader=loader,
        evaluate=life.passing(evaluate),
        settings=stage_settings("ndcg@5", size, patience),
        trainer_settings=trainer_settings,
        folder=folder,
        progress=False,
    )
    return task, fitted


def fit_ranking(world, folder, trainer_settings, life, patience=EPOCHS, progress=False):
    """One process that trains the ranker with dropout, 5 batches an epoch."""
    prepared, columns = world.prepared, world.columns("ranking")
    seed_everything(5)
    model = world.ranker(dropout=0.3)
    train, validation = (
        ExampleBatches(
            examples=ImpressionExamples().examples(prepared, part, None),
            columns=columns,
            with_scores=False,
        )
        for part in (TRAIN, VALIDATION)
    )

    def evaluate():
        predicted = probabilities(model, validation, AS_TRAINED)
        values = click_metrics(prepared, validation, predicted)
        return {f"ranking/validation/{name}": value for name, value in values.items()}

    task = RankingTask(model=model, loss=BinaryLogLoss(), optimizer=OPTIMIZER)
    size = -(-len(train) // 5)
    chosen = torch.arange(len(train))
    loader = ShuffledBatches(chosen, batch_size=size, seed=5, assemble=life.passing(train.batch))
    fitted = fit_stage(
        stage="ranking",
        task=task,
        loader=loader,
        evaluate=life.passing(evaluate),
        settings=stage_settings("log_loss", size, patience),
        trainer_settings=trainer_settings,
        folder=folder,
        progress=progress,
    )
    return task, fitted


def settings(**given):
    return TrainerSettings(accelerator="cpu", **given)


def live_until_done(fit_one, world, folder, trainer_settings, lifetime, **given):
    """Kill and resume until the training ends; returns how often that took too."""
    for lives in range(1, 100):
        try:
            task, fitted = fit_one(world, folder, trainer_settings, Life(lifetime), **given)
        except Killed:
            continue
        return task, fitted, lives
    pytest.fail("the training makes no progress")


def assert_same(one, other, path="state"):
    """Nested states are equal bit by bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert one == other or one != one, path


def read_checkpoint(path):
    return torch.load(path, weights_only=True)


def without_seconds(fitted):
    return (fitted.epochs, fitted.steps, fitted.best)


class TestKilledAndResumed:
    @pytest.mark.parametrize(
        ("checkpoint_every", "lifetime"), [(1, 2), (2, 3), (3, 4), (100, 5), (100, 7)]
    )
    def test_retrieval_ends_as_if_never_killed(self, checkpoint_every, lifetime, world, tmp_path):
        trainer = settings(checkpoint_every=checkpoint_every)
        expected, expected_fitted = fit_retrieval(world, tmp_path / "whole", trainer, Life())
        task, fitted, lives = live_until_done(
            fit_retrieval, world, tmp_path / "killed", trainer, lifetime
        )
        assert lives >= 3
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())
        whole = read_checkpoint(tmp_path / "whole" / "retrieval" / "last.ckpt")
        killed = read_checkpoint(tmp_path / "killed" / "retrieval" / "last.ckpt")
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert_same(killed[part], whole[part], part)

    @pytest.mark.parametrize("objective", [streaming_frequency, cross_batch_queue, hard_negatives])
    def test_what_negatives_remember(self, objective, world, tmp_path):
        """It is part of the state, it matters, and it survives."""
        trainer = settings(checkpoint_every=3)
        expected, _ = fit_retrieval(world, tmp_path / "whole", trainer, Life(), objective=objective)
        task, _, lives = live_until_done(
            fit_retrieval, world, tmp_path / "killed", trainer, 4, objective=objective
        )
        assert lives >= 3
        assert any(name.startswith("objective.") for name in task.state_dict())
        assert_same(task.state_dict(), expected.state_dict())
        plain, _ = fit_retrieval(world, tmp_path / "plain", trainer, Life())
        with pytest.raises(AssertionError):
            assert_same(task.model.state_dict(), plain.model.state_dict())

    @pytest.mark.parametrize(("checkpoint_every", "lifetime"), [(1, 2), (3, 4), (100, 6)])
    def test_ranking_ends_as_if_never_killed(self, checkpoint_every, lifetime, world, tmp_path):
        trainer = settings(checkpoint_every=checkpoint_every)
        expected, expected_fitted = fit_ranking(world, tmp_path / "whole", trainer, Life())
        task, fitted, lives = live_until_done(
            fit_ranking, world, tmp_path / "killed", trainer, lifetime
        )
        assert lives >= 3
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())

    @pytest.mark.parametrize("max_steps", [3, 4, 6])
    def test_run_of_a_few_steps(self, max_steps, world, tmp_path):
        trainer = settings(max_steps=max_steps, checkpoint_every=1)
        expected, expected_fitted = fit_retrieval(world, tmp_path / "whole", trainer, Life())
        task, fitted, _ = live_until_done(fit_retrieval, world, tmp_path / "killed", trainer, 2)
        assert expected_fitted.steps == max_steps
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())

    @pytest.mark.parametrize("left", [2, 6, 9, 13])
    def test_killed_while_it_writes_a_checkpoint(self, left, world, tmp_path, monkeypatch):
        """Half a file is never in the place of a whole one."""
        trainer = settings(checkpoint_every=1)
        expected, expected_fitted = fit_retrieval(world, tmp_path / "whole", trainer, Life())
        save, saves = torch.save, []

        def save_half(checkpoint, path):
            saves.append(path)
            save(checkpoint, path)
            if len(saves) == left:
                size = os.path.getsize(path)
                os.truncate(path, size // 2)
                raise Killed

        monkeypatch.setattr(torch, "save", save_half)
        with pytest.raises(Killed):
            fit_retrieval(world, tmp_path / "killed", trainer, Life())
        task, fitted = fit_retrieval(world, tmp_path / "killed", trainer, Life())
        assert len(saves) > left + 1
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())
        names = {path.name for path in (tmp_path / "killed" / "retrieval").iterdir()}
        assert names == {"best.ckpt", "last.ckpt", "finished.json"}

    def test_in_a_folder_that_was_moved(self, world, tmp_path):
        """What was best before still is: an epoch that is worse does not take its place."""
        with pytest.raises(IndexError):  # nothing is said of the third epoch
            fit_with_metrics(world, tmp_path / "here", [0.5, 0.7], num_epochs=3)
        shutil.move(tmp_path / "here", tmp_path / "there")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            _, fitted, _ = fit_with_metrics(world, tmp_path / "there", [0.6], num_epochs=3)
        assert (fitted.epochs, fitted.best) == (3, pytest.approx(0.7))

    def test_tables_with_sparse_gradients(self, sparse_tables, world, tmp_path):
        trainer = settings(checkpoint_every=3)
        expected, _ = fit_retrieval(world, tmp_path / "whole", trainer, Life())
        task, _, _ = live_until_done(fit_retrieval, world, tmp_path / "killed", trainer, 4)
        assert_same(task.state_dict(), expected.state_dict())

    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("fit_one", [fit_retrieval, fit_ranking])
    def test_tables_in_half_the_memory(self, fit_one, sparse, world, tmp_path, monkeypatch):
        """Rounding goes on where it was, and accumulators are not narrowed on their way."""
        if sparse:
            monkeypatch.setattr(embedding, "MIN_SPARSE_ROWS", 0)
        trainer = settings(checkpoint_every=3, table_precision="bfloat16")
        expected, expected_fitted = fit_one(world, tmp_path / "whole", trainer, Life())
        task, fitted, lives = live_until_done(fit_one, world, tmp_path / "killed", trainer, 4)
        assert lives >= 3
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())
        stage = fit_one.__name__.removeprefix("fit_")
        whole, killed = (
            read_checkpoint(tmp_path / name / stage / "last.ckpt") for name in ("whole", "killed")
        )
        assert_same(killed["optimizer_states"], whole["optimizer_states"])
        tables = {n for n, w in whole["state_dict"].items() if w.dtype == torch.bfloat16}
        assert tables == {n for n, _ in task.named_parameters() if ".tables." in n}
        assert len(tables) == 2
        wide, _ = fit_one(world, tmp_path / "wide", settings(checkpoint_every=3), Life())
        for name in tables:
            assert wide.state_dict()[name].dtype == torch.float32
            found, meant = task.state_dict()[name].float(), wide.state_dict()[name]
            assert float((found - meant).norm()) < 0.1 * float(meant.norm())

    def test_killed_after_the_last_epoch(self, world, tmp_path, monkeypatch):
        """Neither a further epoch is run nor the last one evaluated again."""
        trainer = settings()
        expected, expected_fitted = fit_retrieval(world, tmp_path / "whole", trainer, Life())

        def die(*arguments):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(fit, "_load_best", die)
            with pytest.raises(Killed):
                fit_retrieval(world, tmp_path / "killed", trainer, Life())
        task, fitted = fit_retrieval(world, tmp_path / "killed", trainer, Life(0))
        assert without_seconds(fitted) == without_seconds(expected_fitted)
        assert_same(task.state_dict(), expected.state_dict())

    def test_told_to_terminate(self, world, tmp_path):
        """The status is that of a terminated process, and the run can be resumed."""
        trainer = settings(checkpoint_every=1)
        expected, _ = fit_ranking(world, tmp_path / "whole", trainer, Life())
        called = []

        def terminate_once(function):
            def terminating(*arguments):
                called.append(arguments)
                if len(called) == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                return function(*arguments)

            return terminating

        life = Life()
        life.passing = terminate_once
        with pytest.raises(SystemExit) as stopped:
            fit_ranking(world, tmp_path / "killed", trainer, life)
        assert stopped.value.code == 143
        task, _ = fit_ranking(world, tmp_path / "killed", trainer, Life())
        assert_same(task.state_dict(), expected.state_dict())

    def test_other_random_numbers_would_be_seen(self, world, tmp_path):
        """The comparison of these tests tells two seeds of dropout and negatives apart."""
        one, _ = fit_retrieval(world, tmp_path / "one", settings(), Life())
        again, _ = fit_retrieval(world, tmp_path / "again", settings(), Life())
        assert_same(one.state_dict(), again.state_dict())
        draw = torch.randint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch, "randint", lambda n, *size, **named: (draw(n, *size, **named) + 1) % n
            )
            other, _ = fit_retrieval(world, tmp_path / "other", settings(), Life())
        with pytest.raises(AssertionError):
            assert_same(one.state_dict(), other.state_dict())


def fit_with_metrics(world, folder, metrics, patience=EPOCHS, num_epochs=6, keep="best"):
    """Trains the ranker; what is said of the validation part is given, one value an epoch."""
    seed_everything(5)
    prepared = world.prepared
    batches = ExampleBatches(
        examples=ImpressionExamples().examples(prepared, TRAIN, None),
        columns=world.columns("ranking"),
        with_scores=False,
    )
    task = RankingTask(model=world.ranker(), loss=BinaryLogLoss(), optimizer=OPTIMIZER)
    weights = []

    def evaluate():
        weights.append({name: value.clone() for name, value in task.state_dict().items()})
        return {"ranking/validation/auc": metrics[len(weights) - 1]}

    fitted = fit_stage(
        stage="ranking",
        task=task,
        loader=ShuffledBatches(
            torch.arange(len(batches)), batch_size=500, seed=1, assemble=batches.batch
        ),
        evaluate=evaluate,
        settings=StageSettings(
            batch_size=500,
            max_epochs=num_epochs,
            patience=patience,
            monitor="auc",
            optimizer=OPTIMIZER,
            keep=keep,
        ),
        trainer_settings=settings(),
        folder=folder,
        progress=False,
    )
    return task, fitted, weights


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
class TestCompiled:
    @pytest.fixture(autouse=True)
    def _forgets(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_gives_the_gradients_of_what_is_not(self, world):
        """The ranker in evaluation mode, without dropout, on batches of two sizes."""
        batches = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TRAIN, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        model = world.ranker(dropout=0.3).eval()
        names, weights = zip(*model.body.named_parameters(), strict=True)
        found = {}
        for compiled in (False, True):
            if compiled:
                (part,) = model.dense_parts
                part.compile()
            for size in (64, 19):
                loss = model(batches.batch(torch.arange(size))).square().sum()
                found[compiled, size] = loss, *torch.autograd.grad(loss, weights)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        for size in (64, 19):
            for name, one, two in zip(
                ("loss", *names), found[True, size], found[False, size], strict=True
            ):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)

    def test_is_saved_as_what_is_not(self, world, tmp_path):
        torch._dynamo.utils.counters.clear()
        task, fitted = fit_ranking(world, tmp_path / "one", settings(compile=True), Life())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        other, _ = fit_ranking(world, tmp_path / "two", settings(), Life())
        assert task.state_dict().keys() == other.state_dict().keys()
        assert fitted.epochs == EPOCHS
        assert all(torch.isfinite(value).all() for value in task.state_dict().values())


class TestSelection:
    def test_stops_early_and_takes_the_best_weights(self, world, tmp_path):
        task, fitted, weights = fit_with_metrics(
            world, tmp_path, [0.5, 0.7, 0.6, 0.7, 0.9], patience=2
        )
        assert (fitted.epochs, fitted.best) == (4, pytest.approx(0.7))
        assert_same(dict(task.state_dict()), weights[1])
        with pytest.raises(AssertionError):
            assert_same(dict(task.state_dict()), weights[-1])

    def test_all_epochs_while_it_gets_better(self, world, tmp_path):
        task, fitted, weights = fit_with_metrics(
            world, tmp_path, [0.5, 0.6, 0.7], patience=1, num_epochs=3
        )
        assert (fitted.epochs, len(weights)) == (3, 3)
        assert_same(dict(task.state_dict()), weights[2])

    def test_last_weights_on_request(self, world, tmp_path):
        """Nothing stops early, and the value is that of the weights."""
        task, fitted, weights = fit_with_metrics(
            world, tmp_path, [0.5, 0.9, 0.6, 0.7, 0.7], patience=1, num_epochs=4, keep="last"
        )
        assert (fitted.epochs, fitted.best) == (4, pytest.approx(0.7))
        assert_same(dict(task.state_dict()), weights[3])
        kept = read_checkpoint(tmp_path / "ranking" / "best.ckpt")
        assert_same(dict(kept["state_dict"]), weights[3])

    def test_metric_that_is_not_a_number_does_not_end_it(self, world, tmp_path):
        nan = float("nan")
        _, fitted, _ = fit_with_metrics(world, tmp_path, [nan, 0.6, nan], num_epochs=3)
        assert (fitted.epochs, fitted.best) == (3, pytest.approx(0.6))


class TestFiles:
    def test_finished_stage_is_loaded_not_trained(self, world, tmp_path):
        trained, fitted = fit_retrieval(world, tmp_path, settings(), Life())
        loaded, again = fit_retrieval(world, tmp_path, settings(), Life(0))
        assert again == fitted
        assert_same(loaded.state_dict(), trained.state_dict())

    def test_checkpoints_load_without_unpickling_objects(self, world, tmp_path):
        task, _ = fit_retrieval(world, tmp_path, settings(checkpoint_every=1), Life())
        best = read_checkpoint(tmp_path / "retrieval" / "best.ckpt")
        last = read_checkpoint(tmp_path / "retrieval" / "last.ckpt")
        assert_same(dict(best["state_dict"]), dict(task.state_dict()))
        assert "optimizer_states" not in best
        assert len(last["optimizer_states"][0]["members"]) == 2

    def test_nothing_else_is_written(self, world, tmp_path):
        fit_retrieval(world, tmp_path, settings(checkpoint_every=1), Life())
        names = {path.name for path in (tmp_path / "retrieval").iterdir()}
        assert names == {"best.ckpt", "last.ckpt", "finished.json"}
        document = json.loads((tmp_path / "retrieval" / "finished.json").read_text())
        assert set(document) == {f.name for f in Fitted.__dataclass_fields__.values()}

    def test_model_stays_on_the_device_of_the_columns(self, world, tmp_path):
        task, _ = fit_retrieval(world, tmp_path, settings(), Life())
        assert next(task.parameters()).device == settings().device()


class TestConsole:
    def test_lightning_says_nothing_and_we_say_what_counts(self, world, tmp_path, caplog, capfd):
        with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
            warnings.simplefilter("always")
            with pytest.raises(Killed):
                fit_ranking(world, tmp_path, settings(checkpoint_every=2), Life(4))
            fit_ranking(world, tmp_path, settings(checkpoint_every=2), Life())
        assert [str(warning.message) for warning in caught] == []
        assert capfd.readouterr() == ("", "")
        lines = [r.getMessage() for r in caplog.records if r.name.startswith("twotower")]
        assert lines[0] == f"ranking: goes on from {tmp_path / 'ranking' / 'last.ckpt'}"
        assert lines[1].startswith("ranking: 3 epochs, 15 steps in ")
        assert "best log_loss on validation 0." in lines[1]
        assert len(lines) == 2
        assert logging.getLogger("pytorch_lightning").level != logging.WARNING

    def test_bar_shows_stage_epoch_and_loss(self, world, tmp_path, capsys):
        fit_ranking(world, tmp_path, settings(), Life(), progress=True)
        text = capsys.readouterr().out
        assert "ranking, epoch 3/3: 100%" in text
        assert ", loss=0." in text
        assert "v_num" not in text


def test_seed_repeats_what_is_drawn():
    seed_everything(4)
    one = (torch.rand(3).tolist(), np.random.rand())
    seed_everything(4)
    assert (torch.rand(3).tolist(), np.random.rand()) == one
