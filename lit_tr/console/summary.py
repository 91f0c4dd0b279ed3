"""What a run says before it trains (policy, reference, rows, steps, what is held in memory) and what it has reached."""

import math
import os
import time
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from rich.table import Table
from torch import Tensor, nn

from lit_tr.console.pace import as_time, last_step
from lit_tr.console.progress import SHOWN
from lit_tr.console.terminal import console
from lit_tr.policy.sharding import local_shard
from lit_tr.reference.base import Reference, updates_of


class RunSummary(Callback):
    """Prints a few lines before and after training, on the first rank.

    First what is trained, on what, for how long, and where; then what was reached, and where its files are.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Print the lines."""
        folder = trainer.log_dir or trainer.default_root_dir  # a collective call
        if trainer.is_global_zero:
            lines(summary(trainer, pl_module) | {"folder": str(folder)})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Print what was reached, where something was trained."""
        if trainer.is_global_zero and trainer.global_step:
            for logger in trainer.loggers:
                logger.save()  # they would be finished after this
            lines(end(trainer, time.monotonic() - self._start))


def lines(named: dict[str, str]) -> None:
    """Print some lines, each with its name in a column before it; only a terminal gets them wrapped."""
    shown = console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in named.items():
        table.add_row(name, text)
    if shown.is_terminal:
        shown.print(table)
    else:
        width = max(map(len, named)) + 2
        print("\n".join(f"{name:<{width}}{text}" for name, text in named.items()))


def summary(trainer: Any, module: Any) -> dict[str, str]:
    """Return what is said of a run before it trains, by name."""
    said = {
        "policy": _policy(module.policy, module.source, trainer.precision),
        "reference": _reference(module.reference, updates_of(trainer)),
        "loss": _with_options(module.loss),
        "memory": _memory(module),
    }
    if data := _data(trainer.datamodule):
        said["data"] = data
    return said | {"steps": _steps(trainer)}


def _policy(policy: nn.Module, source: Any, precision: Any) -> str:
    params = list(policy.parameters())
    total, trained = _count(params), _count(param for param in params if param.requires_grad)
    of = f"{trained / total:.2%} trained" if trained < total else "all trained"
    held = ", NF4 base" if any(hasattr(param, "quant_state") for param in params) else ""
    named = getattr(source, "path", type(policy).__name__)
    return f"{named}: {total / 1e6:,.1f}M parameters, {of}{held}, precision {precision}"


def _count(params: Iterable[Tensor]) -> int:
    """Return the number of weights: 4-bit codes are packed, two in a byte."""
    states = ((param, getattr(param, "quant_state", None)) for param in params)
    return sum(param.numel() if state is None else state.shape.numel() for param, state in states)


def _reference(reference: Reference | None, updates: list[Any]) -> str:
    if reference is None:
        return "none"
    moved = "; ".join(map(_update, updates))
    return f"{type(reference).__name__}, " + (f"moved by {moved}" if moved else "never moved")


def _update(update: Any) -> str:
    every = "step" if update.every_n_steps == 1 else f"{update.every_n_steps} steps"
    return f"{type(update).__name__} every {every}, alpha {update.alpha_at(update.next_update(0)):g}"


def _with_options(value: Any) -> str:
    """Return the name of a dataclass with those of its fields that are numbers above 0, or not as by default."""
    given = [(one, getattr(value, one.name)) for one in fields(value) if one.init]
    said = [
        f"{one.name} {_option(option)}"
        for one, option in given
        if option and (isinstance(option, int | float) or option != one.default)
    ]
    return ", ".join([type(value).__name__, *said])


def _option(value: Any) -> str:
    if isinstance(value, list):
        return f"[{'; '.join(map(_option, value))}]"
    return _with_options(value) if is_dataclass(value) else str(value)


def _memory(module: Any) -> str:
    params = list(module.policy.parameters())
    held = {"policy": params, "gradients": [param for param in params if param.requires_grad]}
    for name, one in (("reference", module.reference), ("initial policy", module.initial)):
        if one is not None and one.model is not None:
            held[name] = list(one.model.parameters())
    said = ", ".join(f"{name} {_size(tensors)}" for name, tensors in held.items())
    third = "initial policy" in held and "reference" in held
    return f"{said} (model.log_initial false leaves the last out)" if third else said


def _size(tensors: Iterable[Tensor]) -> str:
    bytes_held = sum(local_shard(tensor).nbytes for tensor in tensors)
    return f"{bytes_held / 1e9:.2f} GB" if bytes_held >= 1e7 else f"{bytes_held / 1e6:.1f} MB"


def _data(data: Any) -> str:
    examples = getattr(data, "examples", {})
    said = [
        f"{name} {len(examples[name]):,} examples"
        + (f" ({len(found):,} rows left out)" if (found := examples[name].bad_rows.found) else "")
        for name in ("train", "val")
        if name in examples
    ]
    return ", ".join(said)


def _steps(trainer: Any) -> str:
    last, accumulate = last_step(trainer), trainer.accumulate_grad_batches
    said = [f"{last:,.0f}" if math.isfinite(last) else "no end by steps or epochs"]
    said += [f"from step {trainer.global_step} on"] if trainer.global_step else []
    said += [f"{accumulate} batches a step"] if accumulate > 1 else []
    said += [f"{trainer.world_size} ranks"] if trainer.world_size > 1 else []
    said += [f"seed {seed}"] if (seed := os.environ.get("PL_GLOBAL_SEED")) else []  # Lightning's, of `seed_everything`
    return ", ".join(said)


def end(trainer: Any, seconds: float, how: str = "finished") -> dict[str, str]:
    """Return what is said of a run that has ended, by name.

    Args:
        trainer: its trainer; no rank waits for another here, for some may have ended by an error.
        seconds: how long it took.
        how: `finished` or `stopped`.
    """
    last, folder = last_step(trainer), getattr(trainer.logger, "log_dir", None)
    of = "" if trainer.global_step >= last else f" of {last:,.0f}"
    said = {how: f"at step {trainer.global_step:,}{of}, after {as_time(seconds)}"}
    if figures := _figures(trainer.callback_metrics):
        said["reached"] = figures
    if folder:
        said["files"] = f"{folder}: {', '.join(sorted(path.name for path in Path(folder).glob('*.*')))}"
    if checkpoint := newest(trainer):
        said["checkpoint"] = checkpoint
    return said


def _figures(values: Any) -> str:
    """Return the last metrics of validation, or of training where there was none."""
    stage, named = ("val", "validation") if "val/loss" in values else ("train", "training")
    found = [
        f"{label} {values[f'{stage}/{name}']:{form}}"
        for name, (label, form) in SHOWN.items()
        if f"{stage}/{name}" in values
    ]
    return f"{', '.join(found)} ({named})" if found else ""


def newest(trainer: Any) -> str:
    """Return the checkpoint that was saved last: the one to go on from; empty where none was."""
    saved = [getattr(one, "last_model_path", "") for one in trainer.callbacks if isinstance(one, Checkpoint)]
    saved += [getattr(one, "best_model_path", "") for one in trainer.callbacks if isinstance(one, Checkpoint)]
    return next(filter(None, saved), "")
