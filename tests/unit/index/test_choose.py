"""The ladder of ``index=auto``, with a clock that the test moves by the kind of index searched."""

import logging

import numpy as np
import pytest

from twotower.index import choose
from twotower.index.choose import Auto, choose_index
from twotower.index.faiss_index import FaissIndex
from twotower.index.flat import Flat
from twotower.index.inverted_file import IVFPQ, IVFFlat

ITEM_BYTES = 3_000 * 16 * 4


@pytest.fixture
def seconds(monkeypatch):
    """Seconds that a search takes, by kind; to be changed by the test."""
    table = {"flat": 0.050, "ivf_flat": 0.001, "ivf_pq": 0.001, "hnsw": 0.001, "cagra": 0.001}
    now = [0.0]
    search = FaissIndex.search

    def slow_search(self, queries, k):
        now[0] += table[self.kind]
        return search(self, queries, k)

    monkeypatch.setattr(FaissIndex, "search", slow_search)
    monkeypatch.setattr(choose.time, "perf_counter", lambda: now[0])
    return table


@pytest.fixture
def large(monkeypatch):
    """Let the test's corpus count as a large one."""
    monkeypatch.setattr(choose, "SMALL_CORPUS", 2_999)


def pick(data, **changes):
    settings = {
        "k": 10,
        "recall_target": 0.9,
        "latency_target_ms": 10.0,
        "memory_limit_bytes": None,
        "device": "cpu",
    }
    return choose_index(*data, **(settings | changes))


def kinds(choice):
    return [trial.builder.kind for trial in choice.trials]


def test_small_corpora_are_searched_exactly(clustered, seconds):
    choice = pick(clustered)
    assert choice.index.kind == "flat"
    (trial,) = choice.trials
    assert trial.recall == 1.0
    assert trial.ms_per_query == pytest.approx(50.0)
    assert trial.num_bytes == ITEM_BYTES


def test_exact_search_is_kept_while_it_is_fast_enough(clustered, seconds, large):
    assert pick(clustered, latency_target_ms=51.0).index.kind == "flat"
    assert pick(clustered, latency_target_ms=49.0).index.kind == "ivf_flat"


def test_effort_rises_until_recall_is_met(clustered, seconds, large):
    choice = pick(clustered, recall_target=0.97)
    assert choice.index.kind == "ivf_flat"
    assert kinds(choice)[0] == "flat"
    probes = [trial.builder.num_probes for trial in choice.trials[1:]]
    assert probes == [2, 3, 5, 10, 19][: len(probes)]  # 76 cells / 64, 32, 16, 8, 4, rounded up
    recalls = [trial.recall for trial in choice.trials[1:]]
    assert all(recall < 0.97 for recall in recalls[:-1])
    assert recalls[-1] >= 0.97
    assert len(recalls) > 1


def test_reported_recall_is_that_of_the_index(clustered, seconds, large):
    items, queries = clustered
    choice = pick(clustered, recall_target=0.5)
    truth = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    rows = choice.index.search(queries, 10).rows
    hits = sum(len(set(a) & set(b)) for a, b in zip(rows, truth, strict=True))
    assert choice.trials[-1].recall == pytest.approx(hits / 1_000)


def test_a_slow_kind_is_left_after_one_trial(clustered, seconds, large):
    seconds["ivf_flat"] = 0.020
    choice = pick(clustered, recall_target=0.5)
    assert kinds(choice) == ["flat", "ivf_flat", "ivf_pq"]
    assert choice.index.kind == "ivf_pq"


def test_graphs_follow(clustered, seconds, large):
    seconds |= {"ivf_flat": 0.020, "ivf_pq": 0.020}
    choice = pick(clustered)
    assert kinds(choice) == ["flat", "ivf_flat", "ivf_pq", "ivf_pq", "hnsw"]
    assert choice.index.faiss_index.hnsw.efSearch == choice.trials[-1].builder.ef_search == 64


