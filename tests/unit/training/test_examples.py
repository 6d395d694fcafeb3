"""Examples of the ranker: the log as it is, or positives among what the retriever would show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from twotower.data.batches import ITEM_ROWS, LABELS, WEIGHTS
from twotower.data.item_lists import ItemLists
from twotower.data.schema import (
    LABEL,
    RETRIEVAL_SCORE,
    TEST,
    TRAIN,
    VALIDATION,
    DataError,
    Tables,
)
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.index.exact import exact_search
from twotower.training import candidates as module
from twotower.training.candidates import CandidateExamples
from twotower.training.examples import (
    ExampleBatches,
    ImpressionExamples,
    ImpressionsElseCandidates,
)
from twotower.training.retrieval import embed_catalogue
from twotower.training.retriever import Retriever

CANDIDATES, NEGATIVES = 12, 3


class Clicks:
    """The built-in world without the impressions that did not succeed."""

    name = "clicks"

    def read(self):
        source = SyntheticSource(
            num_users=40, num_items=40, num_days=20, slates_per_user=8, slate_size=6, seed=2
        )
        tables = source.read()
        clicks = tables.interactions.filter(pc.equal(tables.interactions.column(LABEL), 1.0))
        weights = pa.array(np.arange(len(clicks)) % 3 + 1.0, pa.float32())
        return Tables(
            interactions=clicks.drop_columns([LABEL]).append_column("weight", weights),
            users=tables.users,
            items=tables.items,
            context=tables.context,
        )

    def fingerprint(self):
        return "clicks"


@pytest.fixture(scope="module")
def clicks(open_world):
    return open_world(Clicks(), TemporalSplit(validation_share=0.2, test_share=0.2))


@pytest.fixture(scope="module")
def retriever(clicks):
    model = clicks.towers(dropout=0.5, seed=3)
    return Retriever.of(model, clicks.columns("retrieval"), clicks.prepared.num_catalogue)


def source(**given):
    return CandidateExamples(
        **{"num_candidates": CANDIDATES, "num_negatives": NEGATIVES, "positives_per_user": 0}
        | {"hard_window": 4}
        | given
    )


def positives(prepared, user, parts):
    """(interaction, item) of a user's positives in some parts, in the order of the log."""
    log = prepared.interactions
    return [
        (i, int(log.item_rows[i]))
        for i in range(len(log.rows))
        if log.user_rows[i] == user and log.positive[i] and log.split[i] in parts
    ]


def shown_to(prepared, retriever, interaction, target, part, num_candidates):
    """What the retriever would show: a sort of all scores without the user's other positives."""
    user = prepared.interactions.user_rows[interaction]
    others = {i for _, i in positives(prepared, user, range(part + 1))} - {target}
    query = retriever.queries(np.array([interaction]))[0].double()
    scores = {
        item: float(query @ retriever.items[item].double())
        for item in range(len(retriever.items))
        if item not in others
    }
    best = sorted(scores, key=lambda item: -scores[item])[:num_candidates]
    return {item: scores[item] for item in best}


def by_interaction(examples):
    """Lists of (item, label, score) of every interaction, in order."""
    found = {}
    columns = (examples.interactions, examples.item_rows, examples.labels, examples.scores)
    for interaction, item, label, score in zip(*columns, strict=True):
        found.setdefault(int(interaction), []).append((int(item), float(label), float(score)))
    return found


@pytest.mark.parametrize("part", [TRAIN, VALIDATION, TEST])
@pytest.mark.parametrize("part_of_catalogue", [40, 25])
def test_candidates_equal_the_slow_oracle(part, part_of_catalogue, clicks, retriever):
    prepared = clicks.prepared
    retriever = replace(retriever, items=retriever.items[:part_of_catalogue])
    examples = source().examples(prepared, part, retriever)
    found = by_interaction(examples)
    num_shown, missed = 0, 0
    for user in range(len(prepared.users)):
        for interaction, target in positives(prepared, user, (part,)):
            shown = shown_to(prepared, retriever, interaction, target, part, CANDIDATES)
            if target not in shown:
                missed += 1
                assert interaction not in found
                continue
            num_shown += len(shown) - 1
            (first, label, score), *others = found.pop(interaction)
            assert (first, label) == (target, 1.0)
            assert score == pytest.approx(shown[target], abs=1e-5)
            assert len(others) == min(NEGATIVES, len(shown) - 1)
            assert len({item for item, _, _ in others}) == len(others)
            for item, label, score in others:
                assert label == 0.0
                assert item != target
                assert score == pytest.approx(shown[item], abs=1e-5)
    assert found == {}
    assert missed > 0
    assert examples.negative_rate == pytest.approx((examples.labels == 0).sum() / num_shown)


