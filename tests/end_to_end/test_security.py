"""What docs/security.md claims and no other test holds; the page names those tests, which exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twotower.config_targets import ALLOWED_TARGETS
from twotower.serving.models import OnnxModel

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
OF_THE_PROJECT = {"twotower"}  # extras that name further extras
# Used while developing, never in what is shipped.
DEVELOPMENT = {"dev"}


def model_with_weights_at(location: str) -> onnx.ModelProto:
    """y = x + w, with w in another file."""
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "graph", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["upwards", "absolute", "link"])
def test_a_graph_finds_no_weights_outside_of_its_folder(tmp_path, kind):
    folder, outside = tmp_path / "bundle", tmp_path / "outside.bin"
    folder.mkdir()
    np.full(4, 7, np.float32).tofile(outside)
    location = {"upwards": "../outside.bin", "absolute": str(outside), "link": "link.bin"}[kind]
    (folder / "link.bin").symlink_to(outside)
    (folder / "ranker.onnx").write_bytes(model_with_weights_at(location).SerializeToString())
    with pytest.raises(Exception, match=r"(?i)external|outside|directory|path"):
        OnnxModel(folder / "ranker.onnx")


def test_a_graph_finds_its_weights_in_its_folder(tmp_path):
    """The test above is not red for another reason."""
    np.full(4, 7, np.float32).tofile(tmp_path / "weights.bin")
    (tmp_path / "x.onnx").write_bytes(model_with_weights_at("weights.bin").SerializeToString())
    OnnxModel(tmp_path / "x.onnx")


def test_the_page_lists_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = list(project["dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        given += packages if extra not in DEVELOPMENT else []
    names = {re.split(r"[\[<>=;]", one)[0].strip() for one in given} - OF_THE_PROJECT
    table = TEXT.partition("| package | reaches |")[2]
    listed = {
        name.strip()
        for row in re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
        for name in row.split(",")
    }
    assert names == {name for name in listed if not name.startswith(":")}


def test_the_page_names_what_may_be_built():
    for prefix in ALLOWED_TARGETS:
        assert f"`{prefix}`" in TEXT


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
    rules = (ROOT / "tests" / "test_architecture.py").read_text()
    for rule in re.findall(r"`(check_\w+)`", TEXT):
        assert f"def {rule}(" in rules