def test_little_memory_leaves_codes_alone(clustered, seconds):
    choice = pick(clustered, memory_limit_bytes=ITEM_BYTES // 2, recall_target=0.4)
    assert choice.index.kind == "ivf_pq"
    assert choice.trials[-1].builder.refine == 0
    assert choice.trials[-1].num_bytes <= ITEM_BYTES // 2
    assert [text.split()[0] for text in choice.left_out] == ["ivf_flat", "ivf_pq"]


def test_nothing_meets_the_targets(clustered, seconds, large):
    seconds |= dict.fromkeys(seconds, 0.020)
    message = (
        r"(?s)no index has recall@10 of at least 0\.9, at most 10\.0 ms a query; relax a target"
        r".*flat \(exact\).*recall 1\.0000, 20\.000 ms.*ivf_flat.*refined from.*not refined.*hnsw"
    )
    with pytest.raises(ValueError, match=message):
        pick(clustered)


def test_too_little_memory_for_anything(clustered, seconds):
    message = r"(?s)at most 1,000 bytes; relax.*too large to be tried: ivf_flat \(.*hnsw \("
    with pytest.raises(ValueError, match=message):
        pick(clustered, memory_limit_bytes=1_000)


def test_too_few_items_for_codes(clustered, seconds):
    items, queries = clustered
    with pytest.raises(ValueError, match="too large to be tried: ivf_flat") as caught:
        pick((items[:100], queries), memory_limit_bytes=1_000)
    assert "ivf_pq" not in str(caught.value)


def test_gpu_ladder(clustered, seconds, large, moves):
    seconds["ivf_flat"] = 0.020
    choice = pick(clustered, device="auto", k=300, recall_target=0.5)
    assert kinds(choice)[:3] == ["flat", "ivf_flat", "ivf_pq"]
    assert choice.trials[-1].builder.refine == 6  # 2,048 // 300: the GPU selects no more
    assert choice.index.device == "gpu"


def test_gpu_ladder_without_room_to_refine(clustered, seconds, large, moves):
    seconds |= {"ivf_flat": 0.020, "ivf_pq": 0.020}
    with pytest.raises(ValueError, match="not refined") as caught:
        pick(clustered, device="gpu", k=1_100)
    assert "refined from" not in str(caught.value)
    assert "hnsw" not in str(caught.value)


def test_all_queries_stand_for_themselves_up_to_a_limit(clustered, seconds, monkeypatch):
    monkeypatch.setattr(choose, "MAX_QUERIES", 3)
    items, queries = clustered
    with_noise = queries.copy()
    picked = [0, 49, 99]
    with_noise[[row for row in range(100) if row not in picked]] = 0.0
    seen = []
    search = FaissIndex.search

    def watched(self, queries, k):
        seen.append(queries)
        return search(self, queries, k)

    monkeypatch.setattr(FaissIndex, "search", watched)
    pick((items, with_noise))
    np.testing.assert_array_equal(seen[0], with_noise[picked])


def test_builder_hands_its_settings_on(clustered, seconds, large, caplog):
    items, queries = clustered
    spec = Auto(k=10, recall_target=0.9, latency_target_ms=10.0, device="cpu")
    with caplog.at_level(logging.INFO):
        index = spec.build(items, queries=queries)
    assert index.kind == "ivf_flat"
    assert "auto tried flat (exact) on cpu" in caplog.text
    assert "auto chose ivf_flat" in caplog.text


def test_builder_needs_queries(clustered):
    with pytest.raises(ValueError, match="auto needs held-out queries to measure its options on"):
        Auto().build(clustered[0])


def test_no_queries(clustered):
    items, queries = clustered
    with pytest.raises(ValueError, match="at least one held-out query, got none"):
        pick((items, queries[:0]))


def test_all_bad_targets_at_once(clustered):
    message = r"(?s)`k` must.*got 0.*`recall_target`.*got 1\.5.*`latency_target_ms`.*`memory_limit"
    with pytest.raises(ValueError, match=message):
        pick(clustered, k=0, recall_target=1.5, latency_target_ms=0.0, memory_limit_bytes=0)


def test_the_ladder_names_one_device():
    for family in choose._families((100_000, 64), 100, "cpu"):
        assert {builder.device for builder in family} == {"cpu"}


def test_tuned_equals_built(clustered):
    """What the ladder measures by changing the effort is what building so would have given."""
    items, queries = clustered
    for low, high in (
        (IVFFlat(num_probes=2, device="cpu"), IVFFlat(num_probes=9, device="cpu")),
        (IVFPQ(num_probes=2, num_bytes=2), IVFPQ(num_probes=9, num_bytes=2)),
        (Flat(device="cpu"), Flat(device="cpu")),
    ):
        built = high.build(items)
        tuned = high.tuned(low.build(items).faiss_index, "cpu")
        assert tuned.description == built.description
        np.testing.assert_array_equal(
            tuned.search(queries, 10).rows, built.search(queries, 10).rows
        )