def test_negatives_are_drawn_from_all_candidates(clicks, retriever):
    """Over many seeds every candidate but the target turns up, none far more than others."""
    prepared = clicks.prepared
    interaction = source().examples(prepared, TEST, retriever).interactions[0]
    target = int(prepared.interactions.item_rows[interaction])
    shown = shown_to(prepared, retriever, interaction, target, TEST, CANDIDATES)
    drawn = [
        item
        for seed in range(60)
        for item, label, _ in by_interaction(source(seed=seed).examples(prepared, TEST, retriever))[
            int(interaction)
        ]
        if label == 0
    ]
    counts = {item: drawn.count(item) for item in shown if item != target}
    assert set(drawn) == set(counts)
    expected = 60 * NEGATIVES / (CANDIDATES - 1)
    assert all(0.3 * expected < count < 2 * expected for count in counts.values())


class TestNegativeRate:
    def test_full_lists(self, clicks, retriever):
        """M of the K - 1 others of a list: 3 of 11."""
        examples = source().examples(clicks.prepared, VALIDATION, retriever)
        assert examples.negative_rate == pytest.approx(3 / 11)

    def test_all_of_them(self, clicks, retriever):
        examples = source(num_negatives=11).examples(clicks.prepared, VALIDATION, retriever)
        assert examples.negative_rate == 1.0

    def test_lists_that_the_catalogue_cannot_fill(self, clicks, retriever):
        """Of 40 items less the user's positives 10 are drawn; 199 others there never were."""
        prepared = clicks.prepared
        examples = source(num_candidates=200, num_negatives=10).examples(prepared, TEST, retriever)
        found = by_interaction(examples)
        num_shown = 0
        for interaction in found:
            user = prepared.interactions.user_rows[interaction]
            num_shown += 40 - len({item for _, item in positives(prepared, user, range(3))})
        assert examples.negative_rate == pytest.approx(10 * len(found) / num_shown)


def shares(examples, prepared, retriever, window):
    """Of every interaction: negatives by group, top first, as (rank, weight); sizes of groups."""
    for interaction, negatives in by_interaction(examples).items():
        target = int(prepared.interactions.item_rows[interaction])
        shown = list(shown_to(prepared, retriever, interaction, target, TRAIN, CANDIDATES))
        weights = examples.weights[examples.interactions == interaction]
        groups = [], []
        for (item, label, _), weight in zip(negatives, weights.tolist(), strict=True):
            if label == 0:
                groups[shown.index(item) >= window].append((shown.index(item), weight))
        others = [place for place, item in enumerate(shown) if item != target]
        yield groups, (sum(p < window for p in others), sum(p >= window for p in others))


