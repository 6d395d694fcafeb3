"""Features with which the models of an earlier run go on."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.leakage import FittedOn
from twotower.data.schema import DataError
from twotower.data.training_part import TrainingPart
from twotower.features import one_row
from twotower.features.continuation import Continuation, translated
from twotower.features.infer import AutoSpec, GivenSpec
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History

SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="item_id", side="item", kind="id"),
        Feature(name="price", side="item", kind="numeric"),
        Feature(name="tags", side="item", kind="tags"),
        Feature(name="image", side="item", kind="vector"),
        Feature(name="device", side="context", kind="categorical"),
    ),
    history=History(length=3),
)


def part(users, items, price, tags, device, image=(1.0, 0.0), **more):
    return TrainingPart(
        interactions=pa.table({"user_id": users, "item_id": items, "device": device}),
        users=pa.table({"user_id": sorted(set(users))}),
        items=pa.table(
            {
                "item_id": items,
                "price": price,
                "tags": tags,
                "image": [list(image)] * len(items),
                **more,
            }
        ),
        context=("device",),
        fitted_on=FittedOn.rows(np.arange(len(users)), np.arange(len(users))),
    )


OLD = part(["u", "v"], ["a", "b"], [1.0, 3.0], [["x"], ["x", "y"]], ["web", "app"])
NEW = part(["v", "w"], ["b", "c"], [5.0, 7.0], [["z"], ["x", "y", "z"]], ["tv", "app"])


@pytest.fixture(scope="module")
def before():
    return FeaturePipeline.fit(SPEC, OLD)


def fit(before, window=NEW, *, spec=SPEC, evict=False):
    return Continuation(provider=GivenSpec(given=spec), before=before, evict=evict).fit(window)


def test_what_was_known_is_encoded_as_before(before):
    later = fit(before)
    table = OLD.items
    for side, table in (("user", OLD.users), ("item", OLD.items), ("context", OLD.interactions)):
        old, new = before.encode(side, table), later.encode(side, table)
        for name, values in old.items():
            width = values.shape[1] if name == "tags" else None
            np.testing.assert_array_equal(new[name][:, :width] if width else new[name], values)
    new = later.encode("item", NEW.items)
    assert new["item_id"].tolist() == [2, 3]
    assert new["tags"].tolist() == [[3, 0, 0], [1, 2, 3]]
    assert new["price"][:, 0].tolist() == [3.0, 5.0]  # by the old mean 2 and deviation 1
    assert later.fitted_on == NEW.fitted_on


def test_ids_that_vanished_give_up_their_rows(before):
    later = fit(before, evict=True)
    assert later.encode("item", OLD.items)["item_id"].tolist() == [0, 2]
    assert later.encode("item", NEW.items)["item_id"].tolist() == [2, 1]
    # Categories stay: only ids come and go.
    assert (later.encode("context", OLD.interactions)["device"] > 0).all()


def test_round_trip_with_empty_rows(before, tmp_path, monkeypatch):
    alone = part(["v"], ["b"], [5.0], [["z"]], ["tv"])
    later = fit(before, alone, evict=True)
    later.save(tmp_path)
    read = FeaturePipeline.load(tmp_path)
    assert read.digest() == later.digest() != before.digest()
    for limit in (0, 1000):  # long vocabularies are looked up otherwise
        monkeypatch.setattr(one_row, "SMALL_VOCABULARY", limit)
        fresh = FeaturePipeline.load(tmp_path)
        rows = [fresh.encode_row("item", {"item_id": i})["item_id"].tolist() for i in ("a", "b")]
        assert rows == [[0], [2]]
        assert fresh.encode_row("item", {"item_id": None})["item_id"].tolist() == [0]


def test_a_feature_that_differs_is_named(before):
    features = [replace(f, kind="categorical") if f.name == "user_id" else f for f in SPEC.features]
    features = [f for f in features if f.name != "price"]
    features.append(Feature(name="brand", side="item", kind="categorical"))
    with pytest.raises(DataError) as caught:
        fit(before, spec=FeatureSpec(features=tuple(features), history=History(length=9)))
    assert [str(problem) for problem in caught.value.problems] == [
        "warm_start: feature `brand`: the run lacks it",
        "warm_start: feature `price`: only the run has it",
        "warm_start: feature `user_id`: `kind` is 'categorical', the run has 'id'",
        "warm_start: history: length 9 of item_id, the run has length 3 of item_id",
    ]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (part([1, 2], ["b", "c"], [5.0, 7.0], [["z"], []], ["tv", "app"]), "`user_id`: .*string, "),
        (
            part(["v"], ["b"], [5.0], [["z"]], ["tv"], image=(1.0, 2.0, 3.0)),
            "`image`: vectors of 3 numbers, the run that is gone on from has 2",
        ),
        (
            replace(NEW, items=NEW.items.drop_columns(["price"])),
            "feature `price`: no column `price`",
        ),
    ],
)
def test_a_window_that_does_not_fit(before, window, message):
    with pytest.raises(DataError, match=message):
        fit(before, window)


def test_numbers_of_which_none_was_missing_before(before, caplog):
    """The models have no weight that says that one is."""
    window = part(["v", "w"], ["b", "c"], [5.0, None], [["z"], ["x"]], ["tv", "app"])
    with caplog.at_level(logging.WARNING):
        fit(before)
        assert not caplog.records
        found = fit(before, window)
    (warning,) = caplog.messages
    assert "values of `price` are missing" in warning
    assert found.transforms["price"] == before.transforms["price"]


def test_an_inferred_spec_gives_way(before, caplog):
    window = part(["v"], ["b"], [5.0], [["z"]], ["tv"], colour=["red"])
    provider = AutoSpec(history_length=3, time=False)
    with caplog.at_level(logging.WARNING):
        later = Continuation(provider=provider, before=before).fit(window)
    assert later.spec == SPEC
    assert "`colour` is new" in caplog.text
    with pytest.raises(DataError, match="history: length 5"):
        Continuation(provider=AutoSpec(history_length=5), before=before).fit(window)


def test_translation_gives_what_the_other_pipeline_encodes(before):
    later = fit(before, evict=True)
    for side, table in (("user", NEW.users), ("item", NEW.items), ("context", NEW.interactions)):
        expected = before.encode(side, table)
        for name, values in translated(later.encode(side, table), later, before).items():
            if name == "tags":  # unknown tags stay as empty places
                assert [sorted(r[r > 0]) for r in values] == [
                    sorted(r[r > 0]) for r in expected[name]
                ]
            else:
                np.testing.assert_allclose(values, expected[name])


def test_the_fingerprint_depends_on_all():
    first, second = FeaturePipeline.fit(SPEC, OLD), FeaturePipeline.fit(SPEC, NEW)
    provider = GivenSpec(given=SPEC)
    prints = [
        Continuation(provider=provider, before=before, evict=evict).fingerprint()
        for before in (first, second)
        for evict in (False, True)
    ]
    assert len(set(prints)) == 4
