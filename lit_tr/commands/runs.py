"""The folder of a run, its curves over a resume, and what is said at its end."""

import csv
import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_tr.console import RunSummary
from lit_tr.console.pace import last_step
from lit_tr.console.summary import end, lines, newest
from lit_tr.errors import UserError

METRICS = "metrics.csv"
CONFIG = "config.yaml"
RUNS = "runs"
"""Folder of the runs where `trainer.default_root_dir` names none."""


def run_loggers(root: str | None, name: str | None, others: Iterable[str]) -> list[Logger]:
    """Return what writes a run's metrics to its folder, named by the time of its start and a name, and the others.

    Args:
        root: folder of the runs.
        name: name of the run, if it has one.
        others: some of `tensorboard`, `wandb` and `mlflow`, which write into the same folder; wandb to its server, too.
            `csv` is what there is already.

    Raises:
        UserError: the package of one of the others is not installed.
    """
    csv_logger = CSVLogger(root or RUNS, name="", version=_unused(Path(root or RUNS), name))
    folder, project = csv_logger.log_dir, Path(root or RUNS).resolve().name
    make: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version=""),
        "wandb": lambda: WandbLogger(name=name, save_dir=folder, project=project),
        "mlflow": lambda: MLFlowLogger(project, run_name=name, save_dir=f"{folder}/mlruns"),
    }
    return [csv_logger, *(_made(one, make[one]) for one in others if one != "csv")]


def _made(name: str, make: Callable[[], Logger]) -> Logger:
    try:
        return make()
    except ModuleNotFoundError as error:
        raise UserError(f"--logger {name} needs a package that is not installed: pip install {name}") from error


def _unused(root: Path, name: str | None) -> str:
    """Return the name of a folder that is not there yet."""
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    named = f"{started}_{name}" if name else started
    numbers = chain([""], (f"_{number}" for number in count(2)))
    return next(named + number for number in numbers if not (root / (named + number)).exists())


def remove_empty(folder: str) -> None:
    """Remove the folder of a run that failed before anything was written to it."""
    with suppress(OSError):  # it holds something, or was never made
        Path(folder).rmdir()


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, and `last.ckpt` is that of the end of training too, not of the last validation before it."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the end, unless it is saved."""
        super().on_train_end(trainer, pl_module)
        if self.last_model_path and self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:
            trainer.save_checkpoint(self.last_model_path)


class WholeCurves(Callback):
    """Lets `metrics.csv` of a run that goes on from a checkpoint begin with the metrics up to there.

    They are looked for in the folder above the checkpoint's, as runs lay it out, or else where the run wrote them.
    """

    def __init__(self) -> None:
        self.metrics = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the path of the run's metrics."""
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the path of the metrics of the run that is gone on with."""
        self.metrics = state_dict["metrics"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Copy the rows of the run that is gone on with."""
        for logger in (one for one in trainer.loggers if isinstance(one, CSVLogger)):
            own = Path(logger.log_dir).resolve() / METRICS
            if trainer.ckpt_path and trainer.is_global_zero:
                beside = Path(trainer.ckpt_path).resolve().parent.parent / METRICS
                before = beside if beside.exists() else Path(self.metrics)
                if before.is_file() and before != own:
                    logger.experiment.metrics[:0] = _rows(before, trainer.global_step)
            self.metrics = str(own)


def _rows(file: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.csv` that were logged before an optimizer step ended."""
    with file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if int(row["step"]) < step]
    return [{name: value for name, value in row.items() if value} for row in rows]


def say_end(trainer: Any, seconds: float, complete: bool) -> None:
    """Print how a run ended, unless its summary did, and the commands that come next; nothing if it never began."""
    if not trainer.is_global_zero or not trainer.global_step:
        return
    if not complete or RunSummary not in map(type, trainer.callbacks):
        lines(end(trainer, seconds, "finished" if complete else "stopped"))
    # of the logger, for `trainer.log_dir` waits for all ranks, and some may have ended by an error
    folder = Path(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir)
    checkpoint, commands = newest(trainer), []
    if checkpoint and trainer.global_step < last_step(trainer) and (folder / CONFIG).exists():
        commands.append(["fit", "--config", str(folder / CONFIG), "--ckpt_path", checkpoint])
    if checkpoint:
        commands.append(["export", "--checkpoint", checkpoint, "--output", str(folder / "exported")])
    if _has_curves(folder / METRICS):
        commands.append(["report", str(folder)])
    if commands:
        print("\nWhat comes next:")
    for command in commands:
        print(f"  {shlex.join(['lit-tr', *command])}")


def _has_curves(metrics: Path) -> bool:
    """Return whether a `metrics.csv` has more than the first batch, before any step."""
    if not metrics.exists():
        return False
    with metrics.open(newline="") as opened:
        return any(name.startswith(("train/", "val/")) for name in csv.DictReader(opened).fieldnames or [])
