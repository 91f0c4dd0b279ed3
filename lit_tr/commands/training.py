"""The training of a round: `lit-tr fit` in a process of its own, in a folder that no other process works in."""

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands.export import export
from lit_tr.commands.main import INTERRUPTED, TERMINATED
from lit_tr.errors import UserError, explained
from lit_tr.iteration.training import Config


@contextmanager
def alone(folder: Path) -> Iterator[TextIO]:
    """Keep other processes off a folder, also while a training that was left behind still runs there."""
    with explained(f"output {folder}: it cannot be written", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"output {folder}: another process makes rounds there, or its training still runs"
            ) from error
        yield lock


def train(folder: Path, config: Config, lock: TextIO) -> None:
    """Train by `lit-tr fit` in a process of its own, which may start others, and write the policy.

    Raises:
        UserError: the training failed.
    """
    file, runs = folder / "fit.yaml", folder / "training"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "lit_tr", "fit", "--config", str(file)]
    if newest := _newest(runs):
        command += ["--ckpt_path", str(newest)]
    gc.collect()  # of what was loaded here, for the memory that the training needs
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    code, checkpoint = _ended(command, lock), _newest(runs)
    if code or checkpoint is None:
        why = f"exit code {code}" if code else "no checkpoint was written"
        raise UserError(f"the training in {folder} failed ({why}, see above); fix it, and the same command goes on")
    for left in folder.glob(".policy-*"):  # of a kill while it was written
        shutil.rmtree(left)
    export(checkpoint, folder / "policy")


def _ended(command: Sequence[str], lock: TextIO) -> int:
    """Run a process to its end and return its exit code; a signal that stops this one stops that one, after a step.

    Raises:
        KeyboardInterrupt: SIGINT came, here or there.
        SIGTERMException: SIGTERM came.
    """
    asked, started = list[int](), list[subprocess.Popen]()
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in started:
            child.terminate()  # Ctrl-C reaches it by itself, and twice would not wait for the end of the step

    with _on_signals(stop, signal.SIGINT, signal.SIGTERM):
        started.append(subprocess.Popen(command, pass_fds=[lock.fileno()], env=environment))
        if asked:
            started[0].terminate()
        code = started[0].wait()
    if signal.SIGINT in asked or code == INTERRUPTED:
        raise KeyboardInterrupt
    if asked or code == TERMINATED:
        raise SIGTERMException
    return code


@contextmanager
def _on_signals(act: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    before = {number: signal.signal(number, act) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Make an exception of SIGTERM, which ends a phase as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SIGTERMException

    with _on_signals(stop, signal.SIGTERM):
        yield


def _newest(runs: Path) -> Path | None:
    return next(complete_checkpoints(runs), None) if runs.exists() else None
