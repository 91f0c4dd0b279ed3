"""Evaluation batches that are kept from one validation to the next."""

import math
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lit_tr.data.batches import PairBatch, known_log_probs


class KeptLoader(CombinedLoader):
    """Evaluation batches that are drawn once and kept, with the reference's log-probs on them once these are computed.

    Attributes:
        log_probs: of the scored tokens of each batch, in the order of the batches; None where they are not known.
    """

    def __init__(self, loaders: Any) -> None:
        super().__init__(loaders, "sequential")
        self.log_probs: list[Tensor] | None = None
        self._kept: list[tuple[PairBatch, int, int]] | None = None
        self._coming: Iterator[tuple[PairBatch, int, int]] = iter(())

    @property
    def batches(self) -> list[PairBatch]:
        """All batches within the limits of the first call, which draws them."""
        if self._kept is None:
            self._kept = list(self._drawn())
        return [batch for batch, _, _ in self._kept]

    def __iter__(self) -> "KeptLoader":
        """Begin again: with the batches that are kept, or where none are with those of the loaders."""
        self._coming = self._drawn() if self._kept is None else self._known(self._kept)
        return self

    def __next__(self) -> tuple[PairBatch, int, int]:
        """Return the next batch, its number, and the number of its loader."""
        return next(self._coming)

    def __len__(self) -> int:
        """Number of batches."""
        lengths = zip(self.flattened, self.limits or [math.inf] * len(self.flattened), strict=True)
        return sum(int(min(len(loader), limit)) for loader, limit in lengths)

    def _drawn(self) -> Iterator[tuple[PairBatch, int, int]]:
        super().__iter__()
        while True:
            try:
                yield super().__next__()
            except StopIteration:
                return

    def _known(self, kept: list[tuple[PairBatch, int, int]]) -> Iterator[tuple[PairBatch, int, int]]:
        log_probs: list[Any] = self.log_probs or [None] * len(kept)
        for (batch, number, loader), known in zip(kept, log_probs, strict=True):
            if self.limits is None or number < self.limits[loader]:
                yield batch.copied(known=None if known is None else known_log_probs(known)), number, loader
