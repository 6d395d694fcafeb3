"""What a bundle says about itself: ``manifest.json``, the names of its files, and their digests.

The manifest lists every file of the bundle with its digest and carries a digest of itself, so that
one byte that is changed anywhere shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from twotower.data.prepared import checksum
from twotower.data.workers import Threads

FORMAT = 4

MANIFEST = "manifest.json"
CURRENT = "current"
STAGING_PREFIX = ".staging-"
LINK_PREFIX = ".current-"
LOCK = ".lock"
PUBLISHED = ".published"  # versions in the order of their publication, one a line

FEATURES = "features"
ITEMS = "items"
USERS = "users"
TABLE = "table.arrow"
COLUMNS = "columns.rows"  # no `.npy`, which is what a feature could be called
EVENTS = "events"
INDEX = "index"
TOWER = "index/tower.json"
ITEM_VECTORS = "item_vectors.npy"
POPULAR = "popular.npy"
GOLDEN = "golden.npz"
QUERY_TOWER = "query_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
RANKER = "ranker.onnx"
SCREEN = "ranker_int8.onnx"

DIGEST = "digest"
EMPTY_DIGEST = '""\n}'  # how a manifest ends whose digest is not known yet
TOWER_HASH = "tower_hash"
SPACE = "space"


class BundleError(ValueError):
    """A bundle that cannot be read or written; one message lists all that is wrong with it.

    Args:
        problems: One sentence each: file, what was found, what was expected.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Facts about a bundle.

    Args:
        format: Version of the form of bundles.
        name: Name under which the bundle is published.
        version: Its version, the time of the export; unique under the name.
        created: Time of the export, ISO 8601, UTC.
        stages: ``retrieval``, ``ranking`` or both.
        metric: ``cosine`` or ``dot``; None without a retrieval stage.
        dim: Width of the vectors; None without a retrieval stage.
        tower_hash: Digest of both towers, which the index must name too; None without towers.
        feature_digest: Digest of the feature pipeline.
        calibration: ``negative_rate`` of the ranker's examples, ``scale`` and ``bias`` between its
            logits and its probabilities; None without a ranker.
        num_candidates: How many items the retrieval hands to the ranker; None without retrieval.
        retrieval_score: Whether the ranker takes the retrieval's score.
        ranker_precision: ``float32``, or ``int8`` where a ranker of 8-bit integers screens the
            candidates; None without a ranker.
        remove_seen: Whether items that a user took before are kept out of the recommendations.
        counts: Numbers of ``items``, ``users`` and ``events``, None where there are none.
        index: Kind and settings of the index in words; None without a retrieval stage.
        prepared: ``folder`` and ``fingerprint`` of the prepared data set.
        figures: Metrics of the run and of the export by name; None where one is not a number.
        gates: The gates that the bundle was held against, field by field.
        files: Digest of every other file by its path in the bundle.
        space: Name of the space that the vectors lie in: vectors of another bundle may be compared
            with these where it is the same. None without a retrieval stage, and where a bundle does
            not say.
        run: Folder of the run that was exported; None where a bundle does not say.
    """

    format: int
    name: str
    version: str
    created: str
    stages: tuple[str, ...]
    metric: str | None
    dim: int | None
    tower_hash: str | None
    feature_digest: str
    calibration: Mapping[str, float] | None
    num_candidates: int | None
    retrieval_score: bool
    ranker_precision: str | None
    remove_seen: bool
    counts: Mapping[str, int | None]
    index: str | None
    prepared: Mapping[str, str]
    figures: Mapping[str, float | None]
    gates: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]
    space: str | None = None
    run: str | None = None

    def to_bytes(self) -> bytes:
        """JSON with the digest of itself, which is taken while its own place is empty."""
        document = asdict(self)
        document["figures"] = {name: _number(value) for name, value in self.figures.items()}
        text = json.dumps({**document, DIGEST: ""}, indent=1, allow_nan=False)
        head, tail = text[: -len(EMPTY_DIGEST)], text[-len(EMPTY_DIGEST) :]
        return (head + tail.replace('""', f'"{_digest(text.encode())}"')).encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version folder.

    Raises:
        BundleError: When there is none, it is of another format, or it was changed.
    """
    path = folder / MANIFEST
    try:
        written = path.read_bytes()
    except OSError as error:
        raise BundleError([f"{folder}: no bundle here (no {MANIFEST})"]) from error
    try:
        document = json.loads(written)
    except ValueError as error:
        raise BundleError([f"{path}: not readable JSON: {error}"]) from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise BundleError([f"{path}: format version {found!r}, this release reads {FORMAT}"])
    digest = document.pop(DIGEST, None)
    if not isinstance(digest, str) or digest != _digest(written.replace(digest.encode(), b"")):
        raise BundleError([f"{path}: changed since it was written; export the run again"])
    manifest = Manifest(**document | {"stages": tuple(document["stages"])})
    problems = [
        f"{path}: `{key}` names folders and must be a relative path without `..`, got {value!r}"
        for key, value in (("name", manifest.name), ("version", manifest.version))
        if not is_inside(value)
    ]
    if problems:
        raise BundleError(problems)
    return manifest


def is_inside(name: object) -> bool:
    """Whether a name that is put behind the path of a folder stays within that folder.

    Example:
        >>> is_inside("team/shop"), is_inside("../shop"), is_inside("/etc"), is_inside("")
        (True, False, False, False)
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path != PurePosixPath(".")


def link_problems(folder: Path) -> list[str]:
    """What of a bundle is no file and no folder of its own.

    Args:
        folder: The version folder.
    """
    return [
        f"{path}: is a link; a bundle holds its files itself, or they could lie anywhere"
        for path in sorted(folder.rglob("*"))
        if path.is_symlink()
    ]


def tower_hash(query_tower: str, item_tower: str) -> str:
    """Digest of both towers, given the digests of their files."""
    return _digest(f"{query_tower}{item_tower}".encode())


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file under a folder but the manifest, by its path, in order.

    Files are shared out to all cores.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    files = {name: p for name, p in paths.items() if p.is_file() and name != MANIFEST}
    # The largest first, so that no thread begins with it when the others are done.
    names = sorted(files, key=lambda name: -files[name].stat().st_size)
    digests = Threads().map(checksum, [files[name] for name in names])
    return dict(sorted(zip(names, digests, strict=True)))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def file_problems(folder: Path, manifest: Manifest, digests: Mapping[str, str]) -> list[str]:
    """What differs between the files of a bundle and those that its manifest lists.

    Args:
        folder: The version folder.
        manifest: Its manifest.
        digests: Of the files that are there, by name.
    """
    listed = manifest.files
    return [
        f"{folder / name}: {problem}"
        for name in sorted({*listed, *digests})
        if (problem := _problem(listed.get(name), digests.get(name)))
    ]


def _problem(expected: str | None, found: str | None) -> str | None:
    if found is None:
        return "missing"
    if expected is None:
        return f"not listed in {MANIFEST}"
    return None if found == expected else "changed since it was written"
