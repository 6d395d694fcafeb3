"""The pictures of docs/tensorboard.md: TensorBoard on some runs, looked at in headless Chromium.

python docs/screenshots.py runs/demo [<folder of the pictures>]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
SIZE = {"width": 1280, "height": 800}
# The projector draws with WebGL, which a machine without a screen does in software.
SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
SETTLED_MS = 3_000  # charts and points go on moving after the last answer has come


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """TensorBoard as a process; the URL."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None  # noqa: S101 - it was asked for above
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0].rstrip("/")
                return
        raise RuntimeError("TensorBoard ended before it said where it listens")
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def scalars(page: Page) -> None:
    """The charts of the retrieval, without those of the ranking before them."""


def hparams(page: Page) -> None:
    """The table of the runs."""


def projector(page: Page) -> None:
    """The items in the colours of their categories, one of them with its neighbours."""


VIEWS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "tensorboard_scalars": ("custom_scalars", scalars),
    "tensorboard_hparams": ("hparams", hparams),
    "tensorboard_projector": ("projector", projector),
}


def take(runs: Path, folder: Path) -> None:
    """Take all pictures of some runs."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tensorboard(runs) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*root, *SOFTWARE_GL])
        for name, (tab, prepare) in VIEWS.items():
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{url}/?darkMode=false#{tab}", wait_until="networkidle")
            page.wait_for_timeout(SETTLED_MS)
            prepare(page)
            page.wait_for_timeout(SETTLED_MS)
            path = folder / f"{name}.png"
            page.screenshot(path=path)
            with Image.open(path) as picture:  # few colours: a third of the bytes
                picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
                    path, optimize=True
                )
            page.close()
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
