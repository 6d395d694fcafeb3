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


def test_a_faiss_that_cannot_be_loaded_is_not_called_missing(monkeypatch, tmp_path):
    package = tmp_path / "faiss"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libcublas.so.12: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.delitem(sys.modules, "twotower.index.faiss_library")
    with pytest.raises(ImportError, match=r"cannot be loaded: libcublas\.so\.12.*CUDA do not fit"):
        importlib.import_module("twotower.index.faiss_library")
