"""The reference that an export leaves in the bundle."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.cli.load_run import load_run
from twotower.data.schema import TRAIN, VALIDATION, DataError
from twotower.export.bundle import open_bundle
from twotower.export.data_files import catalogue_only
from twotower.monitoring.reference import Reference, make_reference, window_form
from twotower.monitoring.validation_scores import score_validation


def test_an_exported_bundle_holds_profiles_of_both_parts(tiny_run) -> None:
    reference = Reference.of(open_bundle(tiny_run.bundle))
    prepared = load_run(tiny_run.run).prepared
    split = np.asarray(prepared.interactions.split)
    for profile, part in ((reference.training, TRAIN), (reference.validation, VALIDATION)):
        assert profile.num_rows == (split == part).sum()
        clicks = np.asarray(prepared.interactions.labels)[split == part].sum()
        assert profile.columns["label"].counts.sum(axis=0)[1] == clicks
        assert profile.span is not None
    assert reference.training.span[1] <= reference.validation.span[0] + 1
    assert reference.training.columns["user.user_id"].unseen.sum() == 0


def test_scores_of_the_validation_part_are_those_of_the_ranker(tiny_run) -> None:
    """Platt scaling makes the probabilities of the validation part add up to its clicks."""
    bundle, run = open_bundle(tiny_run.bundle), load_run(tiny_run.run)
    data = catalogue_only(run.prepared)
    scored = score_validation(bundle.folder, data, run.pipeline)
    assert scored is not None
    assert len(scored.rows) > 200
    labels = np.asarray(data.interactions.labels)[scored.rows]
    assert scored.scores.mean() == pytest.approx(labels.mean(), abs=2e-3)
    assert np.unique(scored.scores).size > 100
    fewer = score_validation(bundle.folder, data, run.pipeline, max_rows=50)
    assert fewer is not None
    assert len(fewer.rows) == 50
    places = np.searchsorted(scored.rows, fewer.rows)
    assert np.allclose(fewer.scores, scored.scores[places], atol=1e-6)
    column = Reference.of(bundle).validation.columns["score"]
    assert column.counts.sum() == column.rows.sum() == len(scored.rows)
    assert Reference.of(bundle).training.columns["score"].rows.sum() == 0


def test_a_flat_click_table_has_a_reference_without_users(click_run) -> None:
    reference = Reference.of(open_bundle(click_run.bundle))
    assert reference.training.num_rows == 300
    assert reference.validation.columns["score"].counts.sum() == 50
    assert len(reference.training.exposures) == 0
    assert np.count_nonzero(reference.training.rows) == 256
    form = window_form(reference)
    assert form.required == ("site", "price")
    assert form.id_types == {}


def test_a_bundle_without_a_ranker_has_no_scores(csv_run) -> None:
    bundle = open_bundle(csv_run.bundle)
    reference = Reference.of(bundle)
    assert "score" not in reference.training.bins
    assert "label" not in reference.training.bins
    form = window_form(reference)
    assert form.label is None
    assert {name: str(kind) for name, kind in form.id_types.items()} == {
        "user_id": "int64",
        "item_id": "string",
    }
    data = catalogue_only(load_run(csv_run.run).prepared)
    assert score_validation(bundle.folder, data, bundle.pipeline) is None


def test_the_same_data_gives_the_same_bins_and_counts(small) -> None:
    again = make_reference(small.prepared, small.pipeline)
    assert again.training.digest() == small.reference.training.digest()
    for name, column in again.training.columns.items():
        assert np.array_equal(column.counts, small.reference.training.columns[name].counts)


def test_a_folder_without_a_reference_says_so(tmp_path) -> None:
    with pytest.raises(DataError, match=r"holds no reference/training.npz; export the run again"):
        Reference.load(tmp_path)


def test_bins_do_not_depend_on_how_many_rows_are_looked_at_together(small, monkeypatch) -> None:
    monkeypatch.setattr("twotower.monitoring.lay_bins.BLOCK_ROWS", 777)
    again = make_reference(small.prepared, small.pipeline)
    assert again.training.digest() == small.reference.training.digest()
    for name, column in again.validation.columns.items():
        assert np.array_equal(column.counts, small.reference.validation.columns[name].counts)


def test_a_long_log_is_sampled_for_the_edges(small, monkeypatch) -> None:
    monkeypatch.setattr("twotower.monitoring.lay_bins.SAMPLE_ROWS", 2000)
    sampled = make_reference(small.prepared, small.pipeline)
    counts = sampled.training.columns["context.speed"].counts.sum(axis=0)
    assert counts.sum() == small.reference.training.columns["context.speed"].counts.sum()
    assert counts.max() < 3 * counts.mean()  # bins of about equal weight all the same
