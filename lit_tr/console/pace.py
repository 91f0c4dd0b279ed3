"""How far a run is, and when it will end."""

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer


def last_step(trainer: Any) -> float:
    """Return the optimizer step that a run ends with by `max_steps` or `max_epochs`; infinite if neither says so."""
    of_epoch = math.inf
    if math.isfinite(trainer.num_training_batches):
        of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    epochs, steps = trainer.max_epochs, trainer.max_steps
    by_epochs = of_epoch * epochs if epochs is not None and epochs >= 0 else math.inf
    return min(by_epochs, steps if steps >= 0 else math.inf)


class Pace:
    """Counts the steps of a run against a clock, from its start or its resume, with its evaluations.

    Args:
        trainer: the trainer of the run, at the start of its training.
        clock: returns seconds.
    """

    def __init__(self, trainer: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._trainer, self._clock = trainer, clock
        self._start, self._first_step = clock(), trainer.global_step

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def seconds_left(self) -> float:
        """Return the seconds up to the end that `max_steps`, `max_epochs` or `max_time` sets; infinite if none does."""
        done = self._trainer.global_step - self._first_step
        left = last_step(self._trainer) - self._trainer.global_step
        by_steps = max(left, 0) * self.elapsed / done if done else math.inf
        timers = [one.time_remaining() for one in self._trainer.callbacks if isinstance(one, Timer)]
        return min([by_steps, *(max(seconds, 0.0) for seconds in timers if seconds is not None)])


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: on a GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def as_time(seconds: float) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`; `?` for infinity."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
