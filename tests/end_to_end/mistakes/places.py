"""Mistakes about places and versions: what is not there, in the way, damaged, or of another age."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.end_to_end.mistakes.mistake import Mistake, Place
from tests.end_to_end.mistakes.shop import Tables
from tests.end_to_end.mistakes.words import asked, said, training
from twotower.export.manifest import FORMAT

Words = Callable[[Place], Sequence[str]]
FLAT = ("index=flat", "index.device=cpu", "quiet=true")


def in_the_way(name: str, words: Callable[[Place], Sequence[str]]) -> Words:
    """A file where a folder is to be."""

    def spoil(place: Place) -> Sequence[str]:
        Path(name).write_text("mine")
        return words(place)

    return spoil


def own_bundle(spoil: Callable[[Path], object]) -> Words:
    """A copy of the bundle that is spoiled."""

    def words(place: Place) -> list[str]:
        shutil.copytree((place.tiny.bundle / "current").resolve(), "bundle")
        spoil(Path("bundle"))
        return ["recommend", "bundle=bundle", "user=u000001", "quiet=true"]

    return words


def own_run(spoil: Callable[[Path], object]) -> Words:
    """A copy of the run that is spoiled, to be exported."""

    def words(place: Place) -> list[str]:
        shutil.copytree(place.tiny.run, "run")
        spoil(Path("run"))
        return ["export", "run=run", *FLAT]

    return words


def rewritten(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Another document in a file of a folder."""

    def spoil(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return spoil


def shortened(name: str) -> Callable[[Path], None]:
    """A file of a folder without its second half."""

    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def vector_file(place: Place) -> list[str]:
    Path("v.npy").write_text("0.1 0.2")
    return ["recommend", place.bundle, "similar_to_vector=v.npy", "quiet=true"]


def text_as_model(place: Place) -> list[str]:
    table = Tables().write()[3].replace("data.items", "items")
    Path("model.onnx").write_text("a model")
    return ["embed", "model=model.onnx", table, "quiet=true"]


MISTAKES = {
    "paths": [
        Mistake(
            "a run that is not there",
            said("export", "run=gone"),
            "gone: no run here (no config.yaml)",
            "runs are written by `twotower train`",
        ),
        Mistake(
            "a bundle where a run is expected",
            lambda place: ["export", f"run={place.tiny.bundle}"],
            "no run here (no config.yaml)",
            "runs are written by `twotower train`",
        ),
        Mistake(
            "a run where a bundle is expected",
            lambda place: ["recommend", f"bundle={place.tiny.run}", "user=u000001"],
            "no bundle here (no manifest.json)",
            "run `twotower export run=<run>`",
        ),
        Mistake(
            "nothing to resume",
            said("train", "resume=gone"),
            "`resume`: no run folder `gone`",
            "no run folder",
        ),
        Mistake(
            "other settings beside resume",
            lambda place: ["train", f"resume={place.tiny.run}", "seed=3"],
            "leave out seed=3",
            "the run's own config is used",
        ),
        Mistake(
            "nothing to go on from",
            training("warm_start=gone"),
            "warm_start=gone: no run folder here",
            "runs are written by `twotower train`",
        ),
        Mistake(
            "a run whose data was deleted",
            own_run(
                rewritten("prepared.json", lambda found: found.update(folder="prepared/deleted"))
            ),
            "prepared/deleted: no prepared data set here (no manifest.json)",
            "run `twotower prepare`",
        ),
        Mistake(
            "a file where prepared data goes",
            in_the_way("prepared", training()),
            "prepared: is there already, and is no folder",
            "name another place or move it away",
        ),
        Mistake(
            "a file where runs go",
            in_the_way("runs", training()),
            "runs/train: cannot be reached",
            "a part of the path is a file, not a folder",
        ),
        Mistake(
            "a file where bundles go",
            in_the_way("bundles", lambda place: ["export", place.run, *FLAT]),
            "bundles/tiny: cannot be reached",
            "a part of the path is a file, not a folder",
        ),
        Mistake(
            "a bundle's name that leads elsewhere",
            lambda place: ["export", place.run, "name=../shop", *FLAT],
            "got '../shop'",
            "bundle name: must be the name of a folder that is not hidden",
        ),
        Mistake(
            "a vector that is text",
            vector_file,
            "v.npy: no array of numbers in NumPy's format",
            "np.save writes one",
        ),
        Mistake(
            "a model that is text",
            text_as_model,
            "model.onnx: cannot be read as an ONNX model",
            "Protobuf parsing failed",
        ),
        Mistake(
            "a key that is not there",
            asked("serve", "api_key_file=gone.key", "port=0"),
            "api_key_file: gone.key: No such file or directory",
            "name a file that holds the key, or set TWOTOWER_API_KEY",
        ),
        Mistake(
            "a window that is not there",
            asked("monitor", "interactions=yesterday.parquet"),
            "yesterday.parquet: no such file or folder",
            "has no files",
        ),
        Mistake(
            "nothing to look up",
            said("lookup", "name=tiny", "user=u000001"),
            "stores/tiny: nothing was published",
            "`twotower batch bundle=<bundle>` does that",
        ),
        Mistake(
            "a store that nobody runs",
            asked("batch", "store=redis", "store.url=redis://127.0.0.1:1/0"),
            "redis://127.0.0.1:1/0#tiny",
            "Connection refused",
        ),
    ],
    "versions": [
        Mistake(
            "a bundle of another release",
            own_bundle(rewritten("manifest.json", lambda found: found.update(format=2))),
            "bundle/manifest.json: format version 2",
            f"this release reads {FORMAT}",
        ),
        Mistake(
            "a bundle that somebody edited",
            own_bundle(rewritten("manifest.json", lambda found: found.update(num_candidates=9))),
            "bundle/manifest.json: changed since it was written",
            "export the run again",
        ),
        Mistake(
            "a bundle of which a file was not copied",
            own_bundle(lambda folder: (folder / "ranker.onnx").unlink()),
            "ranker.onnx: missing",
            "ranker.onnx",
        ),
        Mistake(
            "an index that belongs to another export",
            own_bundle(shortened("index/index.faiss")),
            "index.faiss: changed since it was written",
            "index.faiss",
        ),
        Mistake(
            "a run that was not finished",
            own_run(lambda folder: (folder / "ranking" / "finished.json").unlink()),
            "run: not finished: ranking",
            "go on with twotower train resume=run",
        ),
        Mistake(
            "weights of which half was copied",
            own_run(shortened("retrieval/best.ckpt")),
            "run/retrieval/best.ckpt: cannot be read as a checkpoint",
            "train again",
        ),
        Mistake(
            "a run of a config with other names",
            own_run(
                lambda folder: (folder / "config.yaml").write_text(
                    (folder / "config.yaml").read_text().replace("embedding_dim", "emb_dim")
                )
            ),
            "emb_dim",
            "embedding_dim",
        ),
    ],
}
