"""Responses and scores by several processes, each on a device of its own."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread
from traceback import format_exc
from typing import Any
from zlib import crc32

import torch

from lit_tr.errors import UserError
from lit_tr.evaluation.local import LocalPolicy, Request
from lit_tr.evaluation.prompts import Reader
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling

Opened = Callable[[str], LocalPolicy]
"""From a device to a policy there, as another process can call it."""
Work = Callable[[str, list[Any]], Iterator[Any]]
"""From a device and a part of the work to what is made of it, piece by piece."""


@dataclass(frozen=True)
class Failure:
    """What went wrong in a process, in words, for not every exception can be pickled and made again.

    Args:
        kind: the name of the exception.
        text: its message.
        traceback: where it was raised.
    """

    kind: str
    text: str
    traceback: str

    def error(self) -> Exception:
        """Return an exception of that name and message, caused by one with the traceback."""
        made = type(self.kind, (RuntimeError,), {})(self.text)
        made.__cause__ = RuntimeError(f"in another process\n{self.traceback}")
        return made


@dataclass(frozen=True)
class Spread:
    """A policy that is loaded by several processes, in the place of this one, each of which answers a part.

    Which part a request is in does not depend on what is answered already, so batches are the same after any stop.

    Args:
        policy: the policy, as this process knows it; its weights are not loaded.
        opened: opens it on a device.
        devices: a device for each process.
    """

    policy: LocalPolicy
    opened: Opened
    devices: Sequence[str]

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def identity(self) -> dict[str, Any]:
        """The policy's."""
        return self.policy.identity

    def reader(self, sampling: Sampling) -> Reader:
        """Return the policy's."""
        return self.policy.reader(sampling)

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they come, a batch at a time.

        Raises:
            UserError: a process ended before its part was done.
        """
        parts = shared_out((((one.id, sample), (one, sample)) for one, sample in requests), len(self.devices))
        yield from on_devices(self.name, self.devices, partial(_respond, self.opened, sampling), parts)


def _respond(opened: Opened, sampling: Sampling, device: str, requests: list[Request]) -> Iterator[list[Response]]:
    return opened(device).respond(requests, sampling)


def shared_out(work: Iterable[tuple[tuple[str, int], Any]], count: int) -> list[list[Any]]:
    """Return the parts of some work; which part a piece is in does not depend on what is left of the work.

    Args:
        work: the pieces, each behind its key: the id of its prompt, and the number of the response.
        count: of the parts.
    """
    parts: list[list[Any]] = [[] for _ in range(count)]
    for (prompt, sample), one in work:
        parts[crc32(f"{prompt} {sample}".encode()) % count].append(one)
    return parts


def on_devices(name: str, devices: Sequence[str], work: Work, parts: Sequence[list[Any]]) -> Iterator[Any]:
    """Yield what processes make, as it comes: each has one of the devices and one of the parts.

    Args:
        name: what works, for messages.
        devices: a device for each process; it is the one that `cuda` means there.
        work: from a device and a part to what is made of it, piece by piece; as another process can call it.
        parts: a part for each process.

    Raises:
        UserError: a process raised one, or ended before its part was done.
        RuntimeError: what else a process raised, by its name and with its traceback.
    """
    context, processes, running = get_context("spawn"), [], dict[Any, str]()
    try:
        for device, part in zip(devices, parts, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            processes.append(context.Process(target=_send, args=(theirs, work, device, part), daemon=True))
            processes[-1].start()
            theirs.close()
            running[ours] = device
        while running:
            for connection in wait([*running]):
                if (made := _received(name, connection, running[connection])) is None:
                    del running[connection]
                else:
                    yield made
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _received(name: str, ours: Any, device: str) -> Any:
    try:
        made = ours.recv()
    except EOFError as error:
        raise UserError(f"{name}: the process on {device} ended; the same command goes on") from error
    if isinstance(made, Failure):
        raise made.error()
    if isinstance(made, UserError):
        raise made
    return made


def _send(theirs: Connection, work: Work, device: str, part: list[Any]) -> None:
    """Send what is made of a part, then None; or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    Thread(target=_end_with_parent, daemon=True).start()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    try:
        for made in work(device, part) if part else ():
            theirs.send(made)
        theirs.send(None)
    except BrokenPipeError:
        pass  # the first process is gone
    except UserError as error:
        theirs.send(UserError(str(error)))  # one of its kinds may not be made again by its message
    except Exception as error:
        theirs.send(Failure(type(error).__name__, str(error), format_exc()))


def _end_with_parent() -> None:
    """Wait for the end of the first process, which a kill ends without a word to this one."""
    if first := parent_process():
        first.join()
    signal.raise_signal(signal.SIGKILL)
