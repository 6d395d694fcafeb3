"""A pipeline as a whole: what it is fitted on, what it stores, and what it makes of requests."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.leakage import FittedOn
from twotower.data.prepare import TrainingPart
from twotower.data.schema import DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureInput, FeatureSpec, History

SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="age", side="user", kind="numeric"),
        Feature(name="interests", side="user", kind="tags", max_tags=2),
        Feature(name="item_id", side="item", kind="id", min_count=2, dim=8),
        Feature(name="brand", side="item", kind="id"),
        Feature(name="price", side="item", kind="numeric", log=True, column="cost"),
        Feature(name="image", side="item", kind="vector"),
        Feature(name="slot", side="context", kind="categorical", stages=("ranking",)),
        Feature(name="timestamp", side="context", kind="time"),
    ),
    history=History(length=4, features=("item_id", "image")),
)
USERS = {"user_id": ["u", "v"], "age": [20.0, 40.0], "interests": [["a", "b", "c"], ["a"]]}
ITEMS = {
    "item_id": [2**53 + 1, 5, 6],
    "brand": ["x", "y", "x"],
    "cost": [0.0, 2.0, None],
    "image": [[3.0, 4.0], None, [0.0, 1.0]],
}
LOG = {
    "user_id": ["v", "v", "u", "v"],
    "item_id": [5, 2**53 + 1, 5, 2**53 + 1],
    "slot": [1, 2, 2, 3],
    "timestamp": [0, 1, 2, 3],
}


def part_of(users=USERS, items=ITEMS, log=LOG):
    return TrainingPart(
        interactions=pa.table(log),
        users=pa.table(users),
        items=pa.table(items),
        context=("slot",),
        fitted_on=FittedOn.rows(np.arange(4), np.arange(4)),
    )


@pytest.fixture(scope="module")
def pipeline():
    return FeaturePipeline.fit(SPEC, part_of())


@pytest.mark.parametrize(
    ("side", "values"),
    [
        ("user", {"user_id": "v", "age": 30, "interests": ["b", "x", "a"]}),
        ("user", {"age": None, "more": object()}),
        ("item", {"item_id": 5, "brand": "y", "cost": 3.5, "image": [3.0, 4.0]}),
        ("context", {}),
        ("context", {"slot": "2", "timestamp": 3}),
    ],
)
def test_a_row_is_encoded_as_a_table_of_it(pipeline, side, values):
    table = {name: [value] for name, value in values.items() if name != "more"} or {"_": [None]}
    expected = pipeline.encode(side, pa.table(table))
    found = pipeline.encode_row(side, values)
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
        assert found[name].dtype == column.dtype


def test_all_problems_of_a_row_are_named(pipeline):
    with pytest.raises(DataError, match="feature `age` of kind numeric: needs numbers") as caught:
        pipeline.encode_row("user", {"user_id": "u", "age": "old", "interests": 3})
    assert "feature `interests` of kind tags: needs lists or text" in str(caught.value)
    assert len(caught.value.problems) == 2


def test_tables_are_encoded_by_hand(pipeline):
    users = pipeline.encode("user", pa.table(USERS))
    assert {name: column.tolist() for name, column in users.items()} == {
        "user_id": [2, 1],  # v comes three times in the interactions, u once
        "age": [[-1, 0], [1, 0]],
        "interests": [[1, 2], [1, 0]],
    }
    items = pipeline.encode("item", pa.table(ITEMS))
    assert list(items) == ["item_id", "brand", "price", "image"]
    assert items["item_id"].tolist() == [2, 1, 0]  # 6 never comes, 5 comes first among equals
    assert items["brand"].tolist() == [1, 2, 1]  # counted over the items
    assert items["price"].tolist() == [[-1, 0], [1, 0], [0, 1]]  # log 1 and log 3 around their mean
    assert items["image"] == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, 1]]))
    context = pipeline.encode("context", pa.table(LOG))
    assert context["slot"].tolist() == [2, 1, 1, 3]
    assert context["timestamp"].shape == (4, 4)


def test_missing_columns_are_null(pipeline):
    known = pipeline.encode("item", pa.table({"item_id": [5]}))
    nulls = pa.table({name: pa.nulls(1) for name in ITEMS} | {"item_id": [5]})
    asked = pipeline.encode("item", nulls)
    for name, column in known.items():
        assert column.tolist() == asked[name].tolist()
    assert known["price"].tolist() == [[0, 1]]
    assert known["brand"].tolist() == [0]
    assert known["image"].tolist() == [[0, 0]]
    context = pipeline.encode("context", pa.table({"other": [1, 2]}))
    assert context["slot"].tolist() == [0, 0]
    assert context["timestamp"].tolist() == [[0, 0, 0, 0]] * 2
    users = pipeline.encode("user", pa.table({"other": [1]}))
    assert users["interests"].tolist() == [[0, 0]]


def test_rows_are_encoded_one_by_one_as_all_together(pipeline):
    for side, columns in (("user", USERS), ("item", ITEMS), ("context", LOG)):
        table = pa.table(columns)
        whole = pipeline.encode(side, table)
        for row in range(table.num_rows):
            single = pipeline.encode(side, table.slice(row, 1))
            for name, column in whole.items():
                assert single[name].tolist() == column[row : row + 1].tolist()


def test_a_saved_pipeline_encodes_the_same_bytes(pipeline, tmp_path):
    pipeline.save(tmp_path / "features")
    loaded = FeaturePipeline.load(tmp_path / "features")
    assert loaded.spec == pipeline.spec
    assert loaded.fitted_on == pipeline.fitted_on
    assert loaded.digest() == pipeline.digest()
    for side, columns in (("user", USERS), ("item", ITEMS), ("context", LOG)):
        expected = pipeline.encode(side, pa.table(columns))
        found = loaded.encode(side, pa.table(columns))
        assert list(found) == list(expected)
        for name, column in expected.items():
            assert found[name].tobytes() == column.tobytes()
            assert found[name].dtype == column.dtype
    assert loaded.inputs("retrieval") == pipeline.inputs("retrieval")


def test_pipelines_from_before_it_was_told_which_numbers_were_missing(pipeline, tmp_path):
    """Models have read whether they were, of every one of them."""
    pipeline.save(tmp_path)
    document = json.loads((tmp_path / "features.json").read_text())
    assert document["state"]["age"].pop("has_missing") is False
    assert set(document["state"]["price"]) == {"mean", "scale"}
    (tmp_path / "features.json").write_text(json.dumps(document))
    old = FeaturePipeline.load(tmp_path)
    assert all(feature.has_missing for feature in old.inputs("retrieval").features)
    old.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "features.json").read_text()) == document


def test_the_order_of_training_rows_does_not_matter(pipeline):
    backwards = [3, 2, 1, 0]
    log = pa.table(LOG).take(pa.array(backwards)).to_pydict()
    assert FeaturePipeline.fit(SPEC, part_of(log=log)).digest() == pipeline.digest()


def changed(table, column, values):
    return table | {column: values}


@pytest.mark.parametrize(
    "changes",
    [
        {"users": changed(USERS, "age", [20.0, 41.0])},
        {"users": changed(USERS, "interests", [["a", "b", "d"], ["a"]])},
        {"users": changed(USERS, "interests", [["a"], ["a", "b"]])},
        {"items": changed(ITEMS, "brand", ["x", "z", "x"])},
        {"items": changed(ITEMS, "brand", ["y", "x", "y"])},
        {"items": changed(ITEMS, "cost", [0.0, 2.5, None])},
        {"items": changed(ITEMS, "image", [[3.0, 4.0, 0.0], None, [0.0, 1.0, 0.0]])},
        {"log": changed(LOG, "item_id", [5, 5, 5, 2**53 + 1])},
        {"log": changed(LOG, "item_id", [5, 2**53, 5, 2**53])},
        {"log": changed(LOG, "slot", [1, 2, 2, 4])},
        {"log": changed(LOG, "slot", ["1", "2", "2", "3"])},
    ],
)
def test_the_digest_moves_with_anything_that_is_fitted(pipeline, changes):
    assert FeaturePipeline.fit(SPEC, part_of(**changes)).digest() != pipeline.digest()


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, history=History(length=5, features=("item_id", "image"))),
        replace(SPEC, history=History(length=4, features=("item_id",))),
        replace(SPEC, features=SPEC.features[1:]),
        replace(SPEC, features=(replace(SPEC.features[0], dim=4), *SPEC.features[1:])),
    ],
)
def test_the_digest_moves_with_the_spec(pipeline, spec):
    assert FeaturePipeline.fit(spec, part_of()).digest() != pipeline.digest()


def test_a_digest_does_not_run_values_together():
    """Values of one feature that look like the next feature's name."""
    spec = FeatureSpec(
        features=(
            Feature(name="x", side="item", kind="categorical"),
            Feature(name="y", side="item", kind="categorical"),
        ),
        history=History(length=0),
    )
    digests = {
        FeaturePipeline.fit(spec, part_of(items={"x": [x], "y": [y]})).digest()
        for x, y in (("1y2", "3"), ("1", "2y3"), ("12", "3"))
    }
    assert len(digests) == 3


