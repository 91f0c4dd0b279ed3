"""Signals that end a run, or ask it to save."""

import signal
import sys
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class GracefulInterrupt(Callback):
    """Lets Ctrl-C, SIGTERM and SLURM's SIGUSR1 take effect between two optimizer steps, on all ranks at the same one.

    So the checkpoint that each of them leaves is whole: Lightning would stop, or save, within a step. A second Ctrl-C
    does not wait.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._asked = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for the signals that somebody handles."""
        for number in self.SIGNALS:
            if signal.getsignal(number) not in (None, signal.SIG_DFL):
                self._before[number] = signal.signal(number, self._ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Let a signal take effect if there was one and the batch ended an optimizer step."""
        if trainer.fit_loop._should_accumulate():
            return
        number = self._asked
        if trainer.world_size > 1:
            asked = torch.tensor(float(number), device=pl_module.device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = 0
        if number == signal.SIGTERM:  # or its handler would pass it on to the other ranks, which know
            cast(Any, trainer)._signal_connector.received_sigterm = True
        if number:
            self._before[number](number, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: at the end of this step{again}.", file=sys.stderr)