class TestHardNegatives:
    """Half of 4 negatives from the top 3 of 12 candidates."""

    def make(self, seed=0):
        return source(num_negatives=4, hard_share=0.5, hard_window=3, seed=seed)

    def test_each_group_weighs_what_a_uniform_draw_would_give_it(self, clicks, retriever):
        prepared = clicks.prepared
        base = prepared.interactions.weights
        examples = self.make().examples(prepared, TRAIN, retriever)
        assert examples.negative_rate == pytest.approx(4 / 11)
        targets_in_the_top = 0
        for (top, below), (num_top, num_below) in shares(examples, prepared, retriever, 3):
            assert (len(top), len(below)) == (2, 2)
            assert num_top + num_below == 11
            targets_in_the_top += num_top == 2
            by_group = [sum(w for _, w in group) for group in (top, below)]
            own = by_group[0] / num_top / (4 / 11)  # the weight of the positive itself
            assert own == pytest.approx(by_group[1] / num_below / (4 / 11))
            assert own == pytest.approx(round(own))
        assert targets_in_the_top > 0
        positive = examples.labels == 1
        assert examples.weights[positive].tolist() == base[examples.interactions[positive]].tolist()

    def test_sums_over_the_list_are_right_on_average(self, clicks, retriever):
        """Of the first positive: the weighted number of negatives at every place of its list."""
        prepared = clicks.prepared
        totals, draws = np.zeros(12), 400
        first = self.make().examples(prepared, TRAIN, retriever).interactions[0]
        for seed in range(draws):
            examples = self.make(seed).examples(prepared, TRAIN, retriever)
            own = float(prepared.interactions.weights[first])
            target = int(prepared.interactions.item_rows[first])
            inside = (examples.interactions == first) & (examples.labels == 0)
            if not seed:
                shown = list(shown_to(prepared, retriever, int(first), target, TRAIN, CANDIDATES))
            for item, weight in zip(
                examples.item_rows[inside], examples.weights[inside], strict=True
            ):
                totals[shown.index(int(item))] += weight / own / examples.negative_rate / draws
        assert totals[shown.index(target)] == 0
        others = np.delete(totals, shown.index(target))
        # A place below the top is drawn 2 times of 8 or 9: 4 standard errors are 0.38.
        np.testing.assert_allclose(others, 1.0, atol=0.38)
        assert others.sum() == pytest.approx(11, abs=1e-3)

    def test_the_other_parts_are_drawn_uniformly(self, clicks, retriever):
        for part in (VALIDATION, TEST):
            hard = self.make().examples(clicks.prepared, part, retriever)
            plain = source(num_negatives=4).examples(clicks.prepared, part, retriever)
            assert hard.item_rows.tolist() == plain.item_rows.tolist()
            assert hard.weights.tolist() == plain.weights.tolist()

    def test_short_lists_are_filled(self, clicks, retriever):
        """Lists of 4: 3 negatives in all, of which the top holds 2 or 3; all are drawn."""
        few = source(num_candidates=4, num_negatives=3, hard_share=0.34, hard_window=3)
        examples = few.examples(clicks.prepared, TRAIN, retriever)
        assert examples.negative_rate == 1.0
        assert np.bincount((examples.labels == 1).cumsum())[1:].tolist() == [4] * int(
            examples.labels.sum()
        )
        base = clicks.prepared.interactions.weights[examples.interactions]
        np.testing.assert_allclose(examples.weights, base, rtol=1e-6)

    @pytest.mark.parametrize("share", [0.1, 0.9, 1.0, -0.5])
    def test_a_share_that_leaves_a_group_empty_is_refused(self, share):
        with pytest.raises(
            ValueError, match=f"`hard_share` of `num_negatives` .* got {share} of 3"
        ):
            source(hard_share=share)

    @pytest.mark.parametrize("window", [0, 12])
    def test_a_window_that_is_none_is_refused(self, window):
        with pytest.raises(ValueError, match=f"`hard_window` must lie .* got {window} and 12"):
            source(hard_share=0.4, hard_window=window)


class TestChosenPositives:
    @pytest.mark.parametrize("limit", [1, 2])
    def test_latest_of_every_user(self, limit, clicks, retriever):
        prepared = clicks.prepared
        everything = source(num_candidates=200).examples(prepared, TRAIN, retriever)
        some = source(num_candidates=200, positives_per_user=limit).examples(
            prepared, TRAIN, retriever
        )
        expected = [
            interaction
            for user in range(len(prepared.users))
            for interaction, _ in positives(prepared, user, (TRAIN,))[-limit:]
        ]
        assert sorted(set(some.interactions.tolist())) == sorted(expected)
        assert len(set(everything.interactions.tolist())) > len(expected)

    def test_weights_are_those_of_the_positive(self, clicks, retriever):
        examples = source().examples(clicks.prepared, TRAIN, retriever)
        weights = clicks.prepared.interactions.weights[examples.interactions]
        assert set(weights.tolist()) == {1.0, 2.0, 3.0}
        assert examples.weights.tolist() == weights.tolist()


class TestDraw:
    def test_seeded(self, clicks, retriever):
        one, again, other = (
            source(seed=seed).examples(clicks.prepared, TRAIN, retriever) for seed in (0, 0, 1)
        )
        assert one.item_rows.tolist() == again.item_rows.tolist()
        assert one.item_rows.tolist() != other.item_rows.tolist()
        assert one.interactions.tolist() == other.interactions.tolist()

    def test_blocks_do_not_matter(self, clicks, retriever, monkeypatch):
        whole = source().examples(clicks.prepared, TRAIN, retriever)
        monkeypatch.setattr(module, "SCORE_BLOCK", 7)
        blocks = source().examples(clicks.prepared, TRAIN, retriever)
        assert blocks.item_rows.tolist() == whole.item_rows.tolist()
        assert blocks.negative_rate == whole.negative_rate
        np.testing.assert_allclose(blocks.scores, whole.scores, atol=1e-6)