def test_what_the_models_are_given(pipeline):
    def given(name, side, kind, num_rows, width, dim=0, has_missing=True):
        return FeatureInput(
            name=name,
            side=side,
            kind=kind,
            dim=dim,
            num_rows=num_rows,
            width=width,
            has_missing=has_missing,
        )

    retrieval = pipeline.inputs("retrieval")
    assert retrieval.features == (
        given("user_id", "user", "id", 3, 0),
        given("age", "user", "numeric", 0, 2, has_missing=False),  # every user has one
        given("interests", "user", "tags", 4, 2),
        given("item_id", "item", "id", 3, 0, dim=8),
        given("brand", "item", "id", 3, 0),
        given("price", "item", "numeric", 0, 2),
        given("image", "item", "vector", 0, 2),
        given("timestamp", "context", "time", 0, 4),
    )
    assert (retrieval.history_length, retrieval.history_features) == (4, ("item_id", "image"))
    assert retrieval.history_times
    ranking = pipeline.inputs("ranking")
    assert given("slot", "context", "categorical", 4, 0) in ranking.features
    assert len(ranking.features) == 9


def test_encoded_ids_fit_their_tables(pipeline):
    for side, columns in (("user", USERS), ("item", ITEMS), ("context", LOG)):
        encoded = pipeline.encode(side, pa.table(columns))
        for feature in pipeline.inputs("ranking").of(side):
            if feature.num_rows:
                assert encoded[feature.name].max() < feature.num_rows


