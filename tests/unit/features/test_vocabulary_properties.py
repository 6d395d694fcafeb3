"""What holds of every vocabulary: of its rows, of growing, of reading back."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.leakage import FittedOn
from twotower.features.pipeline import FeaturePipeline, fit_transform
from twotower.features.spec import Feature, FeatureSpec, History, spec_from_dict
from twotower.features.vocabulary import Vocabulary

integers = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.none())
texts = st.lists(st.text(max_size=4) | st.sampled_from(["a", "b"]) | st.none())


def typed(values) -> pa.Array:
    is_text = any(isinstance(value, str) for value in values)
    return pa.array(values, pa.string() if is_text else pa.int64())


@given(integers | texts, st.integers(1, 3))
def test_known_values_have_rows_of_their_own(values, min_count) -> None:
    vocabulary = Vocabulary.fit(typed(values), min_count=min_count)
    counts = Counter(value for value in values if value is not None)
    known = {value for value, count in counts.items() if count >= min_count}
    listed = vocabulary.values.to_pylist()
    assert len(listed) == len(known)
    assert set(listed) == known
    assert [counts[v] for v in listed] == sorted((counts[v] for v in listed), reverse=True)
    places = {value: row for row, value in enumerate(listed, 1)}
    assert vocabulary.rows(typed(values)).tolist() == [places.get(value, 0) for value in values]
    assert vocabulary.num_rows == len(known) + 1


@given(st.lists(st.text(max_size=2)), st.lists(st.text(max_size=2)), st.booleans())
def test_a_grown_vocabulary_moves_nobody(before, after, evict) -> None:
    old = Vocabulary.fit(pa.array(before, pa.string()), min_count=1)
    new = Vocabulary.fit(pa.array(after, pa.string()), min_count=1)
    grown = old.grown(new, evict=evict)
    rows = dict(zip(grown.values.to_pylist(), range(1, grown.num_rows), strict=True))
    for row, value in enumerate(old.values.to_pylist(), 1):
        if not evict or value in after:
            assert rows[value] == row
    known = {value for value in rows if value is not None}
    assert known == (set(after) if evict else {*before, *after})
    assert old.carried(grown).sum() == 1 + len(known & set(before))


KINDS = ("id", "categorical", "numeric")


@st.composite
def features(draw: st.DrawFn) -> list[Feature]:
    made = []
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)):
        side, kind = (
            draw(st.sampled_from(("user", "item", "context"))),
            draw(st.sampled_from(KINDS)),
        )
        dim = 0 if kind == "numeric" else draw(st.integers(0, 9))
        made.append(Feature(name=name, side=side, kind=kind, dim=dim))
    return made


@given(features(), st.data())
def test_a_pipeline_reads_what_it_saved(tmp_path_factory, declared, data) -> None:
    folder = tmp_path_factory.mktemp("pipeline") / "features"
    numbers = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=8)
    spec = FeatureSpec(features=tuple(declared), history=History(length=0))
    transforms = {one.name: fit_transform(one, pa.array(data.draw(numbers))) for one in declared}
    fitted_on = FittedOn(num_rows=8, last_timestamp=None, digest="0")
    pipeline = FeaturePipeline(spec, transforms, fitted_on)
    pipeline.save(folder)
    again = FeaturePipeline.load(folder)
    assert again.digest() == pipeline.digest()
    assert spec_from_dict(again.spec.to_dict()) == spec
    asked = pa.table({one.name: pa.array([1, None, -5]) for one in declared})
    for side in ("user", "item", "context"):
        found, expected = again.encode(side, asked), pipeline.encode(side, asked)
        assert {n: v.tolist() for n, v in found.items()} == {
            n: v.tolist() for n, v in expected.items()
        }