class TestImpressions:
    @pytest.mark.parametrize("part", [TRAIN, VALIDATION, TEST])
    def test_rows_of_the_part(self, part, world):
        log = world.prepared.interactions
        examples = ImpressionExamples().examples(world.prepared, part, None)
        expected = [i for i in range(len(log.rows)) if log.split[i] == part]
        assert examples.interactions.tolist() == expected
        assert examples.item_rows.tolist() == [log.item_rows[i] for i in expected]
        assert examples.labels.tolist() == [float(log.positive[i]) for i in expected]
        assert examples.weights.tolist() == [log.weights[i] for i in expected]
        assert 0 < examples.labels.mean() < 1
        assert (examples.scores, examples.negative_rate) == (None, 1.0)

    def test_a_share_of_the_negatives(self, world):
        """Every epoch draws a third of the training part's anew; every positive is in all."""
        log = world.prepared.interactions
        some = ImpressionExamples(negative_rate=1 / 3)
        found = some.examples(world.prepared, TRAIN, None)
        positive = log.positive[found.interactions]
        num_drawn = round((~positive).sum() / 3)
        assert found.trained_rate == pytest.approx(num_drawn / (~positive).sum())
        assert found.negative_rate == 1.0
        assert found.interactions.tolist() == np.flatnonzero(log.split == TRAIN).tolist()
        batches = ExampleBatches(
            examples=found, columns=world.columns("ranking"), with_scores=False
        )
        epochs = batches.of_epochs()
        assert epochs.rows.tolist() == np.flatnonzero(positive).tolist()
        assert epochs.pool.tolist() == np.flatnonzero(~positive).tolist()
        assert epochs.num_drawn == num_drawn
        everything = replace(batches, examples=replace(found, num_drawn=None)).of_epochs()
        assert (everything.rows.tolist(), everything.num_drawn) == ([*range(len(positive))], 0)
        for part in (VALIDATION, TEST):
            rest = some.examples(world.prepared, part, None)
            assert rest.interactions.tolist() == np.flatnonzero(log.split == part).tolist()
            assert rest.negative_rate == 1.0

    @pytest.mark.parametrize("rate", [0.0, 1.5])
    def test_impossible_numbers(self, rate):
        with pytest.raises(ValueError, match=rf"`negative_rate` must lie in \(0, 1\], got {rate}"):
            ImpressionExamples(negative_rate=rate)

    def test_scores_of_the_retriever(self, world, monkeypatch):
        monkeypatch.setattr("twotower.training.retriever.SCORE_BLOCK", 50)
        columns = world.columns("retrieval")
        model = world.towers(dropout=0.5)
        retriever = Retriever.of(model, columns, world.prepared.num_catalogue)
        examples = ImpressionExamples().examples(world.prepared, TEST, retriever)
        assert len(examples.scores) == len(examples.labels) > 100
        model.eval()
        for place in (0, 49, 50, len(examples.labels) - 1):
            row = torch.tensor([examples.interactions[place]])
            item = torch.tensor([int(examples.item_rows[place])])
            query, vector = (
                model.embed_queries(columns.queries(row)),
                model.embed_items(columns.items(item)),
            )
            assert examples.scores[place] == pytest.approx((query * vector).sum().item(), abs=1e-5)


class TestRetriever:
    def test_of_a_model(self, clicks):
        model, columns = clicks.towers(), clicks.columns("retrieval")
        retriever = Retriever.of(model, columns, 9)
        assert torch.equal(retriever.items, embed_catalogue(model, columns, 9))

    @pytest.mark.parametrize("remove_seen", [True, False])
    def test_ranks_equal_a_sort(self, remove_seen, clicks, retriever, monkeypatch):
        """Items that do worse are behind; items the user had before the event are not there."""
        monkeypatch.setattr("twotower.training.retriever.SCORE_BLOCK", 7)
        prepared, log = clicks.prepared, clicks.prepared.interactions
        retriever = replace(retriever, items=retriever.items[:35], remove_seen=remove_seen)
        rows = np.arange(0, len(log.rows), 9)
        items = (np.asarray(log.item_rows[rows]) + np.arange(len(rows)) % 2 * 3) % 40
        found = retriever.ranks(prepared, rows, items)
        for row, item, rank in zip(rows.tolist(), items.tolist(), found.tolist(), strict=True):
            user, end = log.user_rows[row], log.history_end[row]
            earlier = prepared.events.item_rows[prepared.events.offsets[user] : end].tolist()
            gone = set(earlier) - {item} if remove_seen else set()
            scores = (retriever.queries(np.array([row])) @ retriever.items.T)[0].tolist()
            order = sorted((i for i in range(35) if i not in gone), key=lambda i: -scores[i])
            assert rank == (order.index(item) + 1 if item < 35 else 36)
        assert found.dtype == np.float32
        assert {36.0} < set(found.tolist())

    def test_ranks_are_the_places_at_which_items_are_served(self, clicks, retriever):
        prepared, log = clicks.prepared, clicks.prepared.interactions
        row = len(log.rows) - 1
        user, end = log.user_rows[row], log.history_end[row]
        seen = prepared.events.item_rows[prepared.events.offsets[user] : end].astype(np.int64)
        assert len(seen) > 3
        excluded = ItemLists(offsets=np.array([0, len(seen)]), item_rows=seen)
        shown = exact_search(retriever.queries(np.array([row])), retriever.items, 20, excluded)
        found = retriever.ranks(prepared, np.full(20, row), shown.rows[0])
        assert found.tolist() == list(range(1, 21))

    def test_no_pairs(self, retriever):
        none = np.zeros(0, np.int64)
        assert retriever.scores(none, none).shape == (0,)


