"""The tiny run, read back: as it was trained, and as it is served."""

from __future__ import annotations

import pytest

from twotower.cli.load_run import LoadedRun, load_run
from twotower.data.schema import Tables
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import Bundle, open_bundle
from twotower.serving.recommender import Recommender


@pytest.fixture(scope="session")
def loaded(tiny_run) -> LoadedRun:
    return load_run(tiny_run.run)


@pytest.fixture(scope="session")
def bundle(tiny_run) -> Bundle:
    return open_bundle(tiny_run.bundle)


@pytest.fixture(scope="session")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


@pytest.fixture(scope="session")
def raw(loaded: LoadedRun) -> Tables:
    """The tables that the run was trained on."""
    world = {k: v for k, v in loaded.config.data.items() if not k.startswith("_")}
    return SyntheticSource(**world).read()
