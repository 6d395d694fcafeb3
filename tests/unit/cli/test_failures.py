"""What is said of a full disk, of too little memory, and of files in the way."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch

from twotower.cli.failures import sentence


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "a.csv: no such file or folder"),
        (errno.EEXIST, "a.csv: is there already, and is no folder; name another place or move"),
        (errno.ENOTDIR, "a.csv: cannot be reached: a part of the path is a file, not a folder"),
        (errno.EISDIR, "a.csv: is a folder, where a file is needed"),
        (errno.EROFS, "a.csv: the file system is read-only; name another place"),
        (errno.EACCES, "a.csv: permission denied; allow this user"),
        (errno.ENOSPC, "a.csv: cannot be written: no space is left on the device; make room"),
        (errno.EDQUOT, "a.csv: cannot be written: no space is left on the device; make room"),
        (errno.EFBIG, "a.csv: cannot be written: it is larger than this user may write"),
    ],
)
def test_an_error_of_the_operating_system(number, words):
    assert sentence(OSError(number, "text", "a.csv")).startswith(words)


def test_a_full_disk_without_a_name_or_a_number():
    assert sentence(OSError(errno.ENOSPC, "No space left")).startswith("a file cannot be written")
    assert "no space is left" in sentence(OSError("128 requested and 16 written"))  # NumPy
    assert "no space is left" in sentence(
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 70400 vs 70352")
    )


def test_a_full_disk_as_the_cause_of_another_error():
    def fails():
        try:
            raise OSError(errno.ENOSPC, "No space left", "last.ckpt")
        except OSError:
            raise KeyError("archive") from None

    with pytest.raises(KeyError) as caught:
        fails()
    assert sentence(caught.value).startswith("last.ckpt: cannot be written")


def test_memory_that_numpy_asks_for():
    with pytest.raises(MemoryError) as caught:
        np.empty((1 << 46,), np.float64)
    said = sentence(caught.value)
    assert said.startswith("there is not enough memory for 512. TiB more; take smaller batches")


def test_memory_that_torch_asks_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    said = sentence(caught.value)
    assert said.startswith(f"there is not enough memory for {4 << 50} bytes more")
    assert "the GPU's memory" in sentence(RuntimeError("CUDA out of memory. Tried to allocate"))


def test_a_thread_for_which_there_is_no_room():
    """As the standard library says it, under a limit of the address space that leaves no stack."""
    script = (
        "import resource, threading; from twotower.cli.failures import sentence\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))\n"
        "try: threading.Thread(target=print).start()\n"
        "except RuntimeError as error: print(sentence(error))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.startswith("a thread could not be started: there is not enough memory for it")


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("b"), OSError(errno.EIO, "c")])
def test_a_fault_of_the_program_is_none_of_the_user(error):
    assert sentence(error) is None


def test_a_package_that_is_missing_says_what_to_install():
    assert sentence(ImportError("install `twotower[cpu]`")) == "install `twotower[cpu]`"
    assert sentence(ModuleNotFoundError("No module named 'x'", name="x")) is None
