"""Contents of tensors as JSON and as binary data, byte by byte."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twotower.export.recommender_tensors import TensorSpec
from twotower.serving.protocol_tensors import (
    ProtocolError,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

TEXT = TensorSpec("history", "BYTES", -1, "")
WHOLE = TensorSpec("k", "INT64", 1, "")
NUMBER = TensorSpec("seconds", "FP64", 1, "")


def test_texts_in_binary_have_their_length_before_them() -> None:
    data = b"\x02\x00\x00\x00ab\x00\x00\x00\x00\x02\x00\x00\x00\xc3\xa9"
    assert from_binary(TEXT, (1, 3), data).tolist() == [[b"ab", b"", "é".encode()]]
    assert from_binary(TEXT, (3, 1), data).tolist() == [[b"ab"], [b""], ["é".encode()]]
    assert to_binary("BYTES", np.array([["ab", "", "é"]], object)) == data


def test_numbers_in_binary_are_little_endian() -> None:
    whole = b"\x01\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff\xff\xff\xff\xff"
    assert from_binary(WHOLE, (2, 1), whole).tolist() == [[1], [-2]]
    assert to_binary("INT64", np.array([[1], [-2]])) == whole
    assert to_binary("INT64", np.array([[1], [-2]], ">i8")) == whole
    number = b"\x00\x00\x00\x00\x00\x00\xf8\x3f"  # 1.5: sign 0, exponent 1023, fraction .1
    assert from_binary(NUMBER, (1, 1), number).tolist() == [[1.5]]
    assert to_binary("FP32", np.array([[1.5]], np.float32)) == b"\x00\x00\xc0\x3f"
    assert to_binary("BOOL", np.array([[True], [False]])) == b"\x01\x00"


@pytest.mark.parametrize(
    ("spec", "shape", "data", "message"),
    [
        (TEXT, (1, 1), b"\x05\x00\x00\x00ab", "history: its binary data end within a text"),
        (TEXT, (1, 1), b"\x05\x00", "history: its binary data end within the length of a text"),
        (TEXT, (1, 2), b"\x00\x00\x00\x00", r"history: 1 texts, its shape \[1, 2\] asks for 2"),
        (TEXT, (1, 0), b"\x00\x00\x00\x00", r"history: 1 texts, its shape \[1, 0\] asks for 0"),
        (TEXT, (1, 1), b"\xff\xff\xff\xff", "history: its binary data end within a text"),
        (WHOLE, (1, 1), b"\x00" * 4, r"k: 4 bytes, its shape \[1, 1\] asks for 8"),
        (WHOLE, (2, 1), b"\x00" * 8, r"k: 8 bytes, its shape \[2, 1\] asks for 16"),
        (NUMBER, (1, 1), b"", r"seconds: 0 bytes, its shape \[1, 1\] asks for 8"),
    ],
)
def test_binary_data_that_do_not_fit(spec, shape, data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{message}$") as error:
        from_binary(spec, shape, data)
    assert error.value.status == 400


@pytest.mark.parametrize("data", [["a", "b", "c", "d"], [["a", "b"], ["c", "d"]]])
def test_json_is_flat_or_in_rows(data: list) -> None:
    assert from_json(TEXT, (2, 2), data).tolist() == [["a", "b"], ["c", "d"]]


def test_json_of_every_type() -> None:
    assert from_json(WHOLE, (2, 1), [2**63 - 1, -(2**63)]).dtype == np.int64
    assert from_json(NUMBER, (2, 1), [1, 1.5]).tolist() == [[1.0], [1.5]]
    assert from_json(TEXT, (1, 0), []).shape == (1, 0)


@pytest.mark.parametrize(
    ("spec", "shape", "data", "message"),
    [
        (TEXT, (1, 1), None, "history: data must be a list, got None"),
        (TEXT, (1, 1), {"a": 1}, r"history: data must be a list, got \{'a': 1\}"),
        (TEXT, (1, 2), ["a"], r"history: 1 values, its shape \[1, 2\] asks for 2"),
        (TEXT, (1, 0), ["a"], r"history: 1 values, its shape \[1, 0\] asks for 0"),
        (TEXT, (2, 1), [["a", "b"]], r"history: its data are not of its shape \[2, 1\]"),
        (TEXT, (2, 2), [["a"], ["b", "c", "d"]], "history: its data are not of its shape .*"),
        (TEXT, (1, 1), [[["a"]]], r"history: \['a'\] is no BYTES"),
        (TEXT, (1, 1), [1], "history: 1 is no BYTES"),
        (TEXT, (1, 1), [None], "history: None is no BYTES"),
        (WHOLE, (1, 1), ["1"], "k: '1' is no INT64"),
        (WHOLE, (1, 1), [1.0], "k: 1.0 is no INT64"),
        (WHOLE, (1, 1), [True], "k: True is no INT64"),
        (WHOLE, (1, 1), [2**63], "k: 9223372036854775808 is no INT64"),
        (NUMBER, (1, 1), [True], "seconds: True is no FP64"),
        (NUMBER, (1, 1), [math.inf], "seconds: inf is no FP64"),
        (NUMBER, (1, 1), [10**400], "seconds: 1000.* is no FP64"),
    ],
)
def test_json_that_does_not_fit(spec, shape, data: object, message: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{message}$"):
        from_json(spec, shape, data)


def test_json_goes_out_flat_and_without_nan() -> None:
    assert to_json(np.array([[1.5, math.nan], [-math.inf, 0]], np.float32)) == [1.5, None, None, 0]
    assert to_json(np.array([["a", ""]], object)) == ["a", ""]
    assert to_json(np.array([[2**63 - 1]])) == [2**63 - 1]
    assert to_json(np.array([[True], [False]])) == [True, False]
