"""What can be filtered by at a click, on tables written down by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest

from twotower.serving import page_filters
from twotower.serving.page_filters import MAX_DIFFERENT, Choices, Range, filter_columns


def offered(**columns: object) -> list[Choices | Range]:
    return filter_columns(pa.table(columns))


def counts(found: list[Choices | Range]) -> dict[str, dict[object, int]]:
    return {one.column: {c.value: c.count for c in one.choices} for one in found}


def test_ids_and_titles_are_not_offered() -> None:
    found = offered(item_id=["a", "b"], title=["A", "B"], country=["SE", "FR"])
    assert [one.column for one in found] == ["country"]


def test_texts_are_counted_and_the_most_frequent_come_first() -> None:
    (found,) = offered(country=["SE", "FR", None, "FR", "NO", "FR", "SE"])
    assert [(one.value, one.count) for one in found.choices] == [("FR", 3), ("SE", 2), ("NO", 1)]
    assert found.num_different == 3


def test_a_value_twice_in_a_list_is_one_item() -> None:
    found = offered(tags=[["x", "y", "x"], ["y"], [], None, [None, "z"]])
    assert counts(found) == {"tags": {"y": 2, "x": 1, "z": 1}}


def test_text_that_a_feature_splits_is_counted_by_tag() -> None:
    table = pa.table({"genres": ["Action|War", "War", None, "Drama|Action|War"]})
    assert counts(filter_columns(table, {"genres": "|"})) == {
        "genres": {"War": 3, "Action": 2, "Drama": 1}
    }


def test_lists_of_several_chunks_count_as_those_of_one() -> None:
    chunks = [[["x"], ["y", "x"]], [["y"], ["x"]], [["y", "z"]]]
    table = pa.table({"tags": pa.chunked_array(chunks)})
    assert counts(filter_columns(table)) == {"tags": {"x": 3, "y": 3, "z": 1}}


def test_truth_values_and_few_whole_numbers_keep_their_type() -> None:
    found = offered(in_stock=[True, False, True], stars=[5, 4, 5])
    assert counts(found) == {"in_stock": {True: 2, False: 1}, "stars": {5: 2, 4: 1}}
    assert [type(c.value) for one in found for c in one.choices] == [bool, bool, int, int]


def test_many_whole_numbers_are_a_range() -> None:
    assert offered(year=list(range(1990, 2020))) == [Range(column="year", low=1990, high=2019)]


def test_numbers_are_a_range_of_what_is_finite() -> None:
    found = offered(price=[3.5, None, float("nan"), float("inf"), 0.25])
    assert found == [Range(column="price", low=0.25, high=3.5)]


def test_dictionaries_are_read() -> None:
    column = pa.array(["SE", "FR", "SE"]).dictionary_encode()
    assert counts(offered(country=column)) == {"country": {"SE": 2, "FR": 1}}


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["one value"] * 3),
        pa.array([2.5] * 3),
        pa.array([None] * 3, pa.string()),
        pa.array([None] * 3, pa.float64()),
        pa.array([f"text {row}" for row in range(MAX_DIFFERENT + 1)]),
        pa.array([["x" * 61], ["y"]]),
        pa.array([[0.5, 1.5]] * 3, pa.list_(pa.float32(), 2)),
        pa.array([{"a": 1}] * 3),
        pa.array([0, 1, 2], pa.timestamp("us")),
        pa.array([], pa.string()),
        pa.array([], pa.float32()),
    ],
)
def test_what_leaves_nothing_to_choose_is_left_out(column: pa.Array) -> None:
    assert offered(column=column) == []


def test_a_list_of_choices_is_cut_and_says_so() -> None:
    texts = [f"t{n}" for n in range(40) for _ in range(n + 1)]
    (found,) = offered(tag=texts)
    assert [one.value for one in found.choices] == [f"t{n}" for n in range(39, 15, -1)]
    assert found.num_different == 40


def test_a_column_of_many_texts_is_told_from_its_beginning(monkeypatch) -> None:
    looked = []

    def counted(column):
        looked.append(len(column))
        return real(column)

    real = page_filters._counted
    monkeypatch.setattr(page_filters, "_counted", counted)
    assert offered(text=[f"text {row}" for row in range(50_000)]) == []
    assert looked == [page_filters.LOOK_ROWS]
