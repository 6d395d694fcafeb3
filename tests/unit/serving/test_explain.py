"""Why an item is shown or not, against sorts of everything and against the trained models."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from twotower.cli.load_run import LoadedRun
from twotower.export.bundle import Bundle, open_bundle
from twotower.index.cells import Probe
from twotower.index.filtered import FilteredIndex
from twotower.index.inverted_file import IVFFlat
from twotower.serving.explain import explain
from twotower.serving.explanation import Explanation, Places
from twotower.serving.freshness import Freshness
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter, Request, RequestError
from twotower.serving.verdict import verdict

NOON = 1_705_320_000.0
JAZZ = Filter(column="category", operator="in", values=["jazz", "opera"])


@pytest.fixture(scope="module")
def request_of(bundle: Bundle) -> Request:
    row = int(np.flatnonzero(np.diff(bundle.offsets) >= 4)[0])
    return Request(user=bundle.users.ids[row].as_py(), k=5, seconds=NOON)


def seen_by(bundle: Bundle, request: Request) -> list[str]:
    row = bundle.users.ids.to_pylist().index(request.user)
    events = bundle.item_rows[bundle.offsets[row] : bundle.offsets[row + 1]]
    return [bundle.items.ids[int(event)].as_py() for event in events]


def order_by_score(recommender: Recommender, request: Request) -> list[str]:
    """Ids of all items, best first, by a product with every vector."""
    query = recommender.embed(recommender.encoder.asked(0, request).columns)[0]
    scores = np.asarray(recommender.bundle.item_vectors, np.float64) @ query
    ids = recommender.items.ids.to_pylist()
    return [ids[row] for row in np.argsort(-scores, kind="stable")]


def explained(recommender: Recommender, request: Request) -> dict[str, Explanation]:
    ids = recommender.items.ids.to_pylist()
    return {item: explain(recommender, request, item) for item in ids}


def test_every_item_of_a_request(
    recommender: Recommender, bundle: Bundle, request_of: Request
) -> None:
    found = explained(recommender, request_of)
    order = order_by_score(recommender, request_of)
    seen = set(seen_by(bundle, request_of))
    unseen = [item for item in order if item not in seen]
    final = recommender.recommend(user=request_of.user, k=80, seconds=NOON)
    places = {item.item_id: place for place, item in enumerate(final, start=1)}
    outcomes = set()
    for item, about in found.items():
        outcomes.add(about.outcome)
        stand = about.places
        assert stand.exact_rank == stand.index_rank == order.index(item) + 1
        assert (stand.num_items, stand.num_allowed, stand.num_candidates) == (
            80,
            len(unseen),
            len(unseen),
        )
        if item in seen:
            assert about.outcome == "seen"
            assert about.sentence == "Left out: the user has taken it before."
            assert stand.allowed_rank is stand.candidate_rank is stand.place is None
            continue
        shown = final[places[item] - 1]
        assert stand.allowed_rank == stand.candidate_rank == unseen.index(item) + 1
        assert stand.candidate_rank == shown.retrieval_rank
        assert stand.ranker_rank == places[item]
        assert stand.probability == pytest.approx(shown.probability, abs=1e-6)
        assert stand.score == pytest.approx(shown.retrieval_score, abs=1e-6)
        if places[item] <= 5:
            assert (about.outcome, stand.place) == ("shown", places[item])
            assert about.sentence == (
                f"Shown at place {places[item]} of 5: the ranker had it as candidate "
                f"{stand.candidate_rank}."
            )
        else:
            assert (about.outcome, stand.place) == ("lost_by_ranker", None)
            assert about.sentence == (
                f"Lost in the ranker: candidate {stand.candidate_rank} of {len(unseen)} is put at "
                f"place {places[item]}, and 5 are shown."
            )
    assert outcomes == {"seen", "shown", "lost_by_ranker"}


def test_a_filter_that_removes_it(recommender: Recommender, bundle: Bundle, request_of) -> None:
    dear = Filter(column="price", operator="at_least", values=[9])
    request = replace(request_of, filters=[JAZZ, dear])
    categories, prices = (bundle.items.table[name].to_pylist() for name in ("category", "price"))
    passes = [
        category in JAZZ.values and price is not None and price >= 9
        for category, price in zip(categories, prices, strict=True)
    ]
    seen = set(seen_by(bundle, request))
    ids = bundle.items.ids.to_pylist()
    allowed = [i for i, p in zip(ids, passes, strict=True) if p and i not in seen]
    order = order_by_score(recommender, request)
    left = [item for item in order if item in allowed]
    assert 0 < len(left) < 40
    for item, about in explained(recommender, request).items():
        row = ids.index(item)
        assert about.places.num_allowed == len(left)
        assert about.places.exact_rank == order.index(item) + 1
        if item in left:
            assert about.outcome in ("shown", "lost_by_ranker")
            assert about.places.allowed_rank == left.index(item) + 1
        elif item in seen:
            assert about.outcome == "seen"
        else:
            assert about.outcome == "filtered"
            expected = (
                f"`price` at least 9; the item has {prices[row] or 'no value'}."
                if categories[row] in JAZZ.values
                else f"`category` in [jazz, opera]; the item has {categories[row]}."
            )
            assert about.sentence == f"Left out by a filter: {expected}"


def shortened(bundle: Bundle, num_candidates: int) -> Recommender:
    return Recommender(
        replace(bundle, manifest=replace(bundle.manifest, num_candidates=num_candidates))
    )


def test_lost_in_the_retrieval(recommender: Recommender, bundle: Bundle, request_of) -> None:
    """With ten candidates; the ranker says what it would have thought of the others."""
    short = shortened(bundle, 10)
    seen = set(seen_by(bundle, request_of))
    order = [item for item in order_by_score(short, request_of) if item not in seen]
    all_of_them = {
        item.item_id: item.probability
        for item in recommender.recommend(user=request_of.user, k=80, seconds=NOON)
    }
    best = sorted((all_of_them[item] for item in order[:10]), reverse=True)
    for rank, item in enumerate(order[10:], start=11):
        about = explain(short, request_of, item)
        assert about.outcome == "lost_by_retrieval"
        assert about.sentence == (
            f"Lost in the retrieval: {rank - 1} items that may be shown have a higher score, and "
            "the best 10 go on."
        )
        places = about.places
        assert (places.allowed_rank, places.candidate_rank, places.num_candidates) == (
            rank,
            None,
            10,
        )
        assert places.index_rank is None or places.index_rank == places.exact_rank <= 10
        assert places.probability == pytest.approx(all_of_them[item], abs=1e-5)
        assert places.ranker_rank == sum(p > places.probability for p in best) + 1
    assert {explain(short, request_of, item).outcome for item in order[:10]} <= {
        "shown",
        "lost_by_ranker",
    }


def test_lost_by_the_index(bundle: Bundle, request_of) -> None:
    """One cell of ten is looked into; an item of another cell is lost."""
    vectors = np.asarray(bundle.item_vectors)
    index = IVFFlat(num_cells=10, num_probes=1, device="cpu").build(vectors)
    recommender = shortened(bundle, 10)
    recommender.index = FilteredIndex(index, vectors)
    query = recommender.embed(recommender.encoder.asked(0, request_of).columns)
    cells = index.cells.nearest(query, 10)[0][0].tolist()
    outcomes = set()
    for item, about in explained(recommender, request_of).items():
        cell = int(index.cells.of_row[bundle.items.ids.to_pylist().index(item)])
        probe = about.places.probe
        assert (probe.cell, probe.place, probe.num_probes) == (cell, cells.index(cell) + 1, 1)
        assert probe.looked_into == (cell == cells[0])
        outcomes.add(about.outcome)
        if about.outcome == "lost_by_index":
            assert cell != cells[0]
            assert about.places.index_rank is None
            assert about.places.allowed_rank <= 10
            assert about.sentence == (
                f"Lost by the approximate index: at place {about.places.allowed_rank} by exact "
                f"score it was to go on, but its cell is the {probe.place}. nearest to the user, "
                "and 1 are looked into."
            )
    assert "lost_by_index" in outcomes


def test_lost_by_its_code() -> None:
    """Its cell was looked into, and codes of other items looked better."""
    places = Places(
        num_items=500,
        num_allowed=400,
        num_candidates=20,
        allowed_rank=7,
        probe=Probe(cell=3, place=2, num_probes=4),
    )
    assert verdict(places, 10, has_ranker=True) == (
        "lost_by_index",
        "Lost by the approximate index: at place 7 by exact score it was to go on, but its code in "
        "the index is not exact enough.",
    )


def test_lost_in_the_screen() -> None:
    """The ranker would have shown it, had it been given it."""
    places = Places(
        num_items=500,
        num_allowed=400,
        num_candidates=200,
        allowed_rank=190,
        candidate_rank=187,
        ranker_rank=9,
    )
    assert verdict(places, 10, has_ranker=True) == (
        "lost_by_ranker",
        "Lost in the screen before the ranker, which would put candidate 187 of 200 at place 9; 10 "
        "are shown.",
    )


class Forgetful:
    """An index of no known kind that does not return an item."""

    def __init__(self, index, forgotten: int) -> None:
        self.index, self.forgotten, self.num_items = index, forgotten, index.num_items

    def search(self, queries, k, allowed=None):
        found = self.index.search(queries, k, allowed)
        gone = found.rows == self.forgotten
        found.rows[gone], found.scores[gone] = -1, -np.inf
        return found


def test_lost_by_another_index(bundle: Bundle, request_of) -> None:
    recommender = shortened(bundle, 40)
    seen = set(seen_by(bundle, request_of))
    item = next(i for i in order_by_score(recommender, request_of) if i not in seen)
    row = bundle.items.ids.to_pylist().index(item)
    recommender.index = Forgetful(recommender.index, row)
    about = explain(recommender, request_of, item)
    assert about.outcome == "lost_by_index"
    assert about.places.probe is None
    assert about.sentence == (
        "Lost by the approximate index: at place 1 by exact score it was to go on, but the search "
        "did not come upon it."
    )


def test_without_a_ranker(csv_run) -> None:
    bundle = open_bundle(csv_run.bundle)
    recommender = Recommender(bundle)
    request = Request(user=bundle.users.ids[2].as_py(), k=3)
    order = [item.item_id for item in recommender.recommend(user=request.user, k=30)]
    first, fifth = (explain(recommender, request, order[place]) for place in (0, 4))
    assert first.sentence == "Shown at place 1 of 3: by its score."
    assert fifth.sentence == "Lost in the retrieval: place 5 by score, and 3 are shown."
    assert (fifth.outcome, fifth.places.candidate_rank) == ("lost_by_retrieval", 5)
    for about in (first, fifth):
        places = about.places
        assert places.ranker_rank is places.probability is places.logit is None
        assert {one.logit for one in about.contributions} == {None}
        weights = [abs(one.score) for one in about.contributions]
        assert weights == sorted(weights, reverse=True)


def test_nothing_is_known_of_the_user(recommender: Recommender, bundle: Bundle) -> None:
    popular = [item.item_id for item in recommender.recommend(k=80)]
    unknown = "nothing is known of the user, and popular items are shown."
    third, last = (explain(recommender, Request(k=5), popular[place]) for place in (2, -1))
    assert (third.outcome, third.places.place) == ("shown", 3)
    assert third.sentence == f"Shown at place 3 of 5: {unknown}"
    assert (last.outcome, last.places.place) == ("not_popular", None)
    assert last.sentence == f"Not popular enough: {unknown}"
    assert last.places.score is last.places.exact_rank is None
    assert last.contributions == []
    filtered = explain(
        recommender,
        Request(k=5, filters=[Filter(column="price", operator="at_most", values=[-1])]),
        popular[0],
    )
    assert filtered.outcome == "filtered"
    assert filtered.places.num_allowed == 0


def test_items_that_were_added_and_removed(
    recommender: Recommender, bundle: Bundle, request_of
) -> None:
    freshness = Freshness(recommender)
    seen = set(seen_by(bundle, request_of))
    gone = next(i for i in order_by_score(recommender, request_of) if i not in seen)
    values = recommender.items.values(3)
    freshness.upsert([values | {"item_id": "new", "title": "New one"}])
    freshness.remove([gone])
    about = explain(freshness.recommender, request_of, gone)
    assert (about.outcome, about.places.exact_rank) == ("removed", 1)
    assert about.sentence == "Left out: it was removed from the catalogue."
    assert about.places.allowed_rank is about.places.index_rank is None
    new = explain(freshness.recommender, replace(request_of, k=80), "new")
    assert (new.outcome, new.title, new.places.num_items) == ("shown", "New one", 80)
    assert new.places.exact_rank == new.places.index_rank
    parts = {one.feature: one for one in new.contributions}
    assert parts["category"].value == values["category"]
    assert parts["item_id"].logit == pytest.approx(0, abs=1e-6)  # unknown ids are as missing ones


@pytest.mark.parametrize(
    ("request_given", "item", "message"),
    [
        (Request(), "nothing", "item: 'nothing' is unknown; known are 80 items such as "),
        (Request(user="nobody"), "i00000", "user: 'nobody' is unknown"),
        (Request(k=0), "i00000", "k: must be at least 1, got 0"),
        (
            Request(filters=[Filter(column="x", operator="in", values=[1])]),
            "i00000",
            "filters[0].column: unknown column `x`",
        ),
    ],
)
def test_what_cannot_be_explained(
    recommender: Recommender, request_given: Request, item: str, message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        explain(recommender, request_given, item)


@torch.no_grad()
def test_contributions_are_those_of_the_trained_models(
    recommender: Recommender, bundle: Bundle, loaded: LoadedRun
) -> None:
    """Every value taken out of the request or the item, and both models asked again, in torch."""
    pipeline = bundle.pipeline
    user = bundle.users.table.slice(3, 1).to_pylist()[0]
    history = bundle.items.ids[10:16].to_pylist()
    request = Request(
        user_features=user, history=history, context={"device": "phone"}, k=5, seconds=NOON
    )
    about = explain(recommender, request, bundle.items.ids[4].as_py())
    item = bundle.items.table.slice(4, 1)

    def batch(asked: Request, table) -> dict:
        columns = recommender.encoder.asked(0, asked).columns | pipeline.encode("item", table)
        return {
            n: torch.from_numpy(np.asarray(c, np.int64 if c.dtype == np.int32 else c.dtype))
            for n, c in columns.items()
        }

    def score(asked: Request, table) -> float:
        columns, model = batch(asked, table), loaded.two_tower
        return float((model.embed_queries(columns) @ model.embed_items(columns).T)[0, 0])

    def logit(asked: Request, table, retrieval_score: float) -> float:
        given = {"retrieval_score": torch.tensor([retrieval_score])}
        return float(loaded.ranker(batch(asked, table) | given)[0])

    whole_score = score(request, item)
    whole_logit = logit(request, item, whole_score)
    assert about.places.score == pytest.approx(whole_score, abs=1e-5)
    assert about.places.logit == pytest.approx(whole_logit, abs=1e-5)
    without = {
        name: (replace(request, user_features={n: v for n, v in user.items() if n != name}), item)
        for name in user
        if name in {f.name for f in pipeline.spec.features}
    }
    without["device"] = (replace(request, context={}), item)
    without["position"] = (replace(request, context={**request.context, "position": None}), item)
    without["history"] = (replace(request, history=[]), item)
    for name in ("item_id", "category", "tags", "price", "image_vector"):
        without[name] = (request, item.drop_columns([name]))
    parts = {one.feature: one for one in about.contributions}
    looked_at = {f.name for f in pipeline.inputs("retrieval").features} | {"history"}
    for name, (asked, table) in without.items():
        part = parts.pop(name)
        expected = whole_logit - logit(asked, table, whole_score)
        assert part.logit == pytest.approx(expected, abs=1e-5), name
        if name in looked_at:
            assert part.score == pytest.approx(whole_score - score(asked, table), abs=1e-5), name
        else:
            assert part.score is None
    ranked = recommender.recommend(
        user_features=user, history=history, context=request.context, k=80, seconds=NOON
    )
    median = float(np.median([one.retrieval_score for one in ranked]))
    part = parts.pop("retrieval_score")
    assert part.logit == pytest.approx(whole_logit - logit(request, item, median), abs=1e-5)
    assert (part.side, part.score) == ("retrieval", None)
    assert set(parts) == {"timestamp"}  # is never missing online
    assert about.contributions[0].feature != "device"
    logits = [abs(one.logit) for one in about.contributions]
    assert logits == sorted(logits, reverse=True)
    said = {one.feature: one.value for one in about.contributions}
    assert said["history"] == "6 events"
    assert said["image_vector"] == "16 numbers"
    assert said["device"] == "phone"
    assert said["position"] == "1"
    assert said["timestamp"] == "2024-01-15 12:00"
    assert said["category"] == item["category"][0].as_py()
    assert said["country"] == (user["country"] or "")


def test_the_logit_is_that_of_the_probability(
    recommender: Recommender, bundle: Bundle, request_of
) -> None:
    fitted = bundle.manifest.calibration
    for item in bundle.items.ids.to_pylist()[:10]:
        places = explain(recommender, request_of, item).places
        expected = 1 / (1 + np.exp(-(fitted["scale"] * places.logit + fitted["bias"])))
        assert fitted["negative_rate"] == 1
        assert places.probability == pytest.approx(expected, abs=1e-5)
