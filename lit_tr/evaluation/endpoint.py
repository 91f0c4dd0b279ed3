"""A language model behind an OpenAI-compatible address: OpenAI, vLLM, SGLang, llama.cpp, `transformers serve`."""

import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Keep, Question
from lit_tr.evaluation.connection import REFUSED, client
from lit_tr.evaluation.spending import TOKENS_A_BYTE, LimitReached, Limits, Spending

LIKELIEST = 20
"""Tokens whose log-probs are asked for; OpenAI and vLLM give no more."""
TRIES = 3
"""How often a question is asked whose answer is malformed."""
FAILURES = 10
"""Questions in a row without a usable answer, after which no more are asked."""
TO_DO = {401: "Set the key in {key}. ", 403: "Set a key that may use it in {key}. ", 404: "Check url and model. "}
KEPT = "All answers so far are kept: run the same command again, and it goes on"
UNTAKEN = {
    "logprobs": "it gives no log-probs: answers are read from their text",
    "max_completion_tokens": "it takes max_completion_tokens in the place of max_tokens",
    "temperature": "it takes no temperature: answers have the server's own",
    "top_p": "it takes no top_p: answers have the server's own",
}
"""Words in a server's refusal, and what is done about it."""


class MalformedError(Exception):
    """A server's answer that is no chat completion."""


