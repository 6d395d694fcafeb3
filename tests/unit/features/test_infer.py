"""What is guessed from columns: the kind of every Arrow type, and what is left out and why."""

import datetime
import logging
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.leakage import FittedOn
from twotower.data.prepare import TrainingPart
from twotower.features.column_facts import is_binary
from twotower.features.infer import AutoSpec, GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History

DAY = datetime.date(2024, 1, 1)
LOG = {"user_id": [1, 2], "item_id": [5, 6], "timestamp": [0, 1]}


def part_of(*, users=None, items=None, log=None, context=()):
    log = pa.table(log or LOG)
    return TrainingPart(
        interactions=log,
        users=pa.table({"user_id": [1, 2]} | (users or {})),
        items=pa.table({"item_id": [5, 6]} | (items or {})),
        context=context,
        fitted_on=FittedOn.rows(np.arange(log.num_rows), None),
    )


def kind_of(values):
    """Kind that a column of an items table is given, None when it is left out."""
    table = {"item_id": list(range(len(values))), "x": values}
    part = part_of()
    part = TrainingPart(
        interactions=part.interactions,
        users=None,
        items=pa.table(table),
        context=(),
        fitted_on=part.fitted_on,
    )
    spec = AutoSpec(time=False).spec(part)
    FeaturePipeline.fit(spec, part).encode("item", part.items)  # what is guessed can be encoded
    return {feature.name: feature.kind for feature in spec.features}.get("x")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([True, False]), "categorical"),
        (pa.array([1, 2], pa.int8()), "categorical"),
        (pa.array([1, 2], pa.uint32()), "categorical"),
        (pa.array([1, None], pa.int64()), "categorical"),
        (pa.array(["a", "b"]), "categorical"),
        (pa.array(["a", "b"], pa.large_string()), "categorical"),
        (pa.array(["a", "b"], pa.string_view()), "categorical"),
        (pa.array(["a", "b"]).dictionary_encode(), "categorical"),
        (pa.array([1, 2]).dictionary_encode(), "categorical"),
        (pa.array([1.5, 2.5]), "numeric"),
        (pa.array([1.5, 2.5], pa.float16()), "numeric"),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), "numeric"),
        (pa.array([DAY, None]), "numeric"),
        (pa.array([DAY], pa.date64()), "numeric"),
        (pa.array([0], pa.timestamp("ns", "UTC")), "numeric"),
        (pa.array([0], pa.time32("s")), "numeric"),
        (pa.array([0], pa.duration("ms")), "numeric"),
        (pa.array(["a|b", "a"]), "tags"),
        (pa.array(["a|b", "a"], pa.large_string()), "tags"),
        (pa.array(["a|b", "a"]).dictionary_encode(), "tags"),
        (pa.array([["a", "b"], []]), "tags"),
        (pa.array([["a"]], pa.large_list(pa.string())), "tags"),
        (pa.array([[1, 2]]), "tags"),
        (pa.array([[1.0, 2.0]]), "vector"),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), "vector"),
        (pa.array([[1.0]], pa.large_list(pa.float16())), "vector"),
        (pa.array([b"a"]), None),
        (pa.array([b"a"], pa.binary(1)), None),
        (pa.array([{"a": 1}]), None),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), None),
        (pa.array([[{"a": 1}]]), None),
        (pa.array([[["a"]]]), None),
        (pa.array([["a"]], pa.list_view(pa.string())), None),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), None),
        (pa.nulls(2), None),
        (pa.array([None, None], pa.float64()), None),
        (pa.array([None], pa.list_(pa.float32())), None),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_the_kind_of_every_type(values, kind, caplog):
    with caplog.at_level(logging.WARNING):
        assert kind_of(values) == kind
    assert ("Column `x` (item side" in caplog.text) == (kind is None)


def test_many_integers_are_a_number():
    assert kind_of(pa.array(np.arange(100))) == "categorical"
    assert kind_of(pa.array(np.arange(101))) == "numeric"
    assert kind_of(pa.array(np.arange(101) + 2**60)) == "numeric"


