"""YAML files of people: read, refused with the name of the file, written and read back."""

import numpy as np
import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from twotower.config_files import read_yaml, spec_file, to_yaml, write_spec
from twotower.data.leakage import FittedOn
from twotower.data.prepare import TrainingPart
from twotower.features.infer import AutoSpec, GivenSpec
from twotower.features.spec import Feature, FeatureSpec, History

ODD_NAMES = ["no", "1e-3", "0x1f", "12:30", "null", "~", "ü x", "a: b", "#x", "2020-01-01"]
ODD_NAMES += ["a\nb", " pad ", "'q'", '"', "1_000", ".inf", "=", "<<", "- a", "{a", "%", "on"]


def test_a_spec_is_written_edited_and_read_back(tmp_path):
    part = TrainingPart(
        interactions=pa.table({"user_id": [1], "item_id": [2], "timestamp": [3]}),
        users=pa.table({"user_id": [1]}),
        items=pa.table({"item_id": [2], "genres": ["a|b"], "price": [1.0]}),
        context=(),
        fitted_on=FittedOn.rows(np.arange(1), None),
    )
    spec = AutoSpec().spec(part)
    path = tmp_path / "features.yaml"
    write_spec(path, spec.to_dict())
    assert spec_file(str(path)) == GivenSpec(given=spec)
    text = path.read_text()
    assert text.startswith("# The features of this data set. Edit this file and give it back:\n")
    edited = text.replace(
        "name: price\n  side: item\n  kind: numeric\n",
        "name: price\n  side: item\n  kind: numeric\n  log: true  # prices are skewed\n",
    ).replace("length: 20", "length: 5")
    assert edited != text
    path.write_text(edited)
    given = spec_file(str(path)).given
    assert [f.log for f in given.features if f.name == "price"] == [True]
    assert given.history.length == 5
    assert len(given.features) == len(spec.features)


def test_odd_names_and_separators_survive(tmp_path):
    spec = FeatureSpec(
        features=tuple(
            Feature(name=name, side="item", kind="tags", separator=name) for name in ODD_NAMES
        ),
        history=History(length=0, features=tuple(ODD_NAMES)),
    )
    write_spec(tmp_path / "features.yaml", spec.to_dict())
    assert spec_file(str(tmp_path / "features.yaml")).given == spec


def test_a_config_is_written_with_its_interpolations_resolved(tmp_path):
    cfg = OmegaConf.create({"rate": 1e-3, "dim": 64, "model": {"width": "${dim}", "name": "ü"}})
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    back = OmegaConf.to_container(read_yaml(tmp_path / "config.yaml"))
    assert back == {"rate": 1e-3, "dim": 64, "model": {"width": 64, "name": "ü"}}


def test_scientific_notation_is_a_number(tmp_path):
    (tmp_path / "config.yaml").write_text("rate: 1e-3\n")
    assert read_yaml(tmp_path / "config.yaml").rate == 0.001


def test_there_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=f"no file `{tmp_path}/none.yaml`"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="no file"):
        spec_file(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "cannot be read as YAML: while parsing"),
        (b"a: 1\na: 2", "cannot be read as YAML: .*\n.*\nfound duplicate key a"),
        (b"\xff\xfe\xff", "cannot be read as YAML: .*codec"),
        (b"- a", "must hold a mapping of keys to values"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "features.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read_yaml(path)


def test_every_problem_of_a_spec_names_the_file(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("features: [{name: a, side: user, kind: text}, {dim: 2}]\nhistory: [1]\n")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        spec_file(str(path))
    assert str(caught.value).splitlines() == [
        f"{path}: feature 1: feature `a`: `kind` must be one of id, categorical, tags, numeric, "
        "vector, time, got 'text'",
        f"{path}: feature 2: `name` is missing",
        f"{path}: feature 2: `side` is missing",
        f"{path}: feature 2: `kind` is missing",
        f"{path}: history: must be keys with values, got [1]",
    ]


def test_an_interpolation_that_leads_nowhere_is_refused(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("features: [{name: '${x}', side: user, kind: id}]\n")
    with pytest.raises(ValueError, match=f"^{path}: Interpolation key 'x' not found"):
        spec_file(str(path))


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match="there is no feature"):
        spec_file(str(path))
