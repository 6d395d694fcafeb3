"""What hardware can do: published figures of GPUs, and one CPU core as it was measured.

A plan divides counted work by these rates. Nothing reaches them, so every division also has an
efficiency; those stand where they are used, with the run that gave them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GB: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by its data sheet.

    Args:
        name: As people call it.
        memory: Bytes of its memory.
        bandwidth: Bytes a second between its memory and its cores.
        low_precision: Floating point operations a second of dense bfloat16 products.
        full_precision: The same of float32 products that are not rounded to TF32.
        source: Where the figures are from.
    """

    name: str
    memory: int
    bandwidth: float
    low_precision: float
    full_precision: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Core:
    """One CPU core.

    Args:
        bandwidth: Bytes a second, read and written, of a plain copy.
        rows: Rows of 256 bytes a second from random places of a table that no cache holds.
        full_precision: Floating point operations a second of float32 products.
        lookups: Bytes of compressed vectors a second that FAISS looks up in its distance tables.
        source: Where the figures are from.
    """

    bandwidth: float
    rows: float
    full_precision: float
    lookups: float
    source: str


def _gpu(name: str, gigabytes: int, tb_per_s: float, bf16: float, fp32: float) -> Gpu:
    return Gpu(
        name=name,
        memory=gigabytes * GB,
        bandwidth=tb_per_s * 1e12,
        low_precision=bf16 * 1e12,
        full_precision=fp32 * 1e12,
        source=f"NVIDIA's data sheet of the {name}, dense rates",
    )


GPUS: Final = {
    "h100": _gpu("H100 SXM", 80, 3.35, 989, 67),
    "h200": _gpu("H200 SXM", 141, 4.8, 989, 67),
    "a100": _gpu("A100 SXM 80 GB", 80, 2.039, 312, 19.5),
    "l4": _gpu("L4", 24, 0.3, 121, 30.3),
}

CORE: Final = Core(
    bandwidth=10.1e9,
    rows=5.6e6,
    full_precision=110e9,
    lookups=0.8e9,
    source="measured: one thread of a Xeon of 2019 (Cascade Lake, AVX-512, 2.5 GHz), "
    "products of the shapes of towers and softmax",
)
