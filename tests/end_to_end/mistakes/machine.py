"""Mistakes about the machine: disk, rights, memory, GPU, extras, port, network."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.end_to_end.mistakes.around import (
    FaissOfAnotherCuda,
    FaissWithoutGpu,
    LittleMemory,
    NoRights,
    ShortFiles,
    SmallDisk,
    Without,
)
from tests.end_to_end.mistakes.mistake import Mistake, Place
from tests.end_to_end.mistakes.places import FLAT
from tests.end_to_end.mistakes.shop import Tables
from tests.end_to_end.mistakes.words import CPU, asked, training

Words = Callable[[Place], Sequence[str]]
WORLD = ("data.num_users=300", "data.num_items=100", "data.slates_per_user=8")
ARCHIVE = bytes(range(256)) * 64


def preparing(*further: str) -> Words:
    """Good tables, and where they go."""
    return lambda place: ["prepare", *Tables().write(), "quiet=true", *further]


def training_a_world(*further: str) -> Words:
    """A training on the built-in world."""
    return lambda place: ["train", *WORLD, *CPU, *further]


def exporting(*further: str) -> Words:
    return lambda place: ["export", place.run, *FLAT, *further]


def downloading(body: bytes, length: int, published: bytes) -> Words:
    """From a host that answers so; nobody stops it, it ends with the tests."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = f"MD5 (a.zip) = {hashlib.md5(published).hexdigest()}\n".encode()
            found = (text, len(text)) if self.path.endswith(".md5") else (body, length)
            self.send_response(200)
            self.send_header("Content-Length", str(found[1]))
            self.end_headers()
            self.wfile.write(found[0])

        def log_message(self, *_: object) -> None:
            pass

    def words(place: Place) -> list[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"+data.host=http://127.0.0.1:{server.server_port}"
        return ["prepare", "data=movielens", "data.variant=ml-latest-small", host, "quiet=true"]

    return words


def serving_where_somebody_listens(place: Place) -> list[str]:
    global taken
    taken = socket.create_server(("127.0.0.1", 0))
    return ["serve", place.bundle, f"port={taken.getsockname()[1]}", "quiet=true"]


def no_network(place: Place) -> list[str]:
    host = "+data.host=http://127.0.0.1:1"
    return ["prepare", "data=movielens", "data.variant=ml-latest-small", host, "quiet=true"]


MISTAKES = {
    "full disk": [
        Mistake(
            "no room for prepared data",
            preparing("prepared_dir=small/prepared"),
            "no space is left on the device",
            "make room, or write to another place",
            around=SmallDisk("small", "16k"),
        ),
        Mistake(
            "no room for a run",
            training_a_world("hydra.run.dir=small/run"),
            "no space is left on the device",
            "make room, or write to another place",
            around=SmallDisk("small", "200k"),
            leaves=("prepared", "small"),
        ),
        Mistake(
            "no room for a bundle",
            exporting("output_dir=small/bundles"),
            "no space is left on the device",
            "make room, or write to another place",
            around=SmallDisk("small", "100k"),
        ),
        Mistake(
            "no room for lists",
            asked("batch", "output_dir=small/batches", "store=none"),
            "no space is left on the device",
            "make room, or write to another place",
            around=SmallDisk("small", "12k"),
        ),
        Mistake(
            "files of prepared data are too long",
            preparing(),
            "it is larger than this user may write",
            "make room, or write to another place",
            around=ShortFiles(300),
        ),
        Mistake(
            "files of a bundle are too long",
            exporting(),
            "larger than this user may write",
            "make room, or write to another place",
            around=ShortFiles(2_000),
        ),
    ],
    "rights": [
        Mistake(
            "prepared data in a folder of somebody else",
            preparing("prepared_dir=theirs/prepared"),
            "theirs/prepared: permission denied",
            "allow this user to read and write there, or name another place",
            around=NoRights("theirs"),
        ),
        Mistake(
            "a bundle in a folder of somebody else",
            exporting("output_dir=theirs"),
            "theirs/tiny: permission denied",
            "allow this user to read and write there, or name another place",
            around=NoRights("theirs"),
        ),
        Mistake(
            "a run on a disk that is read-only",
            training_a_world("hydra.run.dir=theirs/run", "prepared_dir=theirs/prepared"),
            "theirs/",
            "the file system is read-only; name another place",
            around=SmallDisk("theirs", read_only=True),
        ),
    ],
    "memory": [
        Mistake(
            "tables that are too wide",
            training_a_world("models.retrieval.embedding_dim=4000000"),
            "there is not enough memory",
            "models.<stage>.embedding_dim",
            around=LittleMemory(2**30),  # threads of the data take half of it
            leaves=("prepared",),
        ),
        Mistake(
            "a world that is too large",
            lambda place: ["prepare", "data.num_users=3000000", "quiet=true"],
            "there is not enough memory",
            "fewer rows",
            around=LittleMemory(2**28),
        ),
    ],
    "GPU": [
        Mistake(
            "a GPU where there is none",
            training("trainer.accelerator=gpu"),
            "trainer: `accelerator` is gpu but torch sees none",
            "`twotower doctor` says why, and auto or cpu train without",
        ),
        Mistake(
            "a GPU by another name",
            training("trainer.accelerator=cuda"),
            "got 'cuda'",
            "must be one of 'auto', 'cpu', 'gpu'",
        ),
        Mistake(
            "an index on a GPU, with FAISS of the CPU",
            exporting("index.device=gpu"),
            "index: device=gpu cannot be used: this FAISS is a CPU build",
            "the extra `twotower[gpu]` has a GPU build",
        ),
        Mistake(
            "an index on a GPU that is not there",
            exporting("index.device=gpu"),
            "index: device=gpu cannot be used: FAISS sees no GPU",
            "`twotower doctor` says why",
            around=FaissWithoutGpu(),
        ),
        Mistake(
            "FAISS for another CUDA",
            exporting(),
            "FAISS is installed but cannot be loaded: libcublas.so.12",
            "`twotower doctor` says which is there; install `twotower[cpu]`",
            around=FaissOfAnotherCuda(),
        ),
    ],
    "extras": [
        Mistake(
            "no FAISS",
            exporting(),
            "FAISS is not installed",
            "install `twotower[cpu]`",
            around=Without(("faiss",)),
        ),
        Mistake(
            "no web framework",
            asked("serve", "port=0"),
            "serve: fastapi",
            "pip install 'twotower[serve]'",
            around=Without(("fastapi", "uvicorn", "httptools", "prometheus_client")),
        ),
        Mistake(
            "no LMDB",
            asked("batch"),
            "store=lmdb needs LMDB, which is not installed",
            "pip install 'twotower[batch]'",
            around=Without(("lmdb",)),
        ),
        Mistake(
            "no client of Redis",
            asked("batch", "store=redis"),
            "store=redis needs its client, which is not installed",
            "pip install 'twotower[batch]'",
            around=Without(("redis",)),
        ),
        Mistake(
            "no Optuna",
            lambda place: ["train", "-m", "sweep=retrieval", *CPU],
            "`hydra/sweeper=optuna` needs Optuna",
            "install `twotower[sweep]`",
            around=Without(("optuna",)),
        ),
        Mistake(
            "no Ray",
            preparing("workers=ray"),
            "workers=ray needs Ray, which is not installed",
            "pip install 'twotower[distributed]'",
            around=Without(("ray",)),
        ),
        Mistake(
            "no TorchRec",
            training("trainer.split_tables=true"),
            "trainer: `split_tables` needs the extra `distributed`",
            "pip install -c constraints-distributed.txt 'twotower[distributed]'",
            around=Without(("torchrec",)),
        ),
    ],
    "network": [
        Mistake(
            "a port that is taken",
            serving_where_somebody_listens,
            "port: another program listens at 127.0.0.1:",
            "port=0 for one that is free",
        ),
        Mistake(
            "a port that cannot be",
            asked("serve", "port=99999"),
            "got 99999",
            "port: must be 0 to 65535",
        ),
        Mistake(
            "no network",
            no_network,
            "cannot download http://127.0.0.1:1/ml-latest-small.zip",
            "fetch the file by hand and say data.archive=<file>",
        ),
        Mistake(
            "a download that breaks off",
            downloading(ARCHIVE[:5000], len(ARCHIVE), ARCHIVE),
            "the transfer broke off after 5000 of 16384 bytes",
            "fetch the file by hand and say data.archive=<file>",
        ),
        Mistake(
            "a download that was changed on the way",
            downloading(ARCHIVE[::-1], len(ARCHIVE), ARCHIVE),
            "its MD5 is",
            "fetch the file by hand and say data.archive=<file>",
        ),
    ],
}
