"""A bar while a command imports what takes long."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tqdm import tqdm


def load(command: str, names: Sequence[str], *, quiet: bool) -> None:
    """Import modules, on a terminal with a bar.

    Args:
        command: Whose modules they are.
        names: The modules; constants of a command, never words of a user.
        quiet: Whether there is no bar.
    """
    hidden = quiet or not sys.stderr.isatty()
    # A step takes a second: every one is drawn.
    with tqdm(names, f"{command}: loading", leave=False, mininterval=0, disable=hidden) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            importlib.import_module(name)
