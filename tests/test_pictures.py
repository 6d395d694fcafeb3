"""The pictures of the docs are there, small and shown; screenshots are as their script says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAX_BYTES = 200_000


def test_pictures_are_small_and_every_one_is_shown_by_a_page():
    pages = {
        path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS.glob("*.md"))
    }
    shown = {
        (path.parent / name).resolve()
        for path, text in pages.items()
        for name in re.findall(
            r"!\[[^\]]{20,}\]\(([\w./]+)\)", text
        )  # with words for who sees none
    }
    there = {path for path in DOCS.iterdir() if path.suffix in (".png", ".svg")}
    assert there == shown
    for path in there:
        assert path.stat().st_size < MAX_BYTES, path


def test_screenshots_have_the_size_that_the_script_takes_them_in():
    place = DOCS / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert len(script.VIEWS) == 3
    for name, (_, width, height, _) in script.VIEWS.items():
        with Image.open(DOCS / f"{name}.png") as picture:
            assert picture.size == (width, height)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