@pytest.mark.parametrize(
    ("history", "stages"),
    [(History(length=0), ("retrieval", "ranking")), (History(length=4), ("ranking",))],
)
def test_without_history(history, stages):
    first = Feature(name="item_id", side="item", kind="id", stages=stages)
    other = Feature(name="brand", side="item", kind="id")
    fitted = FeaturePipeline.fit(FeatureSpec(features=(first, other), history=history), part_of())
    inputs = fitted.inputs("retrieval")
    assert (inputs.history_length, inputs.history_features) == (0, ())
    assert not inputs.history_times


def test_events_of_a_log_without_times_have_none(pipeline):
    timeless = replace(pipeline, fitted_on=replace(pipeline.fitted_on, last_timestamp=None))
    inputs = timeless.inputs("retrieval")
    assert inputs == replace(pipeline.inputs("retrieval"), history_times=False)


@pytest.mark.parametrize("name", ["mask", "time"])
def test_names_that_a_history_uses_itself(name):
    brand = Feature(name=name, side="item", kind="id", column="brand")
    spec = FeatureSpec(features=(brand,), history=History(features=(name,)))
    with pytest.raises(DataError, match=f"`{name}` cannot describe an event, `history.{name}` is"):
        FeaturePipeline.fit(spec, part_of())


def test_two_features_of_one_column():
    spec = FeatureSpec(
        features=(
            Feature(name="age", side="user", kind="numeric"),
            Feature(name="exact_age", side="user", kind="categorical", column="age"),
        ),
        history=History(length=0),
    )
    encoded = FeaturePipeline.fit(spec, part_of()).encode("user", pa.table(USERS))
    assert encoded["exact_age"].tolist() == [1, 2]
    assert encoded["age"].tolist() == [[-1, 0], [1, 0]]


def test_all_unfit_features_are_named():
    spec = FeatureSpec(
        features=(
            Feature(name="height", side="user", kind="numeric"),
            Feature(name="brand", side="item", kind="numeric"),
            Feature(name="cost", side="item", kind="tags"),
            Feature(name="item_id", side="item", kind="id"),
            Feature(name="mood", side="context", kind="categorical"),
        ),
        history=History(length=3, features=("item_id", "age", "user_id")),
    )
    with pytest.raises(DataError) as caught:
        FeaturePipeline.fit(spec, part_of())
    height, brand, cost, mood, age, user = caught.value.problems
    assert height == (
        "feature `height`: no column `height` on the user side; columns: user_id, age, interests"
    )
    assert brand.startswith(
        "feature `brand` of kind numeric: needs numbers, got a column of type s"
    )
    assert cost.startswith("feature `cost` of kind tags: needs lists or text with separators, got")
    assert mood.endswith("on the context side; columns: user_id, item_id, slot, timestamp")
    assert age == "history: `age` is no item feature; allowed: brand, cost, item_id"
    assert user.startswith("history: `user_id` is no item feature")


def test_a_side_without_a_table():
    part = replace(part_of(), items=None)
    spec = FeatureSpec(features=(Feature(name="brand", side="item", kind="id"),))
    with pytest.raises(DataError, match="no column `brand` on the item side; columns: none"):
        FeaturePipeline.fit(replace(spec, history=History(length=0)), part)


def test_all_values_that_cannot_be_encoded_are_named(pipeline):
    table = pa.table({"item_id": ["abc"], "cost": ["much"], "image": [[1.0]], "brand": ["x"]})
    with pytest.raises(DataError) as caught:
        pipeline.encode("item", table)
    ids, price, image = caught.value.problems
    assert ids.startswith("feature `item_id` of kind id: ")
    assert "'abc'" in ids
    assert price.startswith(
        "feature `price` of kind numeric: needs numbers, got a column of type s"
    )
    assert image == (
        "feature `image` of kind vector: vectors must have 2 numbers, as in the training part; "
        "row 1 has 1 (1 such rows)"
    )
