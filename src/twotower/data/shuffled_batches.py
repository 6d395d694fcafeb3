"""Seeded epochs of batches that continue where they stopped.

Shape letters: B batch, E examples of every epoch, F further ones of which an epoch draws some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from twotower.data.batches import Batch


class ShuffledBatches:
    """A seeded permutation of examples, cut into batches; remembers where it stands.

    Args:
        examples: (E,) int64 what an example is, such as the row of an interaction.
        pool: (F,) int64 further examples, of which every epoch draws some anew; None for none.
        num_drawn: How many, without replacement.
        batch_size: Examples a batch; the last one of an epoch may be smaller.
        seed: Together with the epoch number it fixes the order.
        assemble: Turns examples (B,) into a batch.
        ahead: Whether a thread assembles the next batch while one is trained on; for data on the
            host of a GPU. What is assembled must not depend on a shared random state.

    Raises:
        ValueError: When a batch would hold nothing, or more is to be drawn than there is.
    """

    def __init__(
        self,
        examples: Tensor,
        *,
        pool: Tensor | None = None,
        num_drawn: int = 0,
        batch_size: int,
        seed: int,
        assemble: Callable[[Tensor], Batch],
        ahead: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        self.pool = examples[:0] if pool is None else pool
        if not 0 <= num_drawn <= len(self.pool):
            raise ValueError(
                f"`num_drawn` must lie in 0..{len(self.pool)}, the pool's size, got {num_drawn}"
            )
        self.examples = examples
        self.num_drawn = num_drawn
        self.batch_size = batch_size
        self.seed = seed
        self.assemble = assemble
        self.ahead = ahead
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return -(-(len(self.examples) + self.num_drawn) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        examples = self.examples
        if self.num_drawn:
            drawn = torch.randperm(len(self.pool), generator=generator)[: self.num_drawn]
            examples = torch.cat([examples, self.pool[drawn]])
        order = torch.randperm(len(examples), generator=generator)
        starts = range(self.position, len(order), self.batch_size)
        batches = (examples[order[start : start + self.batch_size]] for start in starts)
        for size, batch in self._assembled(batches):
            self.position += size
            if self.position == len(order):  # nobody need ask for one batch more than there are
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def _assembled(self, batches: Iterable[Tensor]) -> Iterator[tuple[int, Batch]]:
        """Size and columns of each batch; with `ahead` the next one is under way by then."""
        if not self.ahead:
            yield from ((len(chosen), self.assemble(chosen)) for chosen in batches)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            waiting: tuple[int, Future[Batch]] | None = None
            for chosen in batches:
                following = len(chosen), thread.submit(self.assemble, chosen)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue with the batch after the last one of a saved state."""
        self.epoch, self.position = state["epoch"], state["position"]
