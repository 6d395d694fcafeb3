import numpy as np
import pyarrow as pa

from twotower.monitoring.row_hash import row_hashes, text_hashes


def test_equal_rows_have_equal_hashes_however_they_are_cut():
    table = pa.table(
        {
            "a": ["x", "y", "x", None, "", "x"],
            "b": [1, 2, 1, 3, 3, 1],
            "c": [0.0, 1.5, -0.0, None, float("nan"), 0.0],
            "d": [[1, 2], [2], [1, 2], None, [], [1]],
            "e": pa.array([True, False, True, None, False, True]),
        }
    )
    hashes = row_hashes(table)
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 5
    cut = pa.concat_tables([table.slice(4), table.slice(0, 4)])
    assert np.array_equal(row_hashes(cut), np.roll(hashes, 2))
    assert np.array_equal(row_hashes(table.slice(3, 2)), hashes[3:5])


def test_texts_that_share_their_letters_differ():
    texts = ["ab", "ba", "a", "b", "", "aab", "aba", "a\0", "\0", "é", "e"]
    assert len(set(text_hashes(pa.array(texts)).tolist())) == len(texts)


def test_numbers_and_ids_do_not_collide():
    ids = pa.array([f"u{n:07}" for n in range(200_000)])
    assert len(np.unique(text_hashes(ids))) == 200_000
    table = pa.table({"a": np.arange(200_000), "b": np.arange(200_000)[::-1]})
    assert len(np.unique(row_hashes(table))) == 200_000