def test_free_text_is_left_out_and_it_is_said(caplog):
    titles = [f"The film {k}" for k in range(60)]
    with caplog.at_level(logging.WARNING):
        assert kind_of(pa.array(titles)) is None
    assert (
        "Column `x` (item side, string) is no feature: nearly every value is different. Declare it "
        "in a feature spec to use it"
    ) in caplog.text
    assert kind_of(pa.array(titles[:50])) == "categorical"  # 50 values are few
    assert kind_of(pa.array(titles * 2)) == "categorical"  # half of them are different
    assert kind_of(pa.array([*titles, *titles[:59]])) is None  # a little more than half
    assert kind_of(pa.array([*titles, *([None] * 60)])) is None  # nulls do not count
    assert kind_of(pa.array(titles).dictionary_encode()) is None


def test_text_is_tags_where_a_tenth_holds_the_separator():
    assert kind_of(pa.array(["a|b"] + ["a"] * 9)) == "tags"
    assert kind_of(pa.array(["a|b"] + ["a"] * 10)) == "categorical"
    assert kind_of(pa.array(["a|b"] + ["a"] * 9 + [None] * 10)) == "tags"


def test_the_order_and_options_of_a_spec(caplog):
    part = part_of(
        users={"age": [20.0, 30.0]},
        items={"genres": ["a|b", "c"], "image": [[1.0], [2.0]]},
        log=LOG | {"position": [1, 2], "device": ["a", "b"], "dwell": [3.0, 4.0]},
        context=("position", "device"),
    )
    with caplog.at_level(logging.WARNING):
        spec = AutoSpec(history_length=5, min_count=3).spec(part)
    assert spec == FeatureSpec(
        features=(
            Feature(name="user_id", side="user", kind="id", min_count=3),
            Feature(name="age", side="user", kind="numeric"),
            Feature(name="item_id", side="item", kind="id", min_count=3),
            Feature(name="genres", side="item", kind="tags"),
            Feature(name="image", side="item", kind="vector"),
            Feature(name="position", side="context", kind="categorical", stages=("ranking",)),
            Feature(name="device", side="context", kind="categorical"),
            Feature(name="timestamp", side="context", kind="time"),
        ),
        history=History(length=5, features=("item_id", "image")),
    )
    assert len(caplog.records) == 1
    assert "Column `dwell` of the interactions is no feature: nobody said" in caplog.text


def test_no_column_of_the_log_is_a_feature_unless_declared():
    log = LOG | {"label": [0.0, 1.0], "weight": [1.0, 1.0], "split": [0, 1], "dwell": [3.0, 4.0]}
    names = {feature.name for feature in AutoSpec().spec(part_of(log=log)).features}
    assert names == {"user_id", "item_id", "timestamp"}


def test_positions_are_slots_even_if_there_are_many():
    count = 200
    log = {"user_id": [1] * count, "item_id": [5] * count, "position": list(range(count))}
    position = AutoSpec().spec(part_of(log=log, context=("position",))).features[-1]
    assert (position.kind, position.stages) == ("categorical", ("ranking",))


def test_what_is_excluded_is_no_feature(caplog):
    part = part_of(items={"brand": ["a", "b"], "image": [[1.0], [2.0]]}, log=LOG | {"x": [1, 2]})
    with caplog.at_level(logging.WARNING):
        spec = AutoSpec(exclude=["brand", "item_id", "x"], time=False).spec(part)
    assert [feature.name for feature in spec.features] == ["user_id", "image"]
    assert spec.history.features == ("image",)
    assert caplog.text == ""
    FeaturePipeline.fit(spec, part)


def test_the_time_may_be_excluded():
    for options in ({"exclude": ["timestamp"]}, {"time": False}):
        names = [feature.name for feature in AutoSpec(**options).spec(part_of()).features]
        assert names == ["user_id", "item_id"]
    declared = part_of(log=LOG | {"device": ["a", "b"]}, context=("timestamp", "device"))
    names = [feature.name for feature in AutoSpec().spec(declared).features]
    assert names == ["user_id", "item_id", "device", "timestamp"]


