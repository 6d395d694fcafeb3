"""Configs: composing, checking against signatures, building."""

import functools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from twotower import config, config_targets
from twotower.config import ConfigError, build, check, compose, config_dir, run_dir
from twotower.config_compose import first_values, with_params

# Classes that configs of these tests name; they must live under `twotower.` to be allowed.
PLANTED = """
from __future__ import annotations
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

class Pooling(Protocol):
    def pool(self, values): ...

class MeanPooling:
    def __init__(self, *, num_recent: int = 3) -> None:
        self.num_recent = num_recent

class Base: ...

class Child(Base):
    def __init__(self, *, size: int) -> None:
        if size < 1:
            raise ValueError(f"`size` must be positive, got {size}")
        self.size = size

@dataclass(frozen=True, kw_only=True)
class Loss:
    temperature: float
    kind: Literal["cosine", "dot"] = "dot"
    weights: Sequence[float] = ()

class Model:
    def __init__(
        self, *, inputs: object, dim: int, loss: Loss | None = None, base: Base | None = None,
        pooling: Pooling | None = None, hidden: list[int] | None = None, name: str = "",
        scale: float = 1.0, bias: bool = False, make: Callable[[int], Base] | None = None,
        table: Mapping[str, int] | None = None, pair: tuple[int, str] | None = None,
        spread: tuple[float, ...] = (),
    ) -> None:
        self.__dict__.update(locals())

def make_child(size: int) -> Child:
    return Child(size=size)

def make_loss() -> Loss:
    return Loss(temperature=1.0)

class Swallows:
    def __init__(self, **kwargs): ...

class Unresolved:
    def __init__(self, *, size: Nowhere) -> None: ...
"""


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    module = types.ModuleType("twotower.planted")
    monkeypatch.setitem(sys.modules, "twotower.planted", module)
    functions = (*config_targets.OWN_FUNCTIONS, "twotower.planted.")
    monkeypatch.setattr(config_targets, "OWN_FUNCTIONS", functions)
    exec(compile(PLANTED, "planted.py", "exec"), vars(module))
    return module


def node(target, /, **keys):
    return {"_target_": f"twotower.planted.{target}", **keys}


def problems_of(tree, runtime=("inputs",)):
    with pytest.raises(ConfigError) as caught:
        check(OmegaConf.create(tree), runtime)
    return list(caught.value.problems)


def accepts(**keys):
    check(OmegaConf.create({"models": node("Model", dim=4, **keys)}), {"inputs"})


def refuses(**keys):
    return problems_of({"models": node("Model", **{"dim": 4, **keys})})


