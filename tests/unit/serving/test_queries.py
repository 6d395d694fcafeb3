"""Encoded requests equal the columns that training saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twotower.cli.load_run import LoadedRun
from twotower.data.batches import ColumnNames, Columns
from twotower.data.schema import Tables
from twotower.serving.queries import encode_context, encode_user, history_columns

SECOND = 1_000_000


@pytest.mark.parametrize("length", [1, 3, 50])
def test_history_equals_that_of_training(loaded: LoadedRun, length: int) -> None:
    events, users, items = loaded.prepared.require_events()
    names = list(items.columns)  # numbers, several a row, vectors, and the id
    trained = Columns(
        loaded.prepared,
        ColumnNames(
            user=[], item=[], context=[], history=names, history_length=length, history_times=True
        ),
        torch.device("cpu"),
    )
    rng = np.random.default_rng(length)
    user_rows = np.concatenate([np.arange(len(users)), np.arange(len(users))])
    starts, ends = events.offsets[user_rows], events.offsets[user_rows + 1]
    ends = np.concatenate([ends[: len(users)], rng.integers(starts, ends + 1)[len(users) :]])
    assert (ends == starts).any()  # somebody without a history
    assert (ends - starts > length).any() or length == 50

    times = loaded.prepared.event_times
    found = history_columns(events.item_rows, times, starts, ends, items.columns, names, length)
    expected = trained.history(torch.from_numpy(user_rows), torch.from_numpy(ends))
    assert found.keys() == expected.keys() >= {"history.time"}
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column.numpy(), err_msg=name)


def test_history_by_hand() -> None:
    columns = {"genre": np.array([[7, 0], [8, 9], [5, 6]], np.int32), "size": np.array([1.5, 2, 3])}
    item_rows = np.array([2, 0, 1, 1])  # of two users: 2 0 | 1 1
    found = history_columns(
        *(item_rows, np.array([11, 12, 21, 22])),
        *(np.array([0, 2, 2]), np.array([2, 4, 2]), columns, ["genre", "size"], 3),
    )
    assert found["history.time"].tolist() == [[0, 11, 12], [0, 21, 22], [0, 0, 0]]
    assert found["history.mask"].tolist() == [[False, True, True], [False, True, True], [False] * 3]
    assert found["history.size"].tolist() == [[0, 3, 1.5], [0, 2, 2], [0, 0, 0]]
    assert found["history.genre"].tolist() == [
        [[0, 0], [5, 6], [7, 0]],
        [[0, 0], [8, 9], [8, 9]],
        [[0, 0]] * 3,
    ]
    assert found["history.genre"].dtype == np.int32


def test_no_history() -> None:
    columns = {"size": np.array([1.5])}
    zero = np.zeros(2, np.int64)
    assert history_columns(np.array([0]), None, zero, zero, columns, ["size"], 0) == {}
    assert history_columns(np.array([0]), None, zero, zero, columns, [], 4) == {}
    nothing = np.zeros(0, np.int64)
    empty = history_columns(nothing, nothing, zero, zero, columns, ["size"], 4)
    assert not empty["history.time"].any()
    assert empty["history.size"].tolist() == [[0] * 4] * 2
    assert not empty["history.mask"].any()


def test_context_equals_that_of_training(loaded: LoadedRun, raw: Tables) -> None:
    log = loaded.prepared.interactions
    for row in np.linspace(0, len(log.rows) - 1, 40).astype(int):
        shown = {n: c[0] for n, c in raw.interactions.slice(log.rows[row], 1).to_pydict().items()}
        context = {name: shown[name] for name in raw.context}
        found = encode_context(loaded.pipeline, context, seconds=shown["timestamp"] / SECOND)
        assert found.keys() == log.context.keys()
        for name, column in log.context.items():
            np.testing.assert_array_equal(found[name], column[row : row + 1], err_msg=name)


def test_context_that_is_not_given_is_the_first_slot_and_unknown(loaded: LoadedRun) -> None:
    found = encode_context(loaded.pipeline, {}, seconds=0)
    first = encode_context(loaded.pipeline, {"position": 1, "device": "toaster"}, seconds=0)
    assert found["device"].tolist() == [0]
    assert found["position"].tolist() == first["position"].tolist() != [0]
    other = encode_context(loaded.pipeline, {"position": 2, "device": "phone"}, seconds=0)
    assert other["position"].tolist() != first["position"].tolist()
    assert other["device"].tolist() != [0]


def test_user_equals_that_of_training_but_for_the_id(loaded: LoadedRun, raw: Tables) -> None:
    users = loaded.prepared.users
    for row in range(0, len(users), 9):
        wanted = users.ids[row].as_py()
        described = next(u for u in raw.users.to_pylist() if u["user_id"] == wanted)
        known = encode_user(loaded.pipeline, described)
        del described["user_id"]
        new = encode_user(loaded.pipeline, described)
        assert known.keys() == new.keys() == users.columns.keys()
        for name, column in users.columns.items():
            np.testing.assert_array_equal(known[name], column[row : row + 1], err_msg=name)
            if name != "user_id":
                np.testing.assert_array_equal(new[name], column[row : row + 1], err_msg=name)
        assert new["user_id"].tolist() == [0]


@pytest.mark.parametrize(
    "features",
    [{}, {"country": None, "interests": None}, {"country": "Atlantis", "interests": ["alchemy"]}],
)
def test_a_user_of_whom_nothing_is_known(loaded: LoadedRun, features: dict) -> None:
    found = encode_user(loaded.pipeline, features)
    assert all(not column.any() for column in found.values())
    assert {len(column) for column in found.values()} == {1}


def test_features_of_a_wrong_type_are_named(loaded: LoadedRun) -> None:
    with pytest.raises(ValueError, match="feature `interests` of kind tags: needs lists"):
        encode_user(loaded.pipeline, {"interests": 3})
