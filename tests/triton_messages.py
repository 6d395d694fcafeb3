"""Triton's own messages, to read a ``config.pbtxt`` as Triton reads it.

The definitions come with the client. Its package of gRPC, in which they lie, is not needed for them
and is not imported.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import text_format


def messages() -> ModuleType:
    """The module that was made of NVIDIA's ``model_config.proto``."""
    (folder,) = find_spec("tritonclient").submodule_search_locations
    spec = spec_from_file_location("model_config_pb2", Path(folder) / "grpc/model_config_pb2.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MESSAGES = messages()


def parse(text: str) -> Any:
    """A ``ModelConfig``; an unknown field or value is an error."""
    return text_format.Parse(text, MESSAGES.ModelConfig())
