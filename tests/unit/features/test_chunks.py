"""What is fitted does not depend on the chunks that a column comes in."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.leakage import FittedOn
from twotower.data.training_part import TrainingPart
from twotower.features import pairwise_sum
from twotower.features.infer import AutoSpec
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History
from twotower.features.vocabulary import Vocabulary, count_values

COUNT = 1200
SPEC = FeatureSpec(
    features=(
        Feature(name="device", side="context", kind="categorical", min_count=2),
        Feature(name="genres", side="context", kind="tags"),
        Feature(name="words", side="context", kind="tags", separator="|"),
        Feature(name="load", side="context", kind="numeric"),
        Feature(name="price", side="context", kind="numeric", log=True),
        Feature(name="image", side="context", kind="vector"),
        Feature(name="timestamp", side="context", kind="time"),
    ),
    history=History(length=0),
)


def columns():
    rng = np.random.default_rng(0)
    load = rng.normal(size=COUNT) * 10.0 ** rng.integers(-8, 8, COUNT)
    load[::7] = np.nan
    image = list(rng.normal(size=(COUNT, 3)))
    image[:400] = [None] * 400  # the first chunks have none
    return pa.table(
        {
            "device": rng.choice([f"d{n}" for n in range(300)], COUNT),
            "genres": [["a", "b", "c"][: n % 4] if n > 300 else None for n in range(COUNT)],
            "words": rng.choice(["x|y", "y", "", "z|x|w"], COUNT),
            "load": load,
            "price": rng.integers(-2, 90, COUNT),
            "image": pa.array([None if v is None else v.tolist() for v in image]),
            "timestamp": rng.integers(0, 10**15, COUNT),
            "slot": rng.integers(0, 5, COUNT),
            "comment": [f"text {n}" for n in range(COUNT)],
            "gauge": rng.integers(0, 900, COUNT),
            "label": rng.integers(0, 2, COUNT),
        }
    )


def part_of(table):
    return TrainingPart(
        interactions=table,
        users=None,
        items=None,
        context=tuple(name for name in table.column_names if name not in ("timestamp", "label")),
        fitted_on=FittedOn.rows(np.arange(COUNT), None),
    )


def cut(table, size):
    return pa.concat_tables([table.slice(at, size) for at in range(0, COUNT, size)])


def in_dictionaries(table):
    """Every chunk with a dictionary of its own."""
    device = [chunk.dictionary_encode() for chunk in cut(table, 100).column("device").iterchunks()]
    return table.set_column(0, "device", pa.chunked_array(device))


@pytest.mark.parametrize("size", [1, 7, 250, COUNT])
def test_a_pipeline_is_the_same_to_the_last_bit(monkeypatch, size):
    monkeypatch.setattr(pairwise_sum, "SUMMED_AT_ONCE", 128)
    table = columns()
    whole = FeaturePipeline.fit(SPEC, part_of(table.combine_chunks()))
    assert FeaturePipeline.fit(SPEC, part_of(cut(table, size))).digest() == whole.digest()
    assert FeaturePipeline.fit(SPEC, part_of(in_dictionaries(table))).digest() == whole.digest()


def test_mean_and_deviation_are_those_of_numpy():
    load = columns().column("load").to_numpy()
    known = load[np.isfinite(load)]
    fitted = FeaturePipeline.fit(SPEC, part_of(cut(columns(), 50))).transforms["load"]
    assert (fitted.mean, fitted.scale) == (float(known.mean()), float(known.std()))


@pytest.mark.parametrize("size", [1, 130, COUNT])
def test_what_is_guessed_is_the_same(size):
    whole = AutoSpec().spec(part_of(columns().combine_chunks()))
    kinds = {feature.name: feature.kind for feature in whole.features}
    assert kinds["gauge"] == "numeric"
    assert kinds["slot"] == "categorical"
    assert "comment" not in kinds
    assert AutoSpec().spec(part_of(cut(columns(), size))) == whole
    dims = replace(AutoSpec(), dims="auto")
    assert dims.spec(part_of(cut(columns(), size))) == dims.spec(part_of(columns()))


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.float64()])
def test_counts_against_a_counter(kind):
    rng = np.random.default_rng(3)
    values = [None if n == 2 else n for n in rng.zipf(1.5, 5000).clip(0, 700).tolist()]
    column = pa.chunked_array([pa.array(values[at : at + 90]) for at in range(0, 5000, 90)])
    counted = count_values(column.cast(kind))
    keys = pa.array(values).cast(kind).cast(counted.schema.field(0).type)
    expected = Counter(keys.drop_null().to_pylist())
    rows = zip(counted["value"].to_pylist(), counted["count"].to_pylist(), strict=True)
    assert dict(rows) == dict(expected)
    assert len(counted) == len(expected)
    most = sorted(expected, key=lambda value: (-expected[value], value))
    assert Vocabulary.fit(column.cast(kind), min_count=1).values.to_pylist() == most
