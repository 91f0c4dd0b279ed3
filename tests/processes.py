"""Processes that are forked, with all imports done, by one server of `multiprocessing`: no process imports for itself.

The server is a process of its own, so they have nothing of the test's process but what they are given.
"""

import os
import runpy
import signal
import socket
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import NamedTuple

import torch

from lit_tr.commands import main

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "tests.processes",
        "lit_tr.commands.fit",
        "lit_tr.commands.iterate",
        "lit_tr.rewards",
        "tests.commands.rounds",
        "peft",
        "transformers.models.llama.modeling_llama",
        "lightning.pytorch.strategies.model_parallel",
    ]
)
PATIENCE = 240
"""Seconds after which a process that has not done its part is said to hang, on a busy machine too."""


class Done(NamedTuple):
    """How processes ended."""

    codes: list
    stdout: str
    stderr: str


def lit_tr(*args, environment=None, output=None):
    """Start `lit-tr` with its arguments."""
    return start(main, [*args], environment=environment, output=output)


def script(path, *args, environment=None, output=None):
    """Start a script of Python with its arguments."""
    return start(_script, str(path), *map(str, args), environment=environment, output=output)


def run(folder, text, *args, ranks=1, check=True):
    """Run a script to its end on several ranks; return the exit codes and what they printed, of all together."""
    path, outputs = Path(folder) / "script.py", [Path(folder) / f"said.{rank}" for rank in range(ranks)]
    path.write_text(text)
    started = [
        script(path, *args, environment=rank, output=output)
        for rank, output in zip(of_ranks(ranks), outputs, strict=True)
    ]
    codes = ended(*started)
    out, err = ("".join(Path(f"{output}.{stream}").read_text() for output in outputs) for stream in (1, 2))
    assert not check or codes == [0] * ranks, err[-3000:]
    return Done(codes, out, err)


def of_ranks(number):
    """The environment of each of several ranks, which start as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number), "NODE_RANK": "0"}
    return [{**group, "LOCAL_RANK": str(rank)} for rank in range(number)] if number > 1 else [{}]


def ended(*processes, seconds=PATIENCE):
    """Wait for processes; return their exit codes."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def start(work, *args, environment=None, output=None):
    """Start a function, with more variables of its environment, and the beginning of a path for what it prints."""
    given = {**os.environ, **(environment or {})}
    given.pop("PL_GLOBAL_SEED", None)  # of a test before: ranks, and not one process, would begin again from it
    process = FORKED.Process(target=_run, args=(work, args, given, output))
    process.start()
    return process


def _run(work, args, environment, output):
    os.environ.clear()
    os.environ.update(environment)
    set_start_method(None, force=True)  # workers start as they do by default, not by this server
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what it runs in the background
    torch.set_num_threads(1)
    if output is not None:
        for stream in (1, 2):
            os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    work(*args)


def _script(path, *args):
    sys.argv = [path, *args]
    runpy.run_path(path, run_name="__main__")
