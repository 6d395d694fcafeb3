"""The message when FAISS is missing, and what may be imported without torch."""

import importlib
import subprocess
import sys

import pytest


def test_missing_faiss_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "twotower.index.faiss_library")
    with pytest.raises(ImportError, match=r"twotower\[cpu\].*twotower\[gpu\]"):
        importlib.import_module("twotower.index.faiss_library")


def test_serving_needs_no_torch():
    code = "import sys, twotower.index.faiss_index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
