"""The notebooks run from top to bottom, on a tiny world, in this interpreter, without a network."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUICKSTART = NOTEBOOKS / "01_quickstart.ipynb"
KERNEL = "this-interpreter"
MAX_BYTES = 400_000

# Stands in for the cell with the tag `parameters`.
TINY = """
WORK = Path("work")
SETTINGS = [
    *("data.num_users=150", "data.num_items=100", "data.slates_per_user=8"),
    *("models.retrieval.dim=16", "models.retrieval.hidden=[16]"),
    *("models.retrieval.embedding_dim=8", "models.ranking.embedding_dim=8"),
    *("models.ranking.deep.hidden=[16]", "losses.retrieval.negatives.num_uniform=32"),
    *("training.retrieval.max_epochs=2", "training.retrieval.batch_size=256"),
    *("training.ranking.max_epochs=1", "trainer.accelerator=cpu", "name=tiny"),
]
EXPORT = ["gates.max_calibration_error=null", "index=flat", "index.device=cpu"]
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel that is this interpreter; it is spoken to through sockets in a folder, not ports."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)  # both sides look for the sockets in the working folder
    return AsyncKernelManager(kernel_name=KERNEL, transport="ipc")


@pytest.fixture
def executed(kernel, tmp_path):
    notebook = nbformat.read(QUICKSTART, as_version=4)
    [parameters] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = TINY
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, km=kernel, timeout=60, resources=where).execute()
    return notebook


def outputs(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", {})
    ]


def test_the_quickstart_runs_and_shows_its_plots_and_tables(executed, tmp_path):
    assert executed.cells[-1].outputs[0]["text"].strip() == sys.executable
    assert len(outputs(executed, "image/png")) == 6
    tables = [re.findall("<tr>", text) for text in outputs(executed, "text/html")]
    assert 11 in [len(rows) for rows in tables]  # ten recommendations below their heading
    assert (tmp_path / "work" / "run" / "metrics.json").is_file()
    assert len(list((tmp_path / "work" / "bundles" / "tiny").glob("*/manifest.json"))) == 2


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_committed_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not re.search(r'"[^"]*(/tmp/|/home/|/root/|/Users/)[^"]*"', text)
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        assert output.output_type != "error"
