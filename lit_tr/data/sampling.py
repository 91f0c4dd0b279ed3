"""The order in which a rank sees its rows."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DistributedSampler

from lit_tr.errors import UserError


class ResumableSampler(DistributedSampler):
    """A DistributedSampler that counts its epochs itself, and goes on in the middle of one after a resume.

    Lightning's own count (`set_epoch`) is one too many after a run that `max_steps` ended in the middle of an epoch,
    so a resumed run would see other orders than an uninterrupted one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch, self._position = -1, len(self)
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the next epoch, or the rest of the one that was loaded."""
        state = self._resume or {"epoch": self.epoch + 1, "position": 0}
        self._resume = None
        self.epoch, self._position = state["epoch"], state["position"]
        for index in islice(super().__iter__(), self._position, None):
            self._position += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        """Leave the count as it is."""

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of indices that were taken from it, and that of ranks."""
        return self._resume or {"epoch": self.epoch, "position": self._position, "ranks": self.num_replicas}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the last index that was taken, at the next `__iter__`.

        Raises:
            UserError: within an epoch, and there were another number of ranks.
        """
        ranks, taken = state_dict.get("ranks", self.num_replicas), state_dict["position"]
        if ranks != self.num_replicas and 0 < taken < -(-len(self.dataset) // ranks):  # type: ignore[arg-type]
            raise UserError(
                f"the checkpoint was saved on {ranks} ranks in the middle of an epoch, and now there are "
                f"{self.num_replicas}: rows would come twice or not at all; go on with as many ranks, or from a "
                "checkpoint of an epoch's end"
            )
        taken = min(taken, self.num_samples) if ranks == self.num_replicas else (self.num_samples if taken else 0)
        self._resume = {"epoch": state_dict["epoch"], "position": taken, "ranks": self.num_replicas}


class EvaluationSampler(DistributedSampler):
    """The indices of a rank's rows in their order: as many on every rank, and no row twice.

    A rank that has a row less ends with the index `len(dataset)`, that of no row. Lightning leaves a DistributedSampler
    as it is; its own repeats rows instead.
    """

    def __iter__(self) -> Iterator[int]:
        """Yield every `num_replicas`-th index."""
        rows = len(self.dataset)  # type: ignore[arg-type]
        return (min(self.rank + i * self.num_replicas, rows) for i in range(self.num_samples))