class TestCheck:
    def test_misspelt_key_is_named_with_the_closest_valid_one(self):
        tree = {"losses": {"retrieval": node("Loss", temperature=0.1, temprature=0.2)}}
        assert problems_of(tree) == [
            "`losses.retrieval.temprature`: unknown, did you mean `temperature`; "
            "valid: kind, temperature, weights"
        ]

    def test_missing_argument(self):
        (problem,) = problems_of({"models": node("Model")})
        assert problem == "`models.dim`: missing, `twotower.planted.Model` needs it"

    def test_arguments_given_at_runtime_may_be_missing(self):
        check(OmegaConf.create({"models": node("Model", dim=4)}), runtime={"inputs"})
        assert problems_of({"models": node("Model", dim=4)}, runtime=()) == [
            "`models.inputs`: missing, `twotower.planted.Model` needs it"
        ]

    def test_factory_may_only_miss_what_is_given_at_runtime(self):
        tree = {"make": node("Child", _partial_=True)}
        check(OmegaConf.create(tree), runtime={"size"})
        assert problems_of(tree) == ["`make.size`: missing, `twotower.planted.Child` needs it"]

    def test_a_class_without_a_constructor_takes_no_arguments(self):
        check(OmegaConf.create({"base": node("Base")}))
        assert problems_of({"base": node("Base", size=1)}) == ["`base.size`: unknown; valid: none"]

    def test_all_problems_are_reported_together(self):
        tree = {
            "models": node("Model", dim="wide", hiden=[1]),
            "losses": {"retrieval": node("Loss")},
            "callbacks": [node("Child", size=1), node("Child", sise=1)],
            "seed": "???",
        }
        text = "\n".join(problems_of(tree))
        for path in ("models.dim", "models.hiden", "losses.retrieval.temperature", "seed"):
            assert f"`{path}`" in text
        assert "`callbacks[1].sise`: unknown, did you mean `size`" in text
        assert "`callbacks[1].size`: missing" in text
        assert len(text.splitlines()) == 6

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"dim": "high"}, "`models.dim`: must be int, got 'high'"),
            ({"dim": 4.0}, "`models.dim`: must be int, got 4.0"),
            ({"dim": True}, "`models.dim`: must be int, got True"),
            ({"dim": None}, "`models.dim`: must be int, got null"),
            ({"scale": True}, "`models.scale`: must be float, got True"),
            ({"scale": "1"}, "`models.scale`: must be float, got '1'"),
            ({"bias": 1}, "`models.bias`: must be bool, got 1"),
            ({"name": 3}, "`models.name`: must be str, got 3"),
            ({"hidden": 64}, "`models.hidden`: must be list[int] or null, got 64"),
            ({"hidden": [64, "x"]}, "`models.hidden`: must be list[int] or null, got [64, 'x']"),
            ({"pair": [1, "a", 2]}, "`models.pair`: must be tuple[int, str] or null"),
            ({"pair": ["a", 1]}, "`models.pair`: must be tuple[int, str] or null"),
            ({"spread": [0.5, "x"]}, "`models.spread`: must be tuple[float, ...]"),
            ({"table": {"a": "b"}}, "`models.table`: must be collections.abc.Mapping[str, int]"),
            ({"table": [1]}, "`models.table`: must be collections.abc.Mapping[str, int]"),
            ({"loss": {"temperature": 1.0}}, "got a mapping without `_target_`"),
            ({"loss": "softmax"}, "`models.loss`: must be twotower.planted.Loss or null"),
            ({"make": "child"}, "`models.make`: must be collections.abc.Callable[[int]"),
            ({"base": node("Loss", temperature=1.0)}, "got `twotower.planted.Loss`"),
            ({"base": node("make_loss")}, "got `twotower.planted.make_loss`"),
            (
                {"base": node("Child", _partial_=True, size=1)},
                "got a factory of `twotower.planted.Child`",
            ),
        ],
    )
    def test_wrong_type(self, keys, expected):
        (problem,) = refuses(**keys)
        assert expected in problem

    @pytest.mark.parametrize(
        "keys",
        [
            {"scale": 2},
            {"hidden": None},
            {"hidden": [64, 32]},
            {"hidden": []},
            {"pair": [1, "a"]},
            {"spread": [1, 0.5]},
            {"table": {"a": 1}},
            {"loss": node("Loss", temperature=1)},
            {"loss": node("make_loss")},
            {"base": node("Child", size=1)},
            {"base": node("make_child", size=1)},
            {"pooling": node("MeanPooling")},
            {"pooling": node("MeanPooling", _partial_=True)},
            {"make": node("Child", _partial_=True, size=1)},
        ],
    )
    def test_right_type(self, keys):
        accepts(**keys)

    def test_literal(self):
        check(OmegaConf.create(node("Loss", temperature=1.0, kind="cosine")))
        assert problems_of(node("Loss", temperature=1.0, kind="euclid")) == [
            "`kind`: must be one of 'cosine', 'dot', got 'euclid'"
        ]

    def test_type_inside_a_nested_node(self):
        (problem,) = refuses(loss=node("Loss", temperature="cold"))
        assert problem == "`models.loss.temperature`: must be float, got 'cold'"

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("os.system", "`os.system` may not be built from a config; allowed: twotower.*"),
            ("builtins.eval", "may not be built"),
            ("twotower.planted.os.system", "cannot be imported"),
            ("twotower.planted.os", "is not a class or function"),
            ("twotower.planted.dataclass", "is `dataclasses.dataclass`; allowed"),
            ("twotower.planted.Los", "did you mean `twotower.planted.Loss`"),
            ("twotower.nowhere.Loss", "cannot be imported: No module named 'twotower.nowhere'"),
            (7, "`_target_`: must be a dotted path, got 7"),
        ],
    )
    def test_target(self, target, message):
        (problem,) = problems_of({"_target_": target})
        assert message in problem

    def test_a_package_of_the_user_is_allowed_by_the_environment_alone(self, tmp_path, monkeypatch):
        (tmp_path / "shop_of_tests").mkdir()
        (tmp_path / "shop_of_tests" / "towers.py").write_text(
            "import os\nfrom json import loads\n\ndef tower(*, depth: int):\n    return depth\n"
        )
        target = {"_target_": "shop_of_tests.towers.tower", "depth": 2}
        (problem,) = problems_of(target)
        assert "may not be built from a config" in problem
        assert problem.endswith("allowed by the environment: TWOTOWER_PACKAGES=shop_of_tests")
        monkeypatch.setenv("TWOTOWER_PACKAGES", "other, shop_of_tests")
        (problem,) = problems_of(target)
        assert problem.endswith(
            "No module named 'shop_of_tests'; put the folder that holds it on PYTHONPATH, or "
            "install it"
        )
        monkeypatch.syspath_prepend(tmp_path)
        check(OmegaConf.create(target))
        assert build(OmegaConf.create(target)) == 2
        (problem,) = problems_of(target | {"depth": "two"})
        assert problem == "`depth`: must be int, got 'two'"
        (problem,) = problems_of({"_target_": "shop_of_tests.towers.loads"})
        assert "is `json.loads`; allowed" in problem
        for outside in ("shop_of_tests_too.tower", "os.system"):
            (problem,) = problems_of({"_target_": outside})
            assert "may not be built from a config" in problem

    @pytest.mark.parametrize("nothing", ["", " ", ",", ".", "..,"])
    def test_a_name_of_nothing_allows_nothing(self, nothing, monkeypatch):
        monkeypatch.setenv("TWOTOWER_PACKAGES", nothing)
        (problem,) = problems_of({"_target_": "os.system"})
        assert "may not be built from a config" in problem

    def test_own_class_with_kwargs_is_refused(self):
        (problem,) = problems_of(node("Swallows", anything=1))
        assert "takes *args or **kwargs, so its arguments cannot be checked" in problem

    def test_own_annotation_that_does_not_resolve_is_reported(self):
        (problem,) = problems_of(node("Unresolved", size=1))
        assert problem == (
            "`_target_`: an annotation cannot be resolved: name 'Nowhere' is not defined"
        )

    def test_partial_must_be_boolean(self):
        (problem,) = problems_of(node("Child", size=1, _partial_="yes"))
        assert problem == "`_partial_`: must be bool, got 'yes'"

    def test_hydra_keys_that_change_how_objects_are_built_are_unknown(self):
        (problem,) = problems_of(node("Child", size=1, _recursive_=False))
        assert "`_recursive_`: unknown" in problem

    def test_third_party_signatures(self):
        tree = {
            "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3},
            "trainer": {
                "_target_": "pytorch_lightning.Trainer",
                "precision": "bf16-mixed",
                "callbacks": [
                    {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "x"}
                ],
                "logger": {
                    "_target_": "pytorch_lightning.loggers.TensorBoardLogger",
                    "save_dir": ".",
                    "max_queue": 3,
                },
            },
        }
        check(OmegaConf.create(tree), runtime={"params"})
        tree["optimizer"]["weight_dekay"] = 0.1
        tree["trainer"]["precision"] = "bf17"
        tree["trainer"]["max_epochs"] = "ten"
        problems = problems_of(tree, runtime={"params"})
        assert [problem.partition(":")[0] for problem in problems] == [
            "`optimizer.weight_dekay`",
            "`trainer.precision`",
            "`trainer.max_epochs`",
        ]

    def test_interpolations_are_followed_and_broken_ones_reported(self):
        tree = {"size": "x", "good": node("Child", size="${size}"), "bad": "${nowhere}"}
        assert problems_of(tree) == [
            "`bad`: Interpolation key 'nowhere' not found",
            "`good.size`: must be int, got 'x'",
        ]

    def test_values_that_only_a_running_job_has_are_taken_as_given(self):
        tree = {
            "folder": "${hydra:runtime.output_dir}",
            "good": node("Loss", temperature=1.0, kind="${folder}"),
            "bad": node("Loss", temperature="${hydra:job.num}", kind="euclid"),
        }
        (problem,) = problems_of(tree)
        assert problem.startswith("`bad.kind`")


