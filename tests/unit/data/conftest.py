"""A prepared data set made of tables that stand in the test."""

from dataclasses import dataclass

import pytest

from twotower.data.prepare import prepare
from twotower.data.schema import Tables
from twotower.data.split import GivenSplit
from twotower.features.infer import AutoSpec, PipelineFactory


@dataclass(frozen=True, kw_only=True)
class TablesInMemory:
    """A source of given tables; `version` stands for the content of its files."""

    tables: Tables
    name: str = "made"
    version: str = "1"

    def fingerprint(self):
        return self.version

    def read(self):
        return self.tables


@pytest.fixture
def prepare_tables(tmp_path):
    """Prepare tables, split by their `split` column unless a splitter is given."""

    def run(
        tables,
        *,
        splitter=None,
        features=None,
        catalogue="all",
        version="1",
        root=tmp_path,
        budget=None,
    ):
        return prepare(
            source=TablesInMemory(tables=tables, version=version),
            splitter=splitter or GivenSplit(),
            encoders=PipelineFactory(provider=features or AutoSpec(history_length=3, time=False)),
            root=root,
            catalogue=catalogue,
            budget=budget,
        )

    return run
