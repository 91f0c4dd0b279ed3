"""A policy behind a server that speaks OpenAI's protocol: vLLM, SGLang, `transformers serve`, llama.cpp, and others."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

from lit_tr.errors import UserError
from lit_tr.evaluation.connection import REFUSED, client
from lit_tr.evaluation.local import Request, answered
from lit_tr.evaluation.prompts import Prompt, Reader
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling

KEY = "OPENAI_API_KEY"
"""Environment variable of the key; it goes nowhere but to the server."""


class RefusedError(UserError):
    """A request that the server will never answer as it is."""


@dataclass
class ServedPolicy:
    """A policy that a running server computes.

    Args:
        server: address, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is added.
        model: its name there; None takes the only one that there is.
        name: names it in files of responses; None takes the model's name.
        at_once: most requests at a time.
        retries: how often a request is tried again after a time-out, a lost connection, or the status 408, 409, 429 or
            5xx. The waits double, or are as long as `Retry-After` says.
        timeout: most seconds of a request.
        refused: requests that were refused, with the reason; filled by `respond`.

    Raises:
        UserError: the `openai` package is not installed.
    """

    server: str
    model: str | None = None
    name: str = ""
    at_once: int = 8
    retries: int = 5
    timeout: float = 600.0
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = address(self.server)
        self._client = client("a server", self.server, os.environ.get(KEY), self.retries, self.timeout)
        self.name = self.name or self.served_model

    @cached_property
    def served_model(self) -> str:
        """The name of the model on the server.

        Raises:
            UserError: none is given, and the server has several or none; or it cannot be reached.
        """
        if self.model:
            return self.model
        with asked(self.server):
            models = [one.id for one in self._client.models.list()]
        if len(models) != 1:
            raise UserError(f"{self.server}: give model, one of: {', '.join(models) or 'none is served'}")
        return models[0]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other policies. Which weights the server has behind the name, nobody can know."""
        return {"server": self.server, "model": self.served_model}

    def reader(self, sampling: Sampling) -> Reader:
        """Return what makes prompts of rows: messages as they are, for the server has the chat template."""
        return Reader()

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they come, with several requests at a time.

        Raises:
            UserError: the server cannot be reached any more, or refuses all requests.
        """
        with ThreadPoolExecutor(self.at_once) as pool:
            made = [pool.submit(self._answer, prompt, sample, sampling) for prompt, sample in requests]
            try:
                for one in as_completed(made):
                    try:
                        yield [one.result()]
                    except RefusedError as error:
                        self.refused.append(str(error))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, prompt: Prompt, sample: int, sampling: Sampling) -> Response:
        chat = isinstance(prompt.shown, list)
        ask = self._client.chat.completions.create if chat else self._client.completions.create
        with asked(self.server, prompt.id):
            found: Any = ask(**self._asked(prompt, sample, sampling))
        choice = next(iter(found.choices or []), None)
        text = None if choice is None else (choice.message.content if chat else choice.text)
        if choice is None or text is None:
            raise RefusedError(f"{self.server}: prompt {prompt.id}: the answer holds no text")
        tokens = found.usage.completion_tokens if found.usage else None
        finished = None if choice.finish_reason is None else choice.finish_reason == "stop"
        return answered(prompt, sample, self.name, text, tokens, finished)

    def _asked(self, prompt: Prompt, sample: int, sampling: Sampling) -> dict[str, Any]:
        digest = blake2b(f"{sampling.seed}\n{self.name}\n{prompt.id}\n{sample}".encode(), digest_size=4).digest()
        extra = {"top_k": sampling.top_k or None, "chat_template_kwargs": dict(prompt.template) or None}
        return {
            "model": self.served_model,
            **({"messages": prompt.shown} if isinstance(prompt.shown, list) else {"prompt": prompt.shown}),
            **({"tools": prompt.tools} if prompt.tools else {}),
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.is_greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int.from_bytes(digest) >> 1,
            "extra_body": {name: value for name, value in extra.items() if value} or None,
        }


def address(server: str) -> str:
    """Return the address of a server with `/v1` where it has no path.

    Raises:
        UserError: it is no address.
    """
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"server {server!r}: give its address, such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc:
        raise UserError(f"server: leave name and password out of the address; a key is read from {KEY}")
    return server.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


@contextmanager
def asked(server: str, prompt: str | None = None) -> Iterator[None]:
    """Put what the client raises into words.

    Raises:
        RefusedError: the server refuses this request alone.
        UserError: it cannot be reached, or refuses all.
    """
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        if error.status_code in REFUSED and prompt is not None:
            raise RefusedError(f"{server}: prompt {prompt}: {_said(error)}") from error
        hint = f"; set {KEY} in the environment" if error.status_code in (401, 403) else ""
        raise UserError(f"{server}: {_said(error)}{hint}") from error
    except openai.APIError as error:
        raise UserError(f"{server}: cannot be reached, or gives no valid answer ({error})") from error


def _said(error: Any) -> str:
    body = error.response.text.strip()
    return f"status {error.status_code} ({body[:300]})"
