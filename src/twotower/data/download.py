"""One file from a public host to a folder: checked by MD5, and whole or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.request
from pathlib import Path

from tqdm import tqdm

from twotower.data.schema import DataError

log = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
MD5 = re.compile(r"\b[0-9a-f]{32}\b")


def fetch(url: str, path: Path, *, md5: str | None) -> None:
    """Download a file, showing progress, and put it in place once its MD5 is right.

    Args:
        url: Where the file is.
        path: Where it goes; its folder is made.
        md5: Published MD5 as 32 hexadecimal digits; None to fetch it from ``<url>.md5``.

    Raises:
        DataError: When the host cannot be reached, the transfer breaks off or the MD5 differs;
            nothing is left behind.
    """
    expected = md5 or published_md5(url)
    log.info("Downloading %s to %s", url, path)
    try:
        received = _fetch(url, path, expected)
    except (OSError, http.client.HTTPException) as error:
        raise DataError([_failed(url, str(error) or type(error).__name__)]) from error
    if received != expected:
        raise DataError([_failed(url, f"its MD5 is {received}, published is {expected}")])
    log.info("Downloaded %s, MD5 %s as published", path, expected)


def published_md5(url: str) -> str:
    """The MD5 that the host publishes in ``<url>.md5``.

    Raises:
        DataError: When there is no such file or no MD5 in it.
    """
    beside = f"{url}.md5"
    try:
        with urllib.request.urlopen(beside, timeout=TIMEOUT_SECONDS) as response:
            text = response.read(CHUNK).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise DataError([_failed(beside, str(error) or type(error).__name__)]) from error
    found = MD5.search(text.lower())
    if found is None:
        raise DataError([_failed(beside, f"no MD5 in it, got {text[:80]!r}")])
    log.info("Published MD5 of %s: %s", url, found.group())
    return found.group()


def md5_of(path: Path) -> str:
    """MD5 of a file as 32 hexadecimal digits."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest()


def _fetch(url: str, path: Path, expected: str) -> str:
    """Copy to a temporary file, rename it when its MD5 is the expected one, return the MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(response.headers.get("Content-Length") or 0)
        part = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name, disable=None)
            with part.open("wb") as stream, bar:
                while block := response.read(CHUNK):
                    stream.write(block)
                    digest.update(block)
                    bar.update(len(block))
                done = stream.tell()
            if done < size:
                raise ConnectionError(f"the transfer broke off after {done} of {size} bytes")
            if digest.hexdigest() == expected:
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return digest.hexdigest()


def _failed(url: str, why: str) -> str:
    return (
        f"cannot download {url}: {why}; try again, or fetch the file by hand and say "
        "data.archive=<file>"
    )
