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

from twotower.monitoring.history import read_history

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUICKSTART = NOTEBOOKS / "01_quickstart.ipynb"
INSPECT = NOTEBOOKS / "02_inspect_model.ipynb"
DRIFT = NOTEBOOKS / "03_drift.ipynb"
KERNEL = "this-interpreter"
MAX_BYTES = 400_000

# Stand in for the cells with the tag `parameters`.
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

# The same for the second notebook: a fifth of the items is launched late.
TINY_WITH_COLD = TINY.replace(
    "SETTINGS = [",
    'RUN = BUNDLE = None\nSETTINGS = ["data.launched_share=0.2", "data.launched_from=0.8", ',
)

DAYS, LAUNCH, BROKEN, REPAIRED, SHIFT = 9, 3, 5, 6, 7
SHORT = f"""
WORK = Path("work")
DAYS, LAUNCH, BROKEN, REPAIRED, SHIFT = {DAYS}, {LAUNCH}, {BROKEN}, {REPAIRED}, {SHIFT}
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


def execute(path, parameters, kernel, folder):
    notebook = nbformat.read(path, as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    cell.source = parameters
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=kernel, timeout=120, resources=where)
    client.execute(cleanup_kc=True)  # a kernel that is given is left running else
    assert notebook.cells[-1].outputs[0]["text"].strip() == sys.executable
    return notebook


def outputs(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", {})
    ]


def test_the_quickstart_runs_and_shows_its_plots_and_tables(kernel, tmp_path):
    executed = execute(QUICKSTART, TINY, kernel, tmp_path)
    assert len(outputs(executed, "image/png")) == 6
    tables = [re.findall("<tr>", text) for text in outputs(executed, "text/html")]
    assert 11 in [len(rows) for rows in tables]  # ten recommendations below their heading
    assert (tmp_path / "work" / "run" / "metrics.json").is_file()
    assert len(list((tmp_path / "work" / "bundles" / "tiny").glob("*/manifest.json"))) == 2


def test_a_model_is_inspected_from_six_sides(kernel, tmp_path):
    executed = execute(INSPECT, TINY_WITH_COLD, kernel, tmp_path)
    assert len(outputs(executed, "image/png")) == 6
    said = "".join(o["text"] for c in executed.cells for o in c.get("outputs", ()) if "text" in o)
    assert "100 items, 20 of them cold" in said
    assert "no cold item" not in said
    neighbours, exposure, products = outputs(executed, "text/html")
    assert re.findall(r"\d+, ([\w ]+)</td>", neighbours) == ["popular", "in the middle", "cold"]
    lifts = dict(re.findall(r"<tr><td>([\w ]+)</td>.*?([+-][\d.]+)</td></tr>", exposure))
    assert float(lifts["most popular"]) > max(float(lifts[n]) for n in ("retrieval", "both stages"))
    strengths = [float(text) for text in re.findall(r"<td>([\d.]+)</td></tr>", products)]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] > 1


def test_the_kept_inspection_shows_what_its_text_says():
    executed = nbformat.read(INSPECT, as_version=4)
    assert len(outputs(executed, "image/png")) == 6
    _, exposure, _ = outputs(executed, "text/html")
    lifts = dict(re.findall(r"<tr><td>([\w ]+)</td>.*?([+-][\d.]+)</td></tr>", exposure))
    assert float(lifts["most popular"]) > float(lifts["retrieval"]) > 0


def days_with_an_alert(history, area, subject, statistic=None):
    """Numbers of the days, from 1."""
    return [
        number
        for number, entry in enumerate(history, 1)
        if any(
            one.alert and (one.area, one.subject) == (area, subject)
            for one in entry.findings
            if statistic in (None, one.statistic)
        )
    ]


def test_what_happens_in_the_month_is_found_in_its_place_and_in_time(kernel, tmp_path):
    executed = execute(DRIFT, SHORT, kernel, tmp_path)
    work = tmp_path / "work"
    history = read_history(work / "monitoring" / "shop")
    assert [entry.window for entry in history] == [f"day-{n:02}.parquet" for n in range(1, 10)]
    assert {entry.labels for entry in history} == {"judged"}
    assert not any(entry.num_alerts for entry in history[: LAUNCH - 1])

    launched = days_with_an_alert(history, "data", "item.item_id", "unseen_rate")
    assert launched[0] in (LAUNCH, LAUNCH + 1)
    assert launched[-1] == DAYS
    assert days_with_an_alert(history, "data", "context.device") == list(range(BROKEN, REPAIRED))
    turned = days_with_an_alert(history, "concept", "all", "auc")
    assert turned[0] in (SHIFT, SHIFT + 1)

    [report] = (work / "runs" / "shop").glob("retrain-*/retrain.json")
    retrained = json.loads(report.read_text())
    assert retrained["published"]
    assert (work / "bundles" / "shop" / "current").resolve() == Path(retrained["new"])
    compared = {one["name"]: one for one in retrained["compared"]}
    assert compared["retrieval/recall@200"]["difference"]["low"] > 0
    assert compared["retrieval/new_items_recall@200"]["old"]["value"] == 0
    assert compared["retrieval/new_items_recall@200"]["new"]["low"] > 0

    assert len(outputs(executed, "image/png")) == 2
    said = "".join(o["text"] for c in executed.cells for o in c.get("outputs", ()) if "text" in o)
    assert "days with an alert before anything happened: 0 of 2" in said
    assert "alerts of these three before their time: 0" in said
    assert any("unseen rate" in text for text in outputs(executed, "text/html"))


def test_the_kept_month_shows_what_its_text_says():
    executed = nbformat.read(DRIFT, as_version=4)
    said = "".join(o["text"] for c in executed.cells for o in c.get("outputs", ()) if "text" in o)
    assert "days with an alert before anything happened: 0 of 7" in said
    assert "alerts of these three before their time: 0" in said
    assert "published: True" in said
    [table] = [t for t in outputs(executed, "text/html") if "what happened" in t]
    rows = re.findall(r"<tr><td>([^<]*)</td><td>(\d+)</td><td>[^<]*</td><td>(\d+)</td>", table)
    assert [name for name, _, _ in rows] == ["launch", "device is lost", "tastes turn"]
    assert all(int(found) - int(day) in (0, 1) for _, day, found in rows)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_committed_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not re.search(r'"[^"]*(/tmp/|/home/|/root/|/Users/)[^"]*"', text)
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        assert output.output_type != "error"
