"""Two bundles on one window: the figures of evaluation, and what each bundle knows and no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.prepared import Entities, history_before
from twotower.data.queries import EvaluationSettings
from twotower.data.schema import TEST
from twotower.export.data_files import catalogue_only
from twotower.features.continuation import translated
from twotower.features.pipeline import FeaturePipeline
from twotower.features.transforms import Categorical, Tags
from twotower.features.vocabulary import Vocabulary
from twotower.metrics.bootstrap import Interval
from twotower.serving.comparison import Compared, compare_bundles
from twotower.serving.evaluation import evaluate_bundle, query_columns
from twotower.serving.models import as_models_take
from twotower.serving.shown import Shown

SETTINGS = EvaluationSettings(ks=(5, 10), num_resamples=50)


@pytest.fixture(scope="module")
def evaluation(loaded, recommender):
    return evaluate_bundle(recommender, loaded.prepared, SETTINGS)


def by_name(compared):
    return {one.name: one for one in compared}


def check_like(found, evaluation):
    for name in ("ndcg@5", "recall@10", "hit_rate@5"):
        one = found[f"two_stage/{name}"]
        expected = evaluation.metrics[f"two_stage/test/{name}"]
        assert one.old.value == one.new.value == pytest.approx(expected)
        assert (one.difference.low, one.difference.high) == (0.0, 0.0)


def test_a_bundle_against_itself_is_its_evaluation(loaded, recommender, evaluation):
    found = compare_bundles(recommender, recommender, loaded.prepared, SETTINGS)
    check_like(by_name(found), evaluation)
    judged = {"two_stage/ndcg@5", "retrieval/recall@80", "ranking/user_auc"}
    assert {one.name for one in found if one.judged} == judged
    assert not any(one.is_worse for one in found)


def impressions(prepared, queries):
    """Item rows and outcomes of the test part, user by user."""
    log = prepared.interactions
    for user in queries.user_rows:
        rows = np.flatnonzero((log.split == TEST) & (log.user_rows == user))
        yield log.item_rows[rows], log.positive[rows]


def test_the_auc_within_users_is_that_of_pairs_by_hand(loaded, recommender):
    """User by user through the ranker's file, every pair of a taken and a passed-over item."""
    prepared = loaded.prepared
    queries = SETTINGS.queries(prepared, TEST)
    cut = history_before(catalogue_only(prepared), TEST)[queries.user_rows]
    queries = replace(queries, history_end=cut)
    model, values = recommender.ranker.model, []
    for number, (items, taken) in enumerate(impressions(prepared, queries)):
        if taken.all() or not taken.any():
            continue
        columns = query_columns(prepared, recommender, queries, number, number + 1)
        own = recommender.bundle.item_vectors[items] @ recommender.embed(as_models_take(columns))[0]
        inputs = {n: np.repeat(v, len(items), 0) for n, v in as_models_take(columns).items()}
        inputs |= {n: v[items] for n, v in recommender.items.columns.items()}
        inputs |= {"retrieval_score": own, "owner": np.arange(len(items))}
        chances = model.run({n: v for n, v in inputs.items() if n in model.inputs}, output=1)
        pairs = [
            (chances[one] > chances[other]) + 0.5 * (chances[one] == chances[other])
            for one in np.flatnonzero(taken)
            for other in np.flatnonzero(~taken)
        ]
        values.append(np.mean(pairs))
    found = by_name(compare_bundles(recommender, recommender, prepared, SETTINGS))
    assert len(values) > 20
    assert found["ranking/user_auc"].new.value == pytest.approx(np.mean(values), abs=1e-6)


def test_a_ranker_that_has_unlearned_is_worse_though_its_lists_are_as_good(
    loaded, recommender, monkeypatch
):
    """The old one knows what is taken of what is shown, the new one says the same of all."""
    scores, of_old = Shown.scores, []

    def known(shown, *arguments):
        values = scores(shown, *arguments)
        if sum(map(len, of_old)) == len(shown.taken):
            return np.zeros_like(values)
        first = sum(map(len, of_old))
        of_old.append(shown.taken[first : first + len(values)].astype(float))
        return of_old[-1]

    monkeypatch.setattr(Shown, "scores", known)
    compared = by_name(compare_bundles(recommender, recommender, loaded.prepared, SETTINGS))
    auc = compared["ranking/user_auc"]
    assert (auc.old.value, auc.new.value) == (1, 0.5)
    assert [name for name, one in compared.items() if one.is_worse] == ["ranking/user_auc"]


