"""What loads when windows are judged: neither torch nor pandas, and river only when it is asked."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import twotower.monitoring.judge, twotower.monitoring.watch, twotower.serving.recommender
heavy = ("torch", "river", "pandas", "polars", "tensorflow")
print([name for name in heavy if name in sys.modules])
"""


def test_nothing_heavy_is_loaded():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
