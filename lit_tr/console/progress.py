"""What a run shows while it trains or evaluates: a live display in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from rich.console import Group
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lit_tr.console.counted import CountedProgress
from lit_tr.console.pace import Pace, as_time, last_step, peak_memory
from lit_tr.console.terminal import DISPLAY, console, is_live
from lit_tr.progress import ends_step
from lit_tr.reference.base import updates_of

SHOWN = {
    "loss": ("loss", ".4f"),
    "rewards/accuracies": ("accuracy", ".2f"),
    "rewards/margins": ("margin", ".3f"),
    "log_ratios": ("log-ratio", ".2f"),
    "initial/log_ratios": ("to initial", ".2f"),
}
"""Label and format of the metrics that are shown, by name."""


class RunProgress(ProgressBar):
    """Shows how a run goes: loss, accuracy, margin, log-ratios, learning rate, speed, memory, time left, and updates.

    `log-ratio` is that of the policy to its reference, `to initial` that to the initial policy, both in nats per
    response. A terminal gets a live display. Where there is none (a pipe, a job's log, a notebook), or where `NO_COLOR`
    or `TERM=dumb` is set, it prints a line at the first, the last and each logged step, and when `every_seconds` have
    passed without one, within a step too. Updates of the reference that are rarer than logged steps get a line each; of
    others a line says how many there were since the last one. Where nothing is trained it counts batches.

    Args:
        every_seconds: most seconds between two lines where there is no terminal.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._live = False
        self._batches: CountedProgress | None = None

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show what comes from now on."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the live display."""
        if self._enabled:
            self._console.print(*args, soft_wrap=True, **kwargs)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find out where it prints to; other ranks than the first print nothing."""
        super().setup(trainer, pl_module, stage)
        self._console = console()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and the display."""
        self._pace, self._rates, self._figures = Pace(trainer), dict[str, float](), dict[str, str]()
        self._first = self._shown = trainer.global_step
        self._shown_at = time.monotonic()
        self._told = self._counted()
        self._status = ""
        self._live = self._enabled and is_live(self._console)
        if self._live:
            DISPLAY.show(self._console, self._display)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show what is due."""
        if not ends_step(trainer):
            self._say(f"step {trainer.global_step + 1}, batch {self._batch_of_step()}  {self._left()}")
            return
        self._status = ""
        logged = trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0
        first_or_last = trainer.global_step in (self._first + 1, last_step(trainer))
        if self._enabled and (logged or first_or_last or self._is_overdue()):
            self._refresh(pl_module)
        if self._are_rare() and self._new_updates():
            self._line(f"step {trainer.global_step}  reference updated ({self._told} so far)")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the batches of a validation without training."""
        if trainer.state.fn != "fit":
            self._count("validate", trainer.num_val_batches)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the batches."""
        self._count("test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the batches."""
        self._count("predict", trainer.num_predict_batches)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show how far a validation is."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(f"validation, batch {batch_idx + 1} of {sum(trainer.num_val_batches)}")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._add()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._add()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._add()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the means of a validation within training."""
        self._status = ""
        if trainer.state.fn != "fit":
            self._stop()
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._line(f"step {trainer.global_step}  validation  {'  '.join(self._named('val').values())}")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """End the display."""
        self._stop()

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """End the display."""
        self._stop()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the last step, whatever made it the last one, and end the display."""
        if self._enabled and self._shown < trainer.global_step:
            self._refresh(pl_module)
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the display."""
        self._stop()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the display."""
        self._stop()

    def _count(self, verb: str, batches: Sequence[float]) -> None:
        """Begin to show how many of the batches are done."""
        if self._enabled:
            self._batches = CountedProgress(verb, sum(batches), what="batches", every_seconds=self.every_seconds)
            self._batches.__enter__()

    def _add(self) -> None:
        if self._batches is not None:
            self._batches.add(1)

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.__exit__(None, None, None)
            self._batches = None
        if self._live:
            DISPLAY.hide(self._display)
            self._live = False

    def _refresh(self, module: Any) -> None:
        """Take the figures of now, and print them where there is no display."""
        self._rates, self._figures = module.speed.rates(module.device), self._named("train")
        self._shown, self._shown_at = self.trainer.global_step, time.monotonic()
        if not self._live:
            new = 0 if self._are_rare() else self._new_updates()
            updates = [f"{new} update{'s' * (new > 1)}"] if new else []
            self._line("  ".join([self._where(), *self._figures.values(), *updates, self._speed(), self._left()]))

    def _line(self, text: str) -> None:
        self._shown_at = time.monotonic()
        self.print(Text(text))

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._shown_at > self.every_seconds

    def _say(self, status: str) -> None:
        """Show what a step or a validation is at: in the display, or in a line if none came for long."""
        self._status = status
        if not self._live and self._is_overdue():
            self._line(status)

    def _batch_of_step(self) -> str:
        """Return which batch of an optimizer step was the last one; the last step of an epoch may have fewer."""
        trainer: Any = self.trainer
        ready, each = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.accumulate_grad_batches
        return f"{ready % each} of {min(each, trainer.num_training_batches - ready + ready % each)}"

    def _are_rare(self) -> bool:
        """Whether updates of the reference are so rare that each gets a line."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return all(one.every_n_steps >= every for one in updates_of(self.trainer))

    def _counted(self) -> int:
        return sum(one.updates for one in updates_of(self.trainer))

    def _new_updates(self) -> int:
        """Return the number of updates that no line has told, which one now does."""
        before, self._told = self._told, self._counted()
        return self._told - before

    def _named(self, stage: str) -> dict[str, str]:
        """Return the last logged metrics of a stage, as they are shown."""
        values = self.trainer.callback_metrics
        return {
            name: f"{label} {values[f'{stage}/{name}'].item():{form}}"
            for name, (label, form) in SHOWN.items()
            if f"{stage}/{name}" in values
        }

    def _where(self) -> str:
        last = last_step(self.trainer)
        of = f"/{last:.0f}" if math.isfinite(last) else ""
        return f"step {self.trainer.global_step}{of}"

    def _speed(self) -> str:
        pairs, tokens = (  # as if all ranks had those of this one
            self._rates.get(f"{name}_per_second", 0.0) * self.trainer.world_size for name in ("examples", "tokens")
        )
        rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        memory = peak_memory(self.trainer.strategy.root_device) / 1e9
        return f"lr {max(rates):.1e}  {pairs:.1f} pairs/s  {tokens:,.0f} tokens/s  {memory:.2f} GB"

    def _left(self) -> str:
        return f"left {as_time(self._pace.seconds_left())}"

    def _display(self) -> Group:
        last, step = last_step(self.trainer), self.trainer.global_step
        total = last if math.isfinite(last) else None
        top = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            top.add_column(ratio=ratio, no_wrap=True)
        bar = Bar(total=total, completed=step, pulse=total is None)
        top.add_row(self._where(), bar, f"{as_time(self._pace.elapsed)}  {self._left()}")
        figures = Text("  ".join(self._figures.values()), style="bold")
        updates = f"  {self._counted()} reference updates" if updates_of(self.trainer) else ""
        lines: list[Any] = [top, figures, Text(self._speed() + updates, style="dim")]
        return Group(*lines, *([Text(self._status, style="dim")] if self._status else []))
