"""What went wrong, in one sentence for whoever can mend it: settings, files, disk, memory, extras.

A full disk and a lack of memory come out of the libraries in many forms: with a number of the
operating system, as text of NumPy, PyTorch or ONNX Runtime, or as the cause of another error.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError

from twotower.config import Refused

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATH_ERRORS = {
    errno.ENOENT: "no such file or folder",
    errno.EEXIST: "is there already, and is no folder; name another place or move it away",
    errno.EISDIR: "is a folder, where a file is needed",
    errno.ENOTDIR: "cannot be reached: a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EACCES: "permission denied; allow this user to read and write there, or name another "
    "place",
    errno.EPERM: "permission denied; allow this user to read and write there, or name another "
    "place",
    errno.EROFS: "the file system is read-only; name another place",
}
# NumPy, torch.save and Arrow say so where a number of the operating system is lost.
DISK_TEXT = re.compile(
    r"\d+ requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+|iostream error"
    r"|No space left|File too large"
)
MEMORY_TEXT = re.compile(
    r"can't allocate memory|out of memory|Failed to allocate memory|bad_alloc|bad allocation"
)
THREAD_TEXT = "can't start new thread"
ASKED = re.compile(r"(?:allocate|Unable to allocate) (?P<size>[\d.]+ ?(?:bytes|[KMGTP]i?B))")


def sentence(error: BaseException) -> str | None:
    """What to tell the user.

    Args:
        error: What a command raised.

    Returns:
        A sentence, or several lines of them; None for a fault of the program.
    """
    if isinstance(error, InterpolationResolutionError):  # A resolver of ours refused its arguments.
        causes = [one for one in _chain(error) if isinstance(one, OSError)]
        if causes and (found := sentence(causes[0])) is not None:
            return found
        return str(error).splitlines()[0].rpartition("interpolation: ")[2]
    if isinstance(error, Refused | ValueError | HydraException):
        return str(error)
    if isinstance(error, ImportError) and error.name is None:  # raised by us, with what to install
        return str(error)
    for one in _chain(error):
        if (found := _disk(one) or _memory(one) or _thread(one)) is not None:
            return found
    if isinstance(error, OSError) and error.errno in PATH_ERRORS:
        about = PATH_ERRORS[error.errno]
        return about if error.filename is None else f"{_text(error.filename)}: {about}"
    return str(error) if isinstance(error, FileNotFoundError) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _disk(error: BaseException) -> str | None:
    is_number = isinstance(error, OSError) and error.errno in NO_SPACE
    if not is_number and not (isinstance(error, OSError | RuntimeError) and _says(error)):
        return None
    name = getattr(error, "filename", None)
    where = "a file cannot be written" if name is None else f"{_text(name)}: cannot be written"
    why = "no space is left on the device"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        why = "it is larger than this user may write (`ulimit -f`) or the file system allows"
    return f"{where}: {why}; make room, or write to another place (output_dir, prepared_dir)"


def _says(error: BaseException) -> bool:
    return DISK_TEXT.search(str(error)) is not None


def _memory(error: BaseException) -> str | None:
    said = str(error)
    of_text = isinstance(error, RuntimeError) and MEMORY_TEXT.search(said) is not None
    if not of_text and not isinstance(error, MemoryError):
        return None
    asked = ASKED.search(said)
    what = "" if asked is None else f" for {asked['size']} more"
    where = "the GPU's memory" if "CUDA" in said else "memory"
    return (
        f"there is not enough {where}{what}; take smaller batches (training.<stage>.batch_size), "
        "narrower tables (models.<stage>.embedding_dim) or fewer rows; `twotower plan` says what a "
        "size needs"
    )


def _thread(error: BaseException) -> str | None:
    if not isinstance(error, RuntimeError) or THREAD_TEXT not in str(error):
        return None
    return (
        "a thread could not be started: there is not enough memory for it, or this user has too "
        "many processes (`ulimit -u`)"
    )


def _text(name: str | bytes | int) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