class TestBatches:
    def test_holds_query_candidate_and_outcome(self, clicks, retriever):
        examples = source().examples(clicks.prepared, TRAIN, retriever)
        columns = clicks.columns("ranking")
        batches = ExampleBatches(examples=examples, columns=columns, with_scores=True)
        assert len(batches) == len(examples.labels)
        chosen = torch.tensor([5, 0, 17])
        batch = batches.batch(chosen)
        for place, example in enumerate(chosen.tolist()):
            query = columns.queries(torch.tensor([examples.interactions[example]]))
            item = columns.items(torch.tensor([int(examples.item_rows[example])]))
            for name, value in (query | item).items():
                assert torch.equal(batch[name][place], value[0]), name
            assert batch[ITEM_ROWS][place] == examples.item_rows[example]
            assert batch[LABELS][place] == examples.labels[example]
            assert batch[WEIGHTS][place] == examples.weights[example]
            assert batch[RETRIEVAL_SCORE][place] == examples.scores[example]

    def test_without_scores(self, world):
        examples = ImpressionExamples().examples(world.prepared, TRAIN, None)
        columns = world.columns("ranking")
        batches = ExampleBatches(examples=examples, columns=columns, with_scores=False)
        assert RETRIEVAL_SCORE not in batches.batch(torch.tensor([0]))
        with pytest.raises(DataError, match=r"set models\.ranking\.retrieval_score=false"):
            replace(batches, with_scores=True).batch(torch.tensor([0]))


class TestErrors:
    def test_positives_alone_are_no_impressions(self, clicks):
        with pytest.raises(DataError, match=r"the log holds positives alone; (.|\n)*candidates"):
            ImpressionExamples().examples(clicks.prepared, TRAIN, None)

    def test_candidates_have_no_further_outcomes(self, clicks):
        log = replace(clicks.prepared.interactions, tasks={"bought": clicks.prepared.events.split})
        prepared = replace(clicks.prepared, interactions=log)
        with pytest.raises(DataError, match=r"data\.label\.tasks: nothing is known of the further"):
            source().check(prepared, has_retriever=True)

    def test_candidates_without_retriever(self, clicks):
        with pytest.raises(DataError, match=r"train both stages, stages=\[retrieval,ranking\]"):
            source().examples(clicks.prepared, TRAIN, None)

    def test_retriever_that_finds_nothing(self, clicks, retriever):
        """Items that somebody took in the test part look away from all queries."""
        events = clicks.prepared.events
        inside = events.split == TEST
        away = retriever.queries(events.interactions[inside]).mean(dim=0)
        items = away.repeat(40, 1)
        items[np.unique(events.item_rows[inside])] *= -1
        blind = replace(retriever, items=items)
        with pytest.raises(DataError, match=r"none of the \d+ positives of the test part is among"):
            source(num_candidates=2, num_negatives=1).examples(clicks.prepared, TEST, blind)

    @pytest.mark.parametrize(("negatives", "candidates"), [(0, 5), (5, 5), (9, 5)])
    def test_numbers_that_do_not_fit(self, negatives, candidates):
        with pytest.raises(ValueError, match=f"got {negatives} and {candidates}"):
            source(num_negatives=negatives, num_candidates=candidates)

    @pytest.mark.parametrize("name", ["positives_per_user", "seed"])
    def test_numbers_below_zero(self, name):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            source(**{name: -1})


class TestEither:
    def test_impressions_where_there_are_any(self, world):
        either = ImpressionsElseCandidates(impressions=ImpressionExamples(), candidates=source())
        found = either.examples(world.prepared, TEST, None)
        assert found.interactions.tolist() == (
            ImpressionExamples().examples(world.prepared, TEST, None).interactions.tolist()
        )

    def test_candidates_where_there_are_none(self, clicks, retriever):
        found = ImpressionsElseCandidates(
            impressions=ImpressionExamples(), candidates=source()
        ).examples(clicks.prepared, TEST, retriever)
        expected = source().examples(clicks.prepared, TEST, retriever)
        assert found.item_rows.tolist() == expected.item_rows.tolist()
