"""The feature spec as a person writes it: what is read, what comes back, what is refused."""

import pytest

from twotower.features.spec import (
    Feature,
    FeatureInput,
    FeatureSpec,
    History,
    ModelInputs,
    is_feature_name,
    spec_from_dict,
)

ID = {"name": "item_id", "side": "item", "kind": "id"}
SPEC = FeatureSpec(
    features=(
        Feature(name="item_id", side="item", kind="id", dim=16, min_count=3),
        Feature(name="price", side="item", kind="numeric", log=True, column="cost"),
        Feature(name="tags", side="item", kind="tags", separator=",", max_tags=3),
        Feature(name="slot", side="context", kind="categorical", stages=("ranking",)),
    ),
    history=History(length=7, features=("item_id", "price")),
)


def test_a_spec_comes_back():
    assert spec_from_dict(SPEC.to_dict()) == SPEC


def test_the_form_of_the_file_holds_what_was_said():
    assert SPEC.to_dict() == {
        "version": 1,
        "features": [
            {"name": "item_id", "side": "item", "kind": "id", "dim": 16, "min_count": 3},
            {"name": "price", "side": "item", "kind": "numeric", "log": True, "column": "cost"},
            {"name": "tags", "side": "item", "kind": "tags", "separator": ",", "max_tags": 3},
            {"name": "slot", "side": "context", "kind": "categorical", "stages": ["ranking"]},
        ],
        "history": {"length": 7, "features": ["item_id", "price"]},
    }


def test_what_is_not_said_has_its_default():
    spec = spec_from_dict({"features": [ID]})
    assert spec == FeatureSpec(features=(Feature(name="item_id", side="item", kind="id"),))
    assert spec.history == History(length=20, features=("item_id",))
    assert spec_from_dict({"features": [ID], "history": None}) == spec


def test_the_column_is_the_name_unless_it_is_given():
    assert [feature.source_column for feature in SPEC.features] == [
        "item_id",
        "cost",
        "tags",
        "slot",
    ]


def test_all_problems_come_at_once():
    document = {
        "version": 2,
        "feature": [],
        "features": [
            {"name": "a", "side": "users", "kind": "text"},
            {"name": "b", "side": "user", "kind": "id", "size": 3, "dim": "8"},
            {"side": "user"},
            "c",
            ID,
            ID,
            {"name": "d", "side": "user", "kind": "id", "dim": True, "stages": "ranking"},
        ],
        "history": {"length": 2.0, "items": []},
    }
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        spec_from_dict(document)
    options = "name, side, kind, column, dim, min_count, stages, log, separator, max_tags"
    assert str(caught.value).splitlines() == [
        "feature spec: unknown key `feature`; allowed: version, features, history",
        "feature spec: version 2, this release reads 1",
        "feature 1: feature `a`: `side` must be one of user, item, context, got 'users'",
        "feature 1: feature `a`: `kind` must be one of id, categorical, tags, numeric, vector, "
        "time, got 'text'",
        f"feature 2: unknown key `size`; allowed: {options}",
        "feature 2: `dim` must be of type int, got '8'",
        "feature 3: `name` is missing",
        "feature 3: `kind` is missing",
        "feature 4: must be keys with values, got 'c'",
        "feature 7: `dim` must be of type int, got True",
        "feature 7: `stages` must be of type list, got 'ranking'",
        "history: unknown key `items`; allowed: length, features",
        "history: `length` must be of type int, got 2.0",
        "feature spec: the name `item_id` is used more than once",
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "there is no feature; at least one is needed"),
        ({"features": []}, "there is no feature"),
        ({"features": ID}, "`features` must be a list, got {'name'"),
        ({"features": 5}, "`features` must be a list, got 5"),
        ({"features": [None]}, "feature 1: must be keys with values, got None"),
        ({"features": [ID], "history": [1]}, r"history: must be keys with values, got \[1\]"),
        ({"features": [ID | {"column": None}]}, "`column` must be of type str, got None"),
        ({"features": [ID], "history": {"length": -1}}, "history: .* at least 0, got -1"),
    ],
)
def test_other_documents_are_refused(document, message):
    with pytest.raises(ValueError, match=message):
        spec_from_dict(document)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("serving",)}, "`stages` must be one of retrieval, ranking, got 'serving'"),
        ({"stages": ()}, "`stages` must name at least one of retrieval, ranking"),
        ({"dim": -1}, "`dim` must be at least 0, got -1"),
        ({"min_count": 0}, "`min_count` must be at least 1, got 0"),
        ({"kind": "tags", "max_tags": 0}, "`max_tags` must be at least 1, got 0"),
        ({"log": True}, "`log` does nothing for kind id; allowed for numeric"),
        ({"separator": ","}, "`separator` does nothing for kind id; allowed for tags"),
        ({"kind": "vector", "min_count": 2}, "`min_count` does nothing for kind vector"),
        ({"kind": "numeric", "dim": 4}, "for kind numeric; allowed for id, categorical, tags, vec"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=f"feature `x`: .*{message}"):
        Feature(**({"name": "x", "side": "item", "kind": "id"} | options))


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "labels", "weights", "user_rows", "item_rows", "retrieval_score", "history.mask"],
)
def test_names_that_a_batch_or_a_file_cannot_have_are_refused(name):
    assert not is_feature_name(name)
    with pytest.raises(ValueError, match="a name must not be empty, hold `/`, begin with `history"):
        Feature(name=name, side="item", kind="id")
    other = Feature(name="other", side="item", kind="id", column=name)
    assert other.source_column == (name or "other")


def test_names_may_be_unusual():
    for name in ("history", "a.b", "ü x", "label", "type", "table"):
        assert Feature(name=name, side="item", kind="id").name == name


def test_a_name_stands_for_one_feature():
    twice = tuple(Feature(name="age", side=side, kind="numeric") for side in ("user", "item"))
    with pytest.raises(ValueError, match="the name `age` is used more than once"):
        FeatureSpec(features=twice)


def test_inputs_by_side():
    features = tuple(
        FeatureInput(name=name, side=side, kind="id", dim=0, num_rows=3, width=0)
        for name, side in (("a", "user"), ("b", "item"), ("c", "context"), ("d", "item"))
    )
    inputs = ModelInputs(features=features, history_length=2, history_features=("d",))
    assert [f.name for f in inputs.of("item")] == ["b", "d"]
    assert [f.name for f in inputs.of("user", "context")] == ["a", "c"]
    assert [f.name for f in inputs.history()] == ["d"]
