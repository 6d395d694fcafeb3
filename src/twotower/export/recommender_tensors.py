"""The tensors of the model ``recommender``, the same in Triton and in the server of this package.

The inputs are the fields of a request and the outputs those of an answer, under the same names
(`twotower.serving.requests`). The first dimension of every tensor is the requests of a call.

Ids are text whatever the bundle holds: an integer is spelled out. Empty text, in an id, a history
or a field of JSON, stands for nothing: nobody known, padding, the default.

Shape letters: B requests of a call, L length of a history, k items shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Datatype: TypeAlias = Literal["BYTES", "BOOL", "INT64", "FP32", "FP64"]

MODEL = "recommender"
MAX_ROWS = 64  # requests of one call
ANY = -1  # width of a tensor whose length a call decides


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of shape (B, width).

    Args:
        name: Its name.
        datatype: As the Open Inference Protocol calls it; texts are ``BYTES`` in UTF-8.
        width: Second dimension, or `ANY`.
        about: What it means.
    """

    name: str
    datatype: Datatype
    width: int
    about: str


INPUTS = (
    TensorSpec("user", "BYTES", 1, "id of a known user"),
    TensorSpec("history", "BYTES", ANY, "ids of items, oldest first, padded with empty text"),
    TensorSpec("user_features", "BYTES", 1, "JSON object: values by column of an unknown user"),
    TensorSpec("context", "BYTES", 1, "JSON object: values of context columns by name"),
    TensorSpec("k", "INT64", 1, "how many items; 10 when it is left out"),
    TensorSpec("filters", "BYTES", 1, "JSON list of {column, operator, values}"),
    TensorSpec("seconds", "FP64", 1, "time of the request, seconds since 1970 UTC; NaN for now"),
)
OUTPUTS = (
    TensorSpec("item_id", "BYTES", ANY, "ids, best first, padded with empty text to the largest k"),
    TensorSpec("title", "BYTES", ANY, "titles, or ids where there is none"),
    TensorSpec("probability", "FP32", ANY, "of the ranker; NaN where there is none"),
    TensorSpec("retrieval_score", "FP32", ANY, "of the two towers; NaN where there is none"),
    TensorSpec("retrieval_rank", "INT64", ANY, "place among the candidates; 0 where there is none"),
    TensorSpec("reason", "BYTES", ANY, "why an item is shown, in words"),
    TensorSpec("missing", "INT64", 1, "how many of the k there is no item for"),
    TensorSpec("source", "BYTES", 1, "`model`, or `popular` where nothing is known of the user"),
    TensorSpec("version", "BYTES", 1, "of the bundle that answered"),
    TensorSpec("known_user", "BOOL", 1, "whether a user was named and the bundle knows them"),
)
