"""Questions to language models, their answers, and a cache of them on disk, so that nothing is asked twice."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Protocol

from lit_tr.errors import UserError, explained

MOST_VARIABLES = 500
"""Keys in one query; SQLite has a limit."""


@dataclass(frozen=True)
class Question:
    """What a language model is asked.

    Args:
        messages: role and text of each message.
        max_tokens: most tokens of the answer.
        temperature: of sampling; 0 takes the likeliest token.
        log_probs: ask for the log-probs of the first token, where they can be had.
        draw: number of the answer, where one question is asked several times.
        top_p: draw from the likeliest tokens that together have at least this probability.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int = 1
    temperature: float = 0.0
    log_probs: bool = True
    draw: int = 0
    top_p: float = 1.0

    def key(self, model: str) -> str:
        """Return the SHA-256 of the model's name, the prompt and the sampling."""
        return hashlib.sha256(json.dumps([model, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the prompt."""
        return sum(len(text.encode()) for _, text in self.messages)


@dataclass(frozen=True)
class Answer:
    """What a language model answered.

    Args:
        text: the answer.
        first: log-probs in nats of the likeliest first tokens; None where the model does not tell.
        prompt_tokens: tokens of the question.
        tokens: tokens of the answer.
    """

    text: str
    first: Mapping[str, float] | None = None
    prompt_tokens: int = 0
    tokens: int = 0


Keep = Callable[[Question, Answer], None]
"""Keeps an answer; it may be called from any thread."""


class LanguageModel(Protocol):
    """Answers questions. `name` says which model it is, in the cache, in files and in tables."""

    @property
    def name(self) -> str:
        """In the cache, in files and in tables."""
        ...

    def answer(self, questions: Sequence[Question], keep: Keep) -> None:
        """Ask, and keep each answer as soon as it comes. What cannot be answered is left out and counted."""
        ...


@dataclass
class Counts:
    """What was asked.

    Args:
        asked: questions that a model answered now.
        cached: questions that had been answered before.
        failed: questions without an answer.
        prompt_tokens: tokens of the questions that were asked now.
        tokens: tokens of their answers.
    """

    asked: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(eq=False)
class Answers:
    """A cache of answers: an SQLite file, or memory. Each answer is on the disk before the next one is waited for.

    The key of an answer is the SHA-256 of model, prompt and sampling. Neither questions nor addresses nor keys are in
    the file, which is opened, or made with its folders, at the first question.

    Args:
        path: the file; None keeps answers in memory.
    """

    path: str | Path | None = None
    lock: Lock = field(default_factory=Lock, init=False, repr=False)

    @cached_property
    def _base(self) -> sqlite3.Connection:  # used with the lock alone: two bases in memory would be two caches
        with explained(f"{self.path}: it cannot be opened as a cache of answers", OSError, sqlite3.Error):
            if self.path is not None:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
            base.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, answer TEXT NOT NULL)"
            )
        return base

    def known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that are there, by key.

        Raises:
            UserError: the file cannot be opened, or is something else.
        """
        wanted = [*dict.fromkeys(keys)]
        found: dict[str, Answer] = {}
        for i in range(0, len(wanted), MOST_VARIABLES):
            part = wanted[i : i + MOST_VARIABLES]
            query = f"SELECT key, answer FROM answers WHERE key IN ({', '.join('?' * len(part))})"
            with self.lock:
                found |= {key: Answer(**json.loads(answer)) for key, answer in self._base.execute(query, part)}
        return found

    def hold(self, model: str) -> bool:
        """Return whether a model has answered anything."""
        query = "SELECT 1 FROM answers WHERE model = ? LIMIT 1"
        with self.lock:
            return self._base.execute(query, (model,)).fetchone() is not None

    def keep(self, key: str, model: str, answer: Answer) -> None:
        """Write an answer.

        Raises:
            UserError: it cannot be written, or the file cannot be opened.
        """
        row = (key, model, json.dumps(asdict(answer), ensure_ascii=False))
        try:
            with self.lock:
                self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: an answer cannot be written ({error}); make room and run again") from error


@dataclass
class Asker:
    """Asks a language model what the cache does not know.

    Args:
        model: the language model.
        answers: the cache.
        complete: take no question without an answer: a score that was not given is not one that says nothing. False
            leaves out and counts what has none, as `lit-tr judge` does.

    Attributes:
        counts: what was asked so far.
        watch: is told how many more questions are done, each time that some are.
    """

    model: LanguageModel
    answers: Answers = field(default_factory=Answers)
    complete: bool = True
    counts: Counts = field(default_factory=Counts, init=False)
    watch: Callable[[int], object] | None = field(default=None, init=False, repr=False, compare=False)

    def ask(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Return the answer to each question; None where there is none.

        If all must have one, a question that is refused for good, such as one too long for a server, has an empty one.

        Raises:
            UserError: they must, and some have none.
        """
        keys = [question.key(self.model.name) for question in questions]
        known = self.answers.known(keys)
        missing = {key: one for key, one in zip(keys, questions, strict=True) if key not in known}
        if self.complete:  # in an order by chance: a prompt that is refused does not come in a row with all its samples
            missing = dict(sorted(missing.items()))
        self.counts.cached += len({*keys}) - len(missing)
        self._done(len(keys) - len(missing))
        self.model.answer([*missing.values()], self._keep)
        known |= self.answers.known(missing)
        left = {key: one for key, one in missing.items() if key not in known}
        self.counts.failed += len(left)
        if self.complete and left:
            known |= self._kept_refusals(left)
            self._check(sum(key not in known for key in left), len(questions))
        return [known.get(key) for key in keys]

    def _kept_refusals(self, left: Mapping[str, Question]) -> dict[str, Answer]:
        """Keep empty answers to the questions that a model which answers others refuses."""
        refused = getattr(self.model, "refused", ()) if self.answers.hold(self.model.name) else ()
        found = {key: Answer("") for key, one in left.items() if one in refused}
        for key, answer in found.items():
            self.answers.keep(key, self.model.name, answer)
        return found

    def _check(self, missing: int, asked: int) -> None:
        if missing:
            why = getattr(self.model, "last_failure", "") or "it gives none"
            raise UserError(
                f"{self.model.name}: {missing} of {asked} questions have no answer ({why}). What is answered is "
                "kept: the same command asks the rest again and goes on"
            )

    def _keep(self, question: Question, answer: Answer) -> None:
        self.answers.keep(question.key(self.model.name), self.model.name, answer)
        with self.answers.lock:
            self.counts.asked += 1
            self.counts.prompt_tokens += answer.prompt_tokens
            self.counts.tokens += answer.tokens
        self._done(1)

    def _done(self, more: int) -> None:
        if self.watch:
            self.watch(more)
