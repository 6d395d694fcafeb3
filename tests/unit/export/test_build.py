"""A run to a bundle and back: what is in it, gates, publishing."""

from __future__ import annotations

from twotower.export.build import ExportResult
from twotower.export.bundle import open_bundle


def test_smoke(exported: ExportResult) -> None:
    for gate in exported.gates:
        print(gate)
    print(exported)
    bundle = open_bundle(exported.folder.parent)
    print(bundle.manifest)
    g = bundle.golden()
    print({k: getattr(v, "shape", v) for k, v in vars(g).items()})
    print(bundle.load_index().description)
