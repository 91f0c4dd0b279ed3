"""How fast a run trains."""

import time
from collections import Counter

import torch


class Speed:
    """Counts what is trained on, and measures the time from the end of one batch to that of another.

    Evaluations between batches are left out. The device is waited for whenever the clock is read, or the time would be
    that of launching its work.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds, self._started = 0.0, 0.0

    def reset(self, device: torch.device) -> None:
        """Begin at 0, now."""
        self._counts.clear()
        self._seconds, self._started = 0.0, _now(device)

    def pause(self, device: torch.device) -> None:
        """Stop the clock."""
        self._seconds += _now(device) - self._started

    def go_on(self, device: torch.device) -> None:
        """Start the clock again."""
        self._started = _now(device)

    def add(self, **counts: int) -> None:
        """Add a batch."""
        self._counts.update(counts)

    def rates(self, device: torch.device) -> dict[str, float]:
        """Return `NAME_per_second` of all that was added since the last `reset`."""
        seconds = self._seconds + _now(device) - self._started
        return {f"{name}_per_second": count / seconds for name, count in self._counts.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
