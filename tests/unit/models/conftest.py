import pytest


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch):
    """Tables of tests are tiny; let those that may be sparse be so."""
    monkeypatch.setattr("twotower.models.embedding.MIN_SPARSE_ROWS", 0)
