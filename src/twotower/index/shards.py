"""An index in shards: pieces of successive item rows that FAISS searches side by side.

FAISS' `IndexShards` gives every shard a thread and merges what the shards find. Flat shards count
their rows from 0, and where a shard begins is added to them (`successive_ids`). Inverted files
store the rows themselves; their shards have the same cells and codebooks, and `IndexShardsIVF`
picks the cells of a query once for all of them. So shards find what the undivided index finds, and
a file holds the undivided index, whatever the number of shards.

Letters: ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

from itertools import pairwise

from twotower.index.base import FloatArray
from twotower.index.faiss_library import Handle, faiss

# Kinds of index that can be divided; a graph cannot, as its links go everywhere.
SHARDED_KINDS = ("flat", "ivf_flat", "ivf_pq")


def shards_of(index: Handle) -> list[Handle]:
    """The shards of a FAISS index, or the index alone; of a refined index those of its codes.

    Args:
        index: A FAISS index, which must outlive what is returned.
    """
    if isinstance(index, faiss.IndexRefine):
        return shards_of(faiss.downcast_index(index.base_index))
    if not isinstance(index, faiss.IndexShards):
        return [index]
    return [faiss.downcast_index(index.at(number)) for number in range(index.count())]


def divided(index: Handle, num_shards: int) -> Handle:
    """A FAISS index that holds the rows of a flat one or an inverted file in shards.

    Args:
        index: CPU form, filled or only trained; nothing of it is used afterwards.
        num_shards: How many shards; their sizes differ by one row at most.
    """
    quantizer = None
    if isinstance(index, faiss.IndexFlat):
        shards = faiss.IndexShards(index.d, True, True)  # with threads and successive ids
    else:
        quantizer = copied(faiss.downcast_index(index.quantizer))
        shards = faiss.IndexShardsIVF(quantizer, index.nlist, True, False)
    bounds = [index.ntotal * number // num_shards for number in range(num_shards + 1)]
    for first, last in pairwise(bounds):
        shard = _emptied(index, quantizer)
        _add_rows(shard, index, first, last)
        shards.add_shard(shard)
    return shards


def merged(shards: Handle) -> Handle:
    """The undivided form of what `divided` returned, as if it had been built so.

    Args:
        shards: The shards; nothing of them is used afterwards.
    """
    pieces = shards_of(shards)
    whole = emptied(pieces[0])
    for piece in pieces:
        _add_rows(whole, piece, 0, shards.ntotal)
    return whole


def emptied(index: Handle) -> Handle:
    """A flat index or an inverted file as another is, trained alike and without items.

    Args:
        index: CPU form; nothing of it is used afterwards.
    """
    if isinstance(index, faiss.IndexFlat):
        return _emptied(index, None)
    return _emptied(index, copied(faiss.downcast_index(index.quantizer)))


def copied(index: Handle) -> Handle:
    """A flat index with memory of its own, also where another's is that of a mapped file.

    Args:
        index: Flat CPU form.
    """
    copy = faiss.IndexFlatIP(index.d)
    copy.add(_vectors(index))
    return copy


def _emptied(index: Handle, quantizer: Handle | None) -> Handle:
    if quantizer is None:
        return faiss.IndexFlatIP(index.d)
    shape = (quantizer, index.d, index.nlist)
    if isinstance(index, faiss.IndexIVFPQ):
        codes = (index.pq.M, index.pq.nbits)
        empty = faiss.IndexIVFPQ(*shape, *codes, faiss.METRIC_INNER_PRODUCT)
        empty.pq = index.pq
    else:
        empty = faiss.IndexIVFFlat(*shape, faiss.METRIC_INNER_PRODUCT)
    empty.is_trained = index.is_trained
    empty.nprobe = index.nprobe
    return empty


def _add_rows(target: Handle, source: Handle, first: int, last: int) -> None:
    """Append the rows `first` to `last`: of a flat index by place, of an inverted file by id."""
    if isinstance(source, faiss.IndexFlat):
        target.add(_vectors(source)[first:last])
    else:
        source.copy_subset_to(target, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, first, last)


def _vectors(index: Handle) -> FloatArray:
    """The vectors (N, D) of a flat index, without a copy."""
    stored: FloatArray = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return stored.reshape(index.ntotal, index.d)