def test_what_the_ranker_does_not_see():
    features = AutoSpec(retrieval_only=["user_id"]).spec(part_of()).features
    stages = {feature.name: feature.stages for feature in features}
    both = ("retrieval", "ranking")
    assert stages == {"user_id": ("retrieval",), "item_id": both, "timestamp": both}


class TestDims:
    """Of 16 genres every second one is seen once; 6 * 16^(1/4) = 12, 6 * 8^(1/4) = 10.09."""

    def part(self):
        genres = [f"g{n % 16}" for n in range(24)]
        log = {"user_id": [1] * 24, "item_id": list(range(24)), "timestamp": list(range(24))}
        items = {"item_id": list(range(24)), "genre": genres, "price": [1.5] * 24}
        return replace(part_of(log=log), users=None, items=pa.table(items))

    def dims(self, **given):
        return {f.name: f.dim for f in AutoSpec(**given).spec(self.part()).features}

    def test_of_some_features(self):
        widths = {"item_id": 64, "genre": "auto"}
        expected = {"item_id": 64, "genre": 12, "price": 0, "timestamp": 0}
        assert self.dims(dims=widths) == expected

    def test_of_all_that_have_a_table(self):
        """24 items: 6 * 24^(1/4) = 13.28."""
        assert self.dims(dims="auto") == {"item_id": 13, "genre": 12, "price": 0, "timestamp": 0}

    def test_only_values_with_a_row_of_their_own_count(self):
        """No item is seen twice: 6 * 0 is no width, one is left."""
        assert self.dims(dims={"item_id": "auto"}, min_count=2)["item_id"] == 1

    def test_none_by_default(self):
        assert set(self.dims().values()) == {0}

    @pytest.mark.parametrize(
        ("widths", "message"),
        [
            ({"gerne": 4}, "there is no feature `gerne`; features: item_id, genre, price"),
            ({"price": "auto"}, "auto does nothing for `price` of kind numeric; allowed for id, "),
            ({"price": 4}, "feature `price`: `dim` does nothing for kind numeric"),
            ({"genre": -1}, "feature `genre`: `dim` must be at least 0, got -1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, widths, message):
        with pytest.raises(ValueError, match=message):
            self.dims(dims=widths)

    def test_they_reach_the_models(self):
        part = self.part()
        factory = PipelineFactory(provider=AutoSpec(dims={"genre": 7}))
        inputs = factory.fit(part).inputs("ranking")
        assert {f.name: f.dim for f in inputs.features}["genre"] == 7


def test_a_misspelt_column_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        AutoSpec(exclude=["brnd", "timestamp"], retrieval_only=["userid"]).spec(part_of())
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " there is no column `brnd`",
        " there is no column `userid`",
    ]


def test_without_an_id_or_a_vector_there_is_no_history():
    part = part_of(items={"brand": ["a", "b"]})
    spec = AutoSpec(exclude=["item_id"]).spec(part)
    inputs = FeaturePipeline.fit(spec, part).inputs("retrieval")
    assert (inputs.history_length, inputs.history_features) == (0, ())


def test_history_features_may_be_asked_for():
    part = part_of(items={"brand": ["a", "b"]})
    spec = AutoSpec(history_features=["brand"], history_length=2).spec(part)
    assert spec.history == History(length=2, features=("brand",))


@pytest.mark.parametrize("missing", ["users", "items"])
def test_a_log_without_users_or_items_has_no_history(missing):
    part = part_of()
    part = TrainingPart(
        **({f: getattr(part, f) for f in part.__dataclass_fields__} | {missing: None})
    )
    assert AutoSpec().spec(part).history.length == 0


def test_history_of_no_length():
    assert AutoSpec(history_length=0).spec(part_of()).history.length == 0


def test_a_name_on_two_sides_gets_its_side_in_front():
    part = part_of(
        users={"country": ["DE", "FR"], "item_id": [5, 5], "timestamp": [1, 2]},
        items={"country": ["KE", "SE"]},
        log=LOG | {"country": ["x", "y"]},
        context=("country",),
    )
    spec = AutoSpec().spec(part)
    assert {f.name: (f.side, f.source_column) for f in spec.features} == {
        "user_id": ("user", "user_id"),
        "user_country": ("user", "country"),
        "user_item_id": ("user", "item_id"),
        "user_timestamp": ("user", "timestamp"),
        "item_id": ("item", "item_id"),
        "item_country": ("item", "country"),
        "context_country": ("context", "country"),
        "timestamp": ("context", "timestamp"),
    }
    encoded = FeaturePipeline.fit(spec, part).encode("item", part.items)
    assert encoded["item_country"].tolist() == [1, 2]


def test_a_name_that_means_something_else_gets_its_side_in_front(tmp_path):
    part = part_of(items={"labels": ["a", "b"], "history.mask": ["a", "b"], "a/b": ["a", "b"]})
    spec = AutoSpec(time=False).spec(part)
    names = {f.name: f.source_column for f in spec.features if f.side == "item"}
    assert names == {
        "item_id": "item_id",
        "item_labels": "labels",
        "item_history.mask": "history.mask",
        "a_b": "a/b",
    }
    FeaturePipeline.fit(spec, part).save(tmp_path)
    assert FeaturePipeline.load(tmp_path).spec == spec


def test_a_table_without_features():
    part = TrainingPart(
        interactions=pa.table({"label": [0.0, 1.0]}),
        users=None,
        items=None,
        context=(),
        fitted_on=FittedOn.rows(np.arange(2), None),
    )
    with pytest.raises(ValueError, match="there is no feature; at least one is needed"):
        AutoSpec().spec(part)


def test_fingerprints_move_with_options():
    given = FeatureSpec(features=(Feature(name="a", side="item", kind="id"),))
    other = FeatureSpec(features=(Feature(name="a", side="item", kind="id", dim=2),))
    providers = [
        AutoSpec(),
        AutoSpec(history_length=3),
        AutoSpec(history_features=["a"]),
        AutoSpec(min_count=2),
        AutoSpec(time=False),
        AutoSpec(exclude=["a"]),
        GivenSpec(given=given),
        GivenSpec(given=other),
    ]
    prints = [PipelineFactory(provider=provider).fingerprint() for provider in providers]
    assert len(set(prints)) == len(prints)
    assert AutoSpec(exclude=("a",)).fingerprint() == AutoSpec(exclude=["a"]).fingerprint()


def test_a_given_spec_is_used_as_it_is():
    spec = FeatureSpec(
        features=(Feature(name="item_id", side="item", kind="id"),), history=History(length=0)
    )
    part = part_of(items={"brand": ["a", "b"]})
    fitted = PipelineFactory(provider=GivenSpec(given=spec)).fit(part)
    assert fitted.spec == spec
    assert fitted.fitted_on == part.fitted_on


@pytest.mark.parametrize(
    ("values", "is_asked"),
    [
        ([0, 1, 1, None], True),
        ([True, False, True, True], True),
        ([0.0, 1.0, 0.0, 0.0], True),
        ([1, 1, 1, 1], False),
        ([0, 1, 2, 1], False),
        (["0", "1", "0", "1"], False),
    ],
)
def test_a_column_that_could_be_the_label_is_asked_about(values, is_asked):
    assert is_binary(pa.chunked_array([values[:2], values[2:]])) == is_asked
    assert is_binary(pa.chunked_array([values]).dictionary_encode()) == is_asked


def test_a_log_with_clicks_and_no_label_is_asked_about(caplog):
    """Else every impression counts as a positive, and the advice to add it to the context leaks."""
    log = LOG | {"clicked?": [0, 1], "seconds": [3, 9]}
    with caplog.at_level(logging.WARNING):
        AutoSpec().spec(part_of(log=log))
        AutoSpec().spec(part_of(log=log | {"label": [1.0, 0.0]}))
    asked, plain, *with_label = [record.getMessage() for record in caplog.records]
    assert "`clicked?` of the interactions is 0 or 1, and no label is declared" in asked
    assert "say data.label.column=clicked?;" in asked
    assert "`seconds` of the interactions is no feature: nobody said" in plain
    assert all("no label is declared" not in text for text in with_label)
    assert len(with_label) == 2
