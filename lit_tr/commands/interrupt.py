"""Signals that stop a run, or ask it to save."""

import signal
import sys
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_tr.progress import ends_step


class GracefulInterrupt(Callback):
    """Delays Ctrl-C, SIGTERM and SLURM's signal to the end of an optimizer step, the same one on all ranks.

    So no checkpoint is saved within a step, as by Lightning's own handlers. A second Ctrl-C stops at once. Ranks
    exchange a few bytes at each optimizer step. Before and after training, and on one rank during validation,
    Lightning's handlers act; several ranks go on to the next step, since a rank that saved or stopped by itself would
    leave the others waiting.
    """

    def __init__(self) -> None:
        self._asked: dict[int, bool] = {}
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install handlers for the signals that have one."""
        environment = cast(Any, trainer)._accelerator_connector.cluster_environment
        requeue = getattr(environment, "requeue_signal", None) or signal.SIGUSR1
        # the one that requeues a job comes first, and may be SIGTERM itself
        self._asked = dict.fromkeys((requeue, signal.SIGTERM, signal.SIGINT), False)
        self._install()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Act on signals at the end of an optimizer step."""
        if ends_step(trainer):
            self._act(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers for the time of validation."""
        if self._before and trainer.world_size == 1:
            self._act(trainer, pl_module)
            self._restore()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._install()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers."""
        self._restore()

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        asked, self._asked = self._asked, dict.fromkeys(self._asked, False)
        if trainer.world_size > 1:
            flags = torch.tensor([float(flag) for flag in asked.values()], device=pl_module.device)
            of_all = cast(torch.Tensor, trainer.strategy.reduce(flags, reduce_op="max")).tolist()
            asked = {number: bool(flag) for number, flag in zip(asked, of_all, strict=True)}
        for number in (number for number, flag in asked.items() if flag):
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if number == signal.SIGTERM:  # else its handler would send it to the other ranks, which have it
                cast(Any, trainer)._signal_connector.received_sigterm = True
            if number in self._before:
                self._before[number](number, None)

    def _install(self) -> None:
        for number in self._asked:
            handler = signal.getsignal(number)
            if callable(handler) and handler != self._ask:
                self._before[number] = handler
                signal.signal(number, self._ask)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:
                signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked[number]:
            raise KeyboardInterrupt
        self._asked[number] = True
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: at the end of this step{again}.", file=sys.stderr)
