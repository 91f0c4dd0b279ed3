"""Responses of a policy to prompts, in a file that is gone on with after any stop."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from lit_tr.errors import UserError
from lit_tr.evaluation.local import Request
from lit_tr.evaluation.prompts import Prompt, Reader
from lit_tr.evaluation.responses import Response, append, read
from lit_tr.evaluation.sampling import Sampling


class Policy(Protocol):
    """What answers prompts.

    Attributes:
        name: names it in files of responses.
        identity: tells it from others, plain data.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def identity(self) -> dict[str, Any]: ...  # noqa: D102

    def reader(self, sampling: Sampling) -> Reader:
        """Return what makes prompts of rows for it."""

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield a response to each request, some at a time, in any order."""


class ResponseFile:
    """A file of responses, `NAME.jsonl`, with the settings that they were made by in `NAME.settings.json`.

    Args:
        path: the file; one that is there already is gone on with.
        policy: answers the prompts.
        prompts: the prompts.
        sampling: how responses are drawn.

    Raises:
        UserError: the file holds responses of another policy, to other prompts or by another sampling, or nobody knows.
    """

    def __init__(self, path: str | Path, policy: Policy, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self.path, self.policy, self.prompts, self.sampling = Path(path), policy, prompts, sampling
        self.settings = {
            "name": policy.name,
            "policy": policy.identity,
            "sampling": asdict(sampling),
            "prompts": {"count": len(prompts), "hash": _hash(prompts)},
        }
        self._check()

    @property
    def total(self) -> int:
        """How many responses there will be."""
        return len(self.prompts) * self.sampling.samples

    def done(self) -> list[Response]:
        """Return the responses that there are."""
        return read(self.path) if self.path.exists() else []

    def missing(self) -> list[Request]:
        """Return what is still to be answered."""
        found = {one.key for one in self.done()}
        all_ = ((prompt, sample) for prompt in self.prompts for sample in range(self.sampling.samples))
        return [(prompt, sample) for prompt, sample in all_ if (prompt.id, sample) not in found]

    def complete(self, tell: Callable[[list[Response]], None] = lambda responses: None) -> list[Response]:
        """Answer what is missing; each batch is on the disk before the next one begins.

        Args:
            tell: called with the responses of each batch.

        Returns:
            All responses, in the order of the prompts.

        Raises:
            UserError: another process writes this file, or the policy cannot answer.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._check()
            if missing := self.missing():
                for responses in self.policy.respond(missing, self.sampling):
                    append(self.path, responses)
                    tell(responses)
        order = {prompt.id: number for number, prompt in enumerate(self.prompts)}
        done = self.done()
        if strange := [one.id for one in done if one.id not in order]:
            raise UserError(f"{self.path}: id {strange[0]!r} is none of the prompts; remove its lines")
        return sorted(done, key=lambda one: (order[one.id], one.sample))

    @property
    def _settings_path(self) -> Path:
        return self.path.with_suffix(".settings.json")

    def _check(self) -> None:
        """Check that what is there goes with these settings."""
        kept = _json(self._settings_path)
        if kept is None and self.path.exists() and self.path.stat().st_size:
            raise UserError(
                f"{self.path}: it holds something already, and no {self._settings_path.name} beside it says by what "
                "settings: give another output"
            )
        differing = [] if kept is None else list(differences(kept, self.settings))
        if differing:
            raise UserError(
                f"{self.path}: its responses are of other settings ({'; '.join(differing)}): give another output, or "
                "remove it"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Write the settings, and keep other processes off; the system lets go when this one ends, however it does."""
        with self._settings_path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.path}: another process writes its responses") from error
            if _json(self._settings_path) is None:  # there is none, or a crash cut it short before any response
                file.truncate(0)
                file.write(json.dumps(self.settings, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            yield


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _hash(prompts: Sequence[Prompt]) -> str:
    lines = (json.dumps([one.id, one.shown, one.ids], default=str) for one in prompts)
    return blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def differences(kept: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield what differs in two settings, each by its name and both values."""
    if isinstance(kept, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*kept, *now]):
            yield from differences(kept.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif kept != now:
        yield f"{name}: {kept}, now {now}"
