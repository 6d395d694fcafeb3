"""What stands on the command line, as a search space."""

import pytest

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from twotower.cli.sweep_space import read_space, short_names
from twotower.config import ConfigError, compose


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=interval(0.1,2)", FloatDistribution(0.1, 2.0)),
        ("x=interval(-1,2)", FloatDistribution(-1.0, 2.0)),
        ("x=int(interval(2,9))", IntDistribution(2, 9)),
        ("x=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1.0, log=True)),
        ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=range(1,10,3)", IntDistribution(1, 7, step=3)),  # 1, 4, 7
        ("x=range(10,1,-3)", IntDistribution(4, 10, step=3)),  # 10, 7, 4
        ("x=range(0.0,1.0,0.5)", CategoricalDistribution(["0.0", "0.5"])),
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=1,null", CategoricalDistribution(["1", "null"])),
        ("x=[64],[128,64]", CategoricalDistribution(["[64]", "[128,64]"])),
    ],
)
def test_kinds(text, expected):
    space = read_space([text])
    assert space.distributions == {"x": expected}
    assert space.searched == {"x": text[2:]}
    assert space.fixed == ()


def test_fixed_and_searched_are_told_apart():
    space = read_space(["a=1", "b=2,3", "+c=[4]", "d=interval(0,1)"])
    assert space.fixed == ("a=1", "+c=[4]")
    assert space.overrides({"d": 0, "b": "3"}) == ["a=1", "+c=[4]", "b=3", "d=0"]


def test_the_later_of_two_holds():
    space = read_space(["a=1,2", "b=1,2", "a=5", "b=6,7"])
    assert space.fixed == ("a=5",)
    assert space.distributions == {"b": CategoricalDistribution(["6", "7"])}


def test_choices_of_any_kind_reach_the_config():
    hidden = "models.retrieval.hidden=[64],[128,64]"
    space = read_space([hidden, "losses/retrieval=bpr,full_softmax", "seed=3,4"])
    [texts] = [space.distributions[key].choices for key in ["models.retrieval.hidden"]]
    values = {"models.retrieval.hidden": texts[1], "losses/retrieval": "bpr", "seed": "4"}
    config = compose("train", space.overrides(values))
    assert list(config.models.retrieval.hidden) == [128, 64]
    assert config.losses.retrieval._target_ == "twotower.losses.objective.Objective"
    assert config.losses.retrieval.loss._target_ == "twotower.losses.pairwise.BPR"
    assert config.seed == 4


@given(st.floats(1e-300, 1e300) | st.floats(-1e300, -1e-300) | st.integers())
def test_every_number_is_read_back_as_it_is(number):
    space = read_space(["x=interval(0,1)"])
    (text,) = space.overrides({"x": number})
    assert OverridesParser.create().parse_override(text).value() == number


def test_numbers_are_shown_as_numbers():
    space = read_space(["a.x=8,16", "b.x=8,all", "c=interval(0,1)", "d=tag(log,interval(1.0,2))"])
    shown = space.shown({"b.x": "8", "a.x": "16", "c": 1, "d": 1.5})
    assert shown == {"a.x": 16.0, "b.x": "8", "c": 1.0, "d": 1.5}
    assert [type(shown[name]) for name in ("a.x", "b.x")] == [float, str]


def test_names_are_as_short_as_can_be():
    keys = ["loss.rate", "a.b.dropout", "c.b.dropout", "rate", "+c.size"]
    assert short_names(keys) == ["loss.rate", "a.b.dropout", "c.b.dropout", "rate", "size"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x=1"], "nothing to search: give a key several values"),
        (["x=interval(2,1)"], "`x=interval(2,1)`: the interval must end above its begin, got 2"),
        (["x=interval(1,1)"], "must end above its begin, got 1.0 and 1.0"),
        (["x=tag(log,interval(0,1))"], "with the tag log must begin above 0, got 0"),
        (["x=tag(lgo,interval(1,2))"], "the tag must be log, got lgo"),
        (["x=choice(1)"], "at least two values are needed, got 1"),
        (["x=range(5,5)"], "at least two values are needed, got none"),
        (["x=1,2,1"], "a value stands there twice: 1"),
        (["stages=[retrieval],[ranking]"], "must be the same in all trials"),
        (["data.num_users=1,2"], "`data.num_users=1,2`: must be the same in all trials"),
        (["data=tables,synthetic"], "must be the same in all trials"),
        (["training.ranking.monitor=auc,log_loss"], "must be the same in all trials"),
    ],
)
def test_wrong_spaces(texts, message):
    with pytest.raises(ConfigError) as caught:
        read_space(texts)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read_space(["x=interval(2,1)", "name=a,b", "y=1,1"])
    assert len(caught.value.problems) == 3