class TestBuild:
    def test_runtime_objects_keep_their_identity(self):
        inputs = {"a": np.zeros(3), "b": [1, 2]}
        cfg = OmegaConf.create({"models": node("Model", dim=4)})
        assert build(cfg.models, inputs=inputs).inputs is inputs

    def test_runtime_dataclass_is_not_converted(self, planted):
        loss = planted.Loss(temperature=0.5)
        cfg = OmegaConf.create(node("Model", dim=4))
        assert build(cfg, inputs=None, loss=loss).loss is loss

    def test_nested_nodes_are_built_and_lists_are_lists(self, planted):
        cfg = OmegaConf.create(
            node("Model", dim=4, loss=node("Loss", temperature=0.5), hidden=[8, 4], table={"a": 1})
        )
        model = build(cfg, inputs=None)
        assert model.loss == planted.Loss(temperature=0.5)
        assert type(model.hidden) is list
        assert type(model.table) is dict

    def test_nested_factory(self, planted):
        cfg = OmegaConf.create(node("Model", dim=4, make=node("Child", _partial_=True)))
        model = build(cfg, inputs=None)
        assert isinstance(model.make, functools.partial)
        child = model.make(size=5)
        assert isinstance(child, planted.Child)
        assert child.size == 5

    def test_node_that_is_a_factory_itself(self):
        make = build(OmegaConf.create(node("Child", _partial_=True)), size=6)
        assert make().size == 6

    def test_nested_constructor_error_names_its_place(self):
        cfg = OmegaConf.create({"models": node("Model", dim=4, base=node("Child", size=0))})
        message = r"^`models.base`: `size` must be positive, got 0$"
        with pytest.raises(ConfigError, match=message):
            build(cfg.models, inputs=None)

    def test_outer_constructor_error_comes_through(self):
        with pytest.raises(ValueError, match="`size` must be positive, got 0"):
            build(OmegaConf.create(node("Child", size=0)))

    def test_nothing_to_build(self):
        with pytest.raises(ConfigError, match="nothing to build: no `_target_` among retrieval"):
            build(OmegaConf.create({"retrieval": node("Child", size=1)}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A config folder with two groups, one of them nested."""
    files = {
        "train.yaml": (
            "defaults: [train_schema, {data: synthetic}, {losses/retrieval: softmax}, _self_,"
            " {experiment: null}]\n"
            "name: x\nseed: 3\noutput_dir: runs\nprepared_dir: prepared\nsplit: null\n"
            "features: auto\nmodels: {}\ntraining: {}\ntrainer: {max_epochs: 3}\nevaluation: {}\n"
        ),
        "data/synthetic.yaml": "num_users: 10\n",
        "data/tables.yaml": "interactions: ???\n",
        "losses/retrieval/softmax.yaml": "_target_: twotower.planted.Loss\ntemperature: 0.1\n",
        "losses/retrieval/bpr.yaml": "_target_: twotower.planted.make_loss\n",
        "experiment/good.yaml": "# @package _global_\nseed: 9\ntrainer: {max_epochs: 7}\n",
        "experiment/bad.yaml": "# @package _global_\nsead: 9\n",
        "experiment/broken.yaml": "# @package _global_\nseed: [\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(config, "config_dir", lambda: tmp_path / "configs")
    return tmp_path


def compose_problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose("train", list(overrides))
    return list(caught.value.problems)


@pytest.mark.usefixtures("folder")
class TestCompose:
    def test_overrides_and_choices(self):
        cfg = compose("train", ["losses/retrieval=bpr", "experiment=good", "trainer.max_epochs=1"])
        assert cfg.losses.retrieval == node("make_loss")
        assert (cfg.seed, cfg.trainer.max_epochs) == (9, 1)
        assert "hydra" not in cfg
        check(cfg)

    def test_a_value_with_signs_is_shown_in_quotes(self):
        with pytest.raises(ConfigError) as caught:
            compose("train", ["data=tables", "data.interactions=seen (UTC)"])
        (problem,) = caught.value.problems
        shown = problem.rpartition("quotes twice: ")[2]
        assert shown == """'data.interactions="seen (UTC)"'"""
        config = compose("train", ["data=tables", shown.strip("'")])
        assert config.data.interactions == "seen (UTC)"

    def test_every_bad_override_is_listed(self):
        problems = compose_problems(
            "data=syntetic", "seed=many", "trainer.max_epoch=2", "sed=1", "quiet", "name=y"
        )
        assert problems[:2] == [
            "`quiet`: not of the form key=value: there is no `=`",
            "`data=syntetic`: unknown, did you mean `synthetic`; valid: synthetic, tables",
        ]
        assert problems[2].startswith("`seed=many`: Value 'many' of type 'str' could not be")
        assert problems[3] == (
            "`trainer.max_epoch`: unknown, did you mean `max_epochs`; valid: max_epochs"
        )
        assert problems[4].startswith("`sed`: unknown, did you mean `seed`; valid: ")
        assert len(problems) == 5

    def test_override_of_a_key_that_another_override_brings(self):
        problems = compose_problems("data.interactions=a.parquet", "data=tables", "sed=1")
        assert len(problems) == 1

    def test_group_chosen_with_a_dot(self):
        assert compose_problems("losses.retrieval=bpr") == [
            "`losses.retrieval=bpr`: `losses/retrieval` is a group; choose with "
            "`losses/retrieval=<option>`, one of bpr, softmax"
        ]

    def test_unknown_group(self):
        (problem,) = compose_problems("losses/retrival=bpr")
        assert problem.startswith("`losses/retrival`: unknown, did you mean `losses/retrieval`")

    def test_syntax(self):
        (problem,) = compose_problems("x=[[")
        assert problem.startswith("`x=[[`: not of the form key=value: no viable")

    def test_sweep_without_multirun_says_how(self):
        (problem,) = compose_problems("seed=1,2")
        assert "add --multirun" in problem

    def test_mistake_in_a_file(self):
        (problem,) = compose_problems("experiment=bad")
        assert problem.startswith("In 'experiment/bad': `sead`: unknown, did you mean `seed`")

    def test_file_that_is_no_yaml(self):
        (problem,) = compose_problems("experiment=broken")
        assert "expected the node content" in problem
        assert "broken.yaml" in problem

    def test_key_added_to_the_top_is_refused_by_check(self):
        (problem,) = problems_of(compose("train", ["+sead=1"]))
        assert problem.startswith("`sead`: unknown, did you mean `seed`")

    def test_key_removed_from_the_top_is_refused_by_check(self):
        assert problems_of(compose("train", ["~seed"])) == ["`seed`: missing"]

    def test_mandatory_field_is_reported_once(self, folder):
        (folder / "configs" / "evaluate.yaml").write_text(
            "defaults: [evaluate_schema, _self_]\nevaluation: {}\n"
        )
        assert problems_of(compose("evaluate")) == ["`bundle`: missing, a value must be given"]

    def test_mandatory_value(self):
        assert problems_of(compose("train", ["data=tables"])) == [
            "`data.interactions`: missing, a value must be given"
        ]

    def test_extra_folder(self, folder):
        (folder / "mine" / "experiment").mkdir(parents=True)
        (folder / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 77\n")
        cfg = compose("train", ["experiment=own"], extra_dir=str(folder / "mine"))
        assert cfg.seed == 77
        with pytest.raises(ConfigError) as caught:
            compose("train", ["experiment=own", "sead=1"], extra_dir=str(folder / "mine"))
        (problem,) = caught.value.problems
        assert problem.startswith("`sead`: unknown")

    def test_extra_folder_that_is_missing(self):
        with pytest.raises(ConfigError, match="no folder of configs `nowhere`"):
            compose("train", extra_dir="nowhere")


def test_jobs_that_hold_every_value_of_a_sweep_once():
    overrides = with_params({"a.x": "interval(1,3)"}, ["b=5,6", "c=7"])
    assert list(first_values(overrides)) == [
        ["a.x=1.0", "b=5", "c=7"],
        ["a.x=3.0", "b=5", "c=7"],
        ["a.x=1.0", "b=6", "c=7"],
    ]


def test_config_dir_is_at_the_top_of_the_checkout():
    assert config_dir() == Path(__file__).parents[2] / "configs"


def test_config_dir_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "twotower" / "configs").mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "twotower" / "config.py"))
    assert config_dir() == tmp_path / "twotower" / "configs"


class TestRunDir:
    def test_new_folders_are_never_shared(self, tmp_path):
        folders = [run_dir("demo", None, str(tmp_path)) for _ in range(5)]
        assert len(set(folders)) == 5
        assert all(Path(f).is_dir() and Path(f).parent == tmp_path / "demo" for f in folders)

    def test_name_is_the_time(self, tmp_path, monkeypatch):
        class Clock(config.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 3, 4, 5, 6, 7)

        monkeypatch.setattr(config, "datetime", Clock)
        names = [Path(run_dir("demo", None, str(tmp_path))).name for _ in range(11)]
        assert names[:2] == ["2026-03-04_05-06-07", "2026-03-04_05-06-07_0002"]
        assert names == sorted(names)

    def test_resume(self, tmp_path):
        (tmp_path / "config.yaml").write_text("")
        assert run_dir("demo", str(tmp_path)) == str(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(ValueError, match=r"`resume`: no run folder `.*gone`"):
            run_dir("demo", str(tmp_path / "gone"))
        with pytest.raises(ValueError, match=r"`resume`: no run in .*, it holds no config.yaml"):
            run_dir("demo", str(tmp_path))

    def test_resolver(self, tmp_path):
        cfg = OmegaConf.create(
            {"name": "a", "resume": None, "dir": f"${{run_dir:${{name}},${{resume}},{tmp_path}}}"}
        )
        assert cfg.dir == cfg.dir
        assert Path(cfg.dir).parent == tmp_path / "a"
