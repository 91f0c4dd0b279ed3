"""The order in which batches come, shared out among ranks, and how it goes on after a stop."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lit_tr.data.batches import PairBatch
from lit_tr.data.cache import TokenCache
from lit_tr.data.collator import Collator
from lit_tr.errors import UserError


class EpochLoader:
    """The batches of one rank, epoch after epoch.

    The order of an epoch is that of all ranks together: each batch of theirs takes the next items, one after the other
    by rank. So where an epoch stands is one number, and it goes on exactly on other numbers of ranks and workers. Where
    the last items are too few, some ranks get a smaller batch or a dummy one, and no item comes twice.

    Args:
        examples: the examples.
        items: what is shuffled and shared out: the packs of a batch each; None takes single examples.
        batch_size: items in a batch.
        collator: makes batches.
        rank: number of this rank.
        ranks: number of ranks.
        shuffle: whether each epoch has an order of its own.
        seed: seed of that order.
        num_workers: worker processes that make batches.
    """

    def __init__(
        self,
        examples: TokenCache,
        items: Sequence[NDArray[np.int64]] | None,
        batch_size: int,
        collator: Collator,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.examples, self.items, self.batch_size, self.collator = examples, items, batch_size, collator
        self.rank, self.ranks, self.shuffle, self.seed = rank, ranks, shuffle, seed
        self.num_workers = num_workers
        self.count = len(examples) if items is None else len(items)
        self._epoch, self._taken, self._resumes = -1, 0, False

    def __len__(self) -> int:
        """Number of batches of an epoch, the same on all ranks."""
        return self._batches(self.count)

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of the next epoch, or the rest of the one that was loaded."""
        if not self._resumes:
            self._epoch, self._taken = self._epoch + 1, 0
        self._resumes = False
        batches = DataLoader(
            self.examples,
            batch_sampler=self._indices(self._epoch, self._taken),
            collate_fn=self.collator,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or each epoch would draw from the random state that dropout draws from
        )
        for batch in batches:
            self._taken = min(self._taken + self.batch_size * self.ranks, self.count)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, how many of its items all ranks have taken, and how many it has."""
        return {"epoch": self._epoch, "taken": self._taken, "items": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after these items at the next `__iter__`.

        Raises:
            UserError: within an epoch, and it had another number of items.
        """
        taken, items = state_dict["taken"], state_dict["items"]
        if items != self.count and 0 < taken < items:
            raise UserError(
                f"the checkpoint was saved after {taken} of the epoch's {items} examples or packs, and now there are "
                f"{self.count}: rows would come twice or not at all; go on with the same rows, batch_size or "
                "max_tokens, or from a checkpoint of an epoch's end"
            )
        self._epoch, self._taken, self._resumes = state_dict["epoch"], self.count if taken == items else taken, True

    def batches_taken(self, state: dict[str, int]) -> int:
        """Return where a state stands in an epoch of this number of ranks, in batches."""
        return len(self) - self._batches(self.count - state["taken"])

    def _batches(self, items: int) -> int:
        return -(-items // (self.batch_size * self.ranks))

    def _indices(self, epoch: int, taken: int) -> Iterator[list[int]]:
        """Yield the examples of each batch from some items on."""
        order = np.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + epoch)).numpy()
        size = self.batch_size * self.ranks
        for start in range(taken, self.count, size):
            own = order[start : start + size][self.rank :: self.ranks]
            yield own.tolist() if self.items is None else [int(i) for item in own for i in self.items[item]]