@dataclass
class Endpoint:
    """A language model behind an OpenAI-compatible address.

    The `openai` client asks again after errors of the connection, time-outs, status 408, 409, 429 and 5xx, as
    `Retry-After` says or with growing delays. The key is read from the environment and is never written.

    Args:
        model: name of the model, as the server has it. Answers in the cache go by this name and not by the address.
        url: address up to `/v1`; None takes OPENAI_BASE_URL, or OpenAI's own.
        key_variable: name of the environment variable that holds the key.
        concurrency: questions that are asked at once.
        retries: how often a question is asked again.
        timeout: seconds to wait for an answer.
        limits: most tokens and cost of one run.

    Attributes:
        notes: what the user should know of the server, such as that it gives no log-probs.
        last_failure: why the last question without a usable answer has none.
        refused: questions of the last call of `answer` that the server refused, such as those too long for it.

    Raises:
        UserError: `openai` is not installed, or there is no key for OpenAI's own address.
    """

    model: str
    url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    limits: Limits = field(default_factory=Limits)
    notes: list[str] = field(default_factory=list, init=False)
    last_failure: str = field(default="", init=False)
    refused: list[Question] = field(default_factory=list, init=False, repr=False)
    _untaken: list[str] = field(default_factory=list, init=False, repr=False)
    _failures: int = field(default=0, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise UserError("Endpoint: concurrency must be at least 1, retries at least 0, and timeout above 0")
        self.spending = Spending(self.limits)
        self._client  # noqa: B018  (before work starts)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def answer(self, questions: Sequence[Question], keep: Keep) -> None:
        """Ask questions, several at once, and keep each answer as soon as it comes.

        Raises:
            LimitReached: the next question could pass a limit; those in the air are waited for and kept.
            UserError: the server cannot be reached, refuses the key, or gives no usable answer to many in a row.
        """
        waiting: set[Future[None]] = set()
        self.refused, self._failures = [], 0
        with ThreadPoolExecutor(self.concurrency) as pool:
            for question in questions:
                waiting = self._wait_for_room(waiting, question)
                waiting.add(pool.submit(self._answer, question, keep))
            for future in waiting:
                future.result()

    def _wait_for_room(self, waiting: set[Future[None]], question: Question) -> set[Future[None]]:
        """Wait until one more question may be in the air, and count it as such."""
        while len(waiting) >= self.concurrency or not self.spending.reserve(question):
            if not waiting:
                raise LimitReached(self._limit_message())
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        return waiting

    def _limit_message(self) -> str:
        spent, limits = self.spending, self.limits
        cost = f", {limits.cost_of(spent.prompt_tokens, spent.tokens):.4f} of {limits.cost}" if limits.cost else ""
        tokens = f" of {limits.tokens:,}" if limits.tokens is not None else ""
        return (
            f"the limit is reached: {spent.prompt_tokens + spent.tokens:,.0f}{tokens} tokens{cost} are spent, and the "
            "next question could pass it. All answers are kept: run the same command again, with the same or a higher "
            "limit for what is left, and it goes on"
        )

    def _answer(self, question: Question, keep: Keep) -> None:
        answer = None
        try:
            answer = self._asked(question)
            if answer is not None:
                keep(question, answer)
        finally:
            self.spending.settle(question, answer)

    def _asked(self, question: Question) -> Answer | None:
        """Return the answer, or None where there is none that can be used."""
        from openai import APIStatusError

        try:
            answer = self._well_formed(question)
        except MalformedError as error:
            self._count_failure(f"its answers are malformed: {error}")
            return None
        except APIStatusError as error:
            if error.status_code not in REFUSED:
                raise UserError(self._explained(error)) from None
            self.refused.append(question)
            self._count_failure(f"it refuses questions: {self._clean(error.message)}")
            return None
        self._failures = 0
        return answer

    def _well_formed(self, question: Question) -> Answer:
        """Return the answer, after asking again where it is malformed."""
        for attempt in range(TRIES - 1):
            try:
                return self._read(self._reply(question), question)
            except MalformedError:
                time.sleep(0.25 * 2**attempt)
        return self._read(self._reply(question), question)

    def _reply(self, question: Question) -> str:
        """Return the body of the server's answer; what the server does not take is left out from then on."""
        from openai import APIConnectionError, BadRequestError

        while True:
            untaken = tuple(self._untaken)
            try:
                return self._client.chat.completions.with_raw_response.create(**self._request(question, untaken)).text
            except BadRequestError as error:
                new = [word for word in UNTAKEN if word in error.message and word not in untaken]
                if not new:
                    raise
                self._leave_out(new[0])
            except APIConnectionError as error:
                raise UserError(self._explained(error.__cause__ or error)) from None

    def _request(self, question: Question, untaken: Sequence[str]) -> dict[str, Any]:
        most = "max_completion_tokens" if "max_completion_tokens" in untaken else "max_tokens"
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in question.messages],
            most: question.max_tokens,
        }
        if "temperature" not in untaken:
            asked["temperature"] = question.temperature
        if question.top_p < 1 and "top_p" not in untaken:
            asked["top_p"] = question.top_p
        if question.log_probs and "logprobs" not in untaken:
            asked |= {"logprobs": True, "top_logprobs": LIKELIEST}
        return asked

    def _leave_out(self, word: str) -> None:
        self._untaken.append(word)
        self._note(f"{self.model}: {UNTAKEN[word]}")

    def _note(self, line: str) -> None:
        with self._lock:
            if line not in self.notes:
                self.notes.append(line)

    def _read(self, body: str, question: Question) -> Answer:
        """Return the answer in a body.

        Raises:
            MalformedError: it is no chat completion.
        """
        try:
            reply = json.loads(body)
            [choice, *_] = reply["choices"]
            text = choice["message"].get("content") or ""
            first = _first_token(choice.get("logprobs")) if question.log_probs else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MalformedError(self._clean(f"{body[:80]!r}, {type(error).__name__}: {error}")) from None
        if not text and first is None:
            self._note(f"{self.model}: some answers are empty; a model that reasons first needs a larger max_tokens")
        used = reply.get("usage")
        if not isinstance(used, dict) or not isinstance(used.get("prompt_tokens"), int):
            self._note(f"{self.model}: it counts no tokens: they are estimated from the length of texts")
            used = {"prompt_tokens": round(question.size * TOKENS_A_BYTE), "completion_tokens": len(text) // 3 + 1}
        return Answer(self._clean(text), first, used["prompt_tokens"], used.get("completion_tokens") or 0)

    def _count_failure(self, why: str) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES:
                raise UserError(
                    f"{self.model}: {FAILURES} questions in a row have no answer that can be used; {why}. {KEPT}"
                )
            self.last_failure = why

    def _explained(self, error: BaseException) -> str:
        from openai import APIStatusError

        said = self._clean(str(error) or type(error).__name__)
        if not isinstance(error, APIStatusError):
            return f"{self.model}: no answer from {self._where} after {self.retries + 1} tries ({said}). {KEPT}"
        todo = TO_DO.get(error.status_code, "").format(key=self.key_variable)
        return f"{self.model}: {self._where} answers with status {error.status_code}: {said}. {todo}{KEPT}"

    def _clean(self, text: str) -> str:
        """Return a text without the key, which a server may repeat."""
        key = os.environ.get(self.key_variable)
        return text.replace(key, "***") if key else text

    @property
    def _where(self) -> str:
        address = self._client.base_url
        return f"{address.scheme}://{address.netloc.decode().rpartition('@')[2]}{address.path}"

    @cached_property
    def _client(self) -> Any:
        key = os.environ.get(self.key_variable)
        if not key and not (self.url or os.environ.get("OPENAI_BASE_URL")):
            raise UserError(f"{self.model}: set the key in the environment variable {self.key_variable}, or give a url")
        return client("a judge by address", self.url, key, self.retries, self.timeout)


def _first_token(log_probs: Any) -> dict[str, float] | None:
    """Return log-probs of the likeliest first tokens; None where a server gives none, or that of one token alone."""
    if not log_probs or not log_probs.get("content"):
        return None
    likeliest = log_probs["content"][0].get("top_logprobs") or []
    first: dict[str, float] = {}
    for one in likeliest:  # several tokens of bytes may have one text
        first[one["token"]] = max(float(one["logprob"]), first.get(one["token"], -math.inf))
    return first if len(first) > 1 else None
