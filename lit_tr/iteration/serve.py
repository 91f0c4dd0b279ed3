"""A server of the policy of a round, which is started where its candidates are wanted."""

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from lit_tr.errors import UserError, explained
from lit_tr.evaluation.local import LocalPolicy, Request
from lit_tr.evaluation.prompts import Reader
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.served import ServedPolicy, address
from lit_tr.iteration.training import substituted

SECONDS = 0.5
"""Between two questions whether it answers."""
GRACE = 60.0
"""Seconds for it to end by itself."""


@dataclass(frozen=True)
class Serve:
    """An OpenAI-compatible server of each round's policy: vLLM, SGLang, `transformers serve`.

    It is started before the first candidate of a round that is missing and ended behind the last one, so that the
    training has the devices for itself. The folder of the policy is that of a model, or of an adapter where the
    training is of one: then the command must name its base, and `model` the adapter.

    Args:
        command: starts it, with `{policy}` for the folder: `vllm serve {policy} --port 8000`.
        url: its address up to `/v1`.
        model: what the server calls the model; None takes the folder, as vLLM does.
        at_once: most requests at a time.
        timeout: most seconds until it answers.

    Raises:
        UserError: the command is empty or cannot be read.
    """

    command: str
    url: str
    model: str | None = None
    at_once: int = 64
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        with explained("serve: the command cannot be read", ValueError):
            if not shlex.split(self.command):
                raise UserError("serve: the command is empty")

    def named(self, names: Mapping[str, str]) -> "Serve":
        """Return it with `{policy}` and other names replaced; what stands for one stays one word of the command."""
        command = shlex.join(substituted(shlex.split(self.command), names))
        return Serve(**substituted(vars(self), names) | {"command": command})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the server, and end it behind the `with`.

        Raises:
            UserError: something else answers at its address, or it does not start.
        """
        if self._answers():
            raise UserError(
                f"serve: something answers at {self.url} already, perhaps with other weights: end it, and the same "
                "command goes on"
            )
        with explained(f"serve: {self.command!r} cannot be started", OSError):
            process = subprocess.Popen(shlex.split(self.command))
        try:
            self._wait(process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait(self, process: subprocess.Popen) -> None:
        until = time.monotonic() + self.timeout
        while not self._answers():
            if (code := process.poll()) is not None:
                raise UserError(f"serve: {self.command!r} ended with exit code {code} before it answered, see above")
            if time.monotonic() > until:
                raise UserError(f"serve: nothing answers at {self.url} after {self.timeout:g} s")
            time.sleep(SECONDS)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{address(self.url)}/models", timeout=5):
                return True
        except HTTPError:  # it says no, and so it is there
            return True
        except (OSError, HTTPException):
            return False


@dataclass(frozen=True)
class Served:
    """A policy that a server computes which is started for it, in the place of this process.

    Args:
        policy: the policy, as this process knows it; its weights are not loaded.
        path: its folder.
        serve: the server.
    """

    policy: LocalPolicy
    path: str
    serve: Serve

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def identity(self) -> dict[str, Any]:
        """The policy's, by a server."""
        return self.policy.identity | {"served": True}

    def reader(self, sampling: Sampling) -> Reader:
        """Return the policy's."""
        return self.policy.reader(sampling)

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they come, while the server runs.

        Raises:
            UserError: the server does not start, cannot be reached any more, or refuses a request.
        """
        with self.serve.running():
            served = ServedPolicy(self.serve.url, self.serve.model or self.path, self.name, self.serve.at_once)
            yield from served.respond(requests, sampling)
            if served.refused:
                raise UserError(
                    f"serve: {len(served.refused)} requests were refused and have no candidate; the first: "
                    f"{served.refused[0]}. Let the server take longer prompts, or leave such rows out"
                )