def shuffled(pipeline):
    """A pipeline of the same spec whose values have other rows and whose numbers another scale."""
    transforms = {}
    for name, transform in pipeline.transforms.items():
        if isinstance(transform, Categorical | Tags):
            values = pa.concat_arrays(
                [transform.vocabulary.values[::-1], pa.array(["never seen"]).cast(pa.string())]
                if pa.types.is_string(transform.vocabulary.values.type)
                else [transform.vocabulary.values[::-1]]
            )
            transform = replace(transform, vocabulary=Vocabulary(values))
        elif hasattr(transform, "mean"):
            transform = replace(transform, mean=transform.mean + 1, scale=2 * transform.scale)
        transforms[name] = transform
    return FeaturePipeline(pipeline.spec, transforms, pipeline.fitted_on)


def test_each_bundle_sees_the_window_through_its_own_features(
    loaded, recommender, evaluation, monkeypatch
):
    """The window is encoded otherwise and its items stand in another order: all figures stay."""
    prepared, other = loaded.prepared, shuffled(loaded.pipeline)
    monkeypatch.setattr(FeaturePipeline, "load", staticmethod(lambda folder: other))
    order = np.random.default_rng(0).permutation(len(prepared.items))
    place = np.argsort(order)
    table = prepared.items.table.take(pa.array(order))
    context = {n: np.asarray(c) for n, c in prepared.interactions.context.items()}
    window = replace(
        prepared,
        items=Entities(
            ids=prepared.items.ids.take(pa.array(order)),
            table=table,
            columns=other.encode("item", table),
        ),
        users=replace(prepared.users, columns=other.encode("user", prepared.users.table)),
        events=replace(prepared.events, item_rows=place[prepared.events.item_rows]),
        interactions=replace(
            prepared.interactions, context=translated(context, loaded.pipeline, other)
        ),
    )
    found = by_name(compare_bundles(recommender, recommender, window, SETTINGS))
    check_like(found, evaluation)


def test_items_that_only_the_new_bundle_knows(loaded, recommender, bundle, monkeypatch):
    """The old one never shows them, and its histories are without them."""
    truth = SETTINGS.queries(loaded.prepared, 2).truth
    wanted = np.unique(truth.item_rows)[:10]
    ids = loaded.prepared.items.ids.to_pylist()
    hidden = {ids[row] for row in wanted}

    class Narrow:
        """The same bundle, which takes some items for others."""

        def __getattr__(self, name):
            return getattr(recommender, name)

        @property
        def items(self):
            class Items:
                columns = recommender.items.columns
                ids = pa.array(
                    [f"gone-{i}" if i in hidden else i for i in recommender.items.ids.to_pylist()]
                )

                def __len__(self):
                    return len(self.ids)

            return Items()

    found = by_name(compare_bundles(Narrow(), recommender, loaded.prepared, SETTINGS))
    of_new = found["retrieval/new_items_recall@80"]
    assert of_new.old.value == 0
    assert of_new.new.value > 0.5
    assert found["retrieval/recall@80"].difference.low > 0
    assert found["two_stage/ndcg@5"].old.value > 0


def compared(low, high, *, judged=True):
    interval = Interval(value=(low + high) / 2, low=low, high=high)
    return Compared(name="x", old=interval, new=interval, difference=interval, judged=judged)


def test_worse_is_only_what_is_so_beyond_the_interval():
    assert compared(-0.3, -0.1).is_worse
    assert not compared(-0.3, 0.0).is_worse
    assert not compared(0.1, 0.2).is_worse
    assert not compared(-0.3, -0.1, judged=False).is_worse
