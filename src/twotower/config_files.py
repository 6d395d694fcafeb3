"""YAML files that are read back: the config of a run, a feature spec of a person or of ``auto``.

OmegaConf reads them, never PyYAML, which takes ``1e-3`` for text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from twotower.features.infer import GivenSpec
from twotower.features.spec import spec_from_dict

SPEC_HEADER = """\
# The features of this data set. Edit this file and give it back:
#   twotower train features=file features.path=<this file>
# side: user, item, context   kind: id, categorical, tags, numeric, vector, time
# options: dim, min_count, stages: [retrieval, ranking], log, separator, max_tags
"""


def to_yaml(cfg: DictConfig) -> str:
    """A config as YAML with every interpolation resolved."""
    return OmegaConf.to_yaml(cfg, resolve=True)


def read_yaml(path: Path) -> DictConfig:
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: When there is none, or it is no YAML.
    """
    if not path.is_file():
        raise ValueError(f"no file `{path}`")
    try:
        cfg = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{path}: must hold a mapping of keys to values")
    return cfg


def write_spec(path: Path, spec: dict[str, Any]) -> None:
    """Write a feature spec for a person to edit."""
    text = SPEC_HEADER + OmegaConf.to_yaml(OmegaConf.create(spec))
    path.write_text(text, encoding="utf-8")


def spec_file(path: str) -> GivenSpec:
    """A feature spec from a file, for ``features=file``.

    Args:
        path: A file as `write_spec` writes it.

    Raises:
        ValueError: When the file cannot be read; lists every wrong key and value.
    """
    cfg = read_yaml(Path(path))
    try:
        document = OmegaConf.to_container(cfg, resolve=True)
        return GivenSpec(given=spec_from_dict(document))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
