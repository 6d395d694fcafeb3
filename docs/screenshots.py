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
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
# The projector draws with WebGL, which a machine without a screen does in software.
SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
SETTLED_MS = 3_000  # charts and points go on moving after the last answer has come


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """TensorBoard as a process; the URL."""
    # The page shows the folder as it was given, so it is the name that the docs give it.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs.name, "--port", "0"]
    process = subprocess.Popen(command, cwd=runs.parent, stderr=subprocess.PIPE, text=True)
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


@contextmanager
def short_names(runs: Path) -> Iterator[Path]:
    """A folder in which the runs below another one are numbered, each of them once."""
    with TemporaryDirectory() as folder:
        shown = Path(folder) / "runs"
        shown.mkdir()
        found = sorted({path.parent.resolve() for path in runs.glob("**/metrics.json")})
        for number, run in enumerate(found, 1):
            (shown / f"run {number}").symlink_to(run / "tensorboard")
        yield shown


def scalars(page: Page) -> None:
    """The charts of the retrieval, without those of the ranking before them."""
    page.get_by_text("ranking", exact=True).first.click()


def hparams(page: Page) -> None:
    """The table of the runs: the settings that differ and the figures."""
    for name in ("data", "data.launched_from", "data.launched_share"):
        page.locator("tf-hparams-query-pane paper-checkbox").get_by_text(name, exact=True).click()


def projector(page: Page) -> None:
    """The items in the colours of their categories, one of them with its neighbours."""
    frame = page.frame(url=re.compile("projector_binary"))
    assert frame is not None  # noqa: S101 - the tab is nothing but this frame
    frame.locator("#colorby #menuButton").click()
    frame.locator("#colorby paper-item", has_text="category").click()
    frame.locator("vz-projector-inspector-panel input").first.fill("Midnight")
    page.wait_for_timeout(SETTLED_MS)
    frame.locator("vz-projector-inspector-panel .matches-list a").first.click()
    page.mouse.move(640, 30)  # away from what would explain itself


# Name of the picture: the tab, width and height, and what is done before it is taken.
VIEWS: dict[str, tuple[str, int, int, Callable[[Page], None]]] = {
    "tensorboard_scalars": ("custom_scalars", 1280, 800, scalars),
    "tensorboard_hparams": ("hparams", 1920, 480, hparams),
    "tensorboard_projector": ("projector", 1280, 800, projector),
}


def take(runs: Path, folder: Path) -> None:
    """Take all pictures of some runs."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with short_names(runs) as named, tensorboard(named) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*root, *SOFTWARE_GL])
        for name, (tab, width, height, prepare) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
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
