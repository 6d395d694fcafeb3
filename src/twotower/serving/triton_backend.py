"""Triton's Python backend around `Recommender`, for the model ``recommender`` of a repository.

The ``model.py`` of the repository hands in ``triton_python_backend_utils``, which exists only in
Triton's own process. Requests that Triton has gathered are answered in one pass; what is wrong with
one of them is the error of its own response.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twotower.export.bundle import open_bundle
from twotower.export.recommender_tensors import OUTPUTS
from twotower.serving.recommender import Recommender
from twotower.serving.replies import Reply, reply_to
from twotower.serving.requests import Request, RequestError
from twotower.serving.tensors import requests_of, tensors_of

Array = npt.NDArray[Any]


class TritonTensor(Protocol):
    """A tensor of Triton."""

    def name(self) -> str:
        """Its name."""
        ...

    def as_numpy(self) -> Array:
        """Its values (B, ...); texts as bytes."""
        ...


class TritonRequest(Protocol):
    """A request of Triton, one or several rows."""

    def inputs(self) -> Sequence[TritonTensor]:
        """Those of the inputs that were given."""
        ...

    def requested_output_names(self) -> Collection[str]:
        """Which outputs are wanted."""
        ...


class TritonModule(Protocol):
    """What is used of ``triton_python_backend_utils``."""

    Tensor: Any
    InferenceResponse: Any
    TritonError: Any


class TritonBackend:
    """Answers the requests that Triton hands over.

    Args:
        folder: The bundle; every file is compared with its digest.
        triton: The module ``triton_python_backend_utils``.

    Raises:
        ValueError: When the bundle is damaged or cannot recommend.
    """

    def __init__(self, folder: Path, triton: TritonModule) -> None:
        self.recommender = Recommender(open_bundle(folder))
        self._triton = triton

    def execute(self, requests: Sequence[TritonRequest]) -> list[object]:
        """Responses in the order of the requests.

        Args:
            requests: What Triton's batcher has put together.
        """
        calls = [_read(request) for request in requests]
        asked = [one for call in calls if not isinstance(call, RequestError) for one in call]
        replies = iter(reply_to(self.recommender, asked) if asked else [])
        return [
            self._response(request, call, replies)
            for request, call in zip(requests, calls, strict=True)
        ]

    def _response(
        self,
        request: TritonRequest,
        call: list[Request] | RequestError,
        replies: Iterator[Reply | RequestError],
    ) -> object:
        if isinstance(call, RequestError):
            return self._failed(call)
        own = list(islice(replies, len(call)))
        try:
            outputs = tensors_of(call, own)
        except RequestError as error:
            return self._failed(error)
        wanted = request.requested_output_names()
        names = [spec.name for spec in OUTPUTS if spec.name in wanted]
        return self._triton.InferenceResponse(
            output_tensors=[self._triton.Tensor(name, outputs[name]) for name in names]
        )

    def _failed(self, error: RequestError) -> object:
        kind = self._triton.TritonError
        return self._triton.InferenceResponse(
            output_tensors=[], error=kind(str(error), kind.INVALID_ARG)
        )


def _read(request: TritonRequest) -> list[Request] | RequestError:
    inputs: Mapping[str, Array] = {
        tensor.name(): np.asarray(tensor.as_numpy()) for tensor in request.inputs()
    }
    try:
        return requests_of(inputs)
    except RequestError as error:
        return error
