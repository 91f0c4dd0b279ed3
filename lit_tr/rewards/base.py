"""What a reward is: something that scores a response to a prompt."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from lit_tr.data.example import Text
from lit_tr.errors import UserError, explained

Features = dict[str, float]
"""The score of a response, as `score`, and what it is made of, by name."""
Function = Callable[[str, str], float]
"""From a prompt and a response to a score, such as `lit_tr.embedded.GoldReward`."""


@dataclass(frozen=True)
class Candidate:
    """A response to be scored, and what its row says beside it.

    Args:
        prompt: text, or the messages of a chat.
        response: text.
        reference_answer: a right answer, if the row has one.
        kind: whether the prompt is open-ended or closed-ended, in the row's own words; None if the row does not say.
    """

    prompt: Text
    response: str
    reference_answer: str | None = None
    kind: str | None = None

    @property
    def query(self) -> str:
        """The prompt's text, or that of the last message of a chat."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


@runtime_checkable
class Scorer(Protocol):
    """Scores responses, one at a time. `name` says which scorer it is, in files and tables.

    One that can say what its scores are made of has `explain(candidates) -> list[Features]`, too.
    """

    @property
    def name(self) -> str:
        """In files and tables."""
        ...

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score for each response, higher is better; NaN where there is none."""
        ...


Reward = Function | Scorer


@dataclass(frozen=True)
class FunctionScorer:
    """Scores by a function of a prompt and a response; of a chat, the prompt is the last message's text.

    Args:
        function: such as `lit_tr.embedded.GoldReward`.
        name: in files and tables; by default the function's own.
    """

    function: Function
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            own = getattr(self.function, "__name__", type(self.function).__name__)
            object.__setattr__(self, "name", own)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the function's value for each response."""
        return [float(self.function(one.query, one.response)) for one in candidates]


def as_scorer(reward: Reward) -> Scorer:
    """Return a scorer as it is, and a function as one.

    Raises:
        UserError: it is neither.
    """
    if isinstance(reward, Scorer):
        return reward
    if not callable(reward):
        kind = type(reward).__name__
        raise UserError(
            f"{kind}: a reward is a function (prompt, response) -> score, or has name and score(candidates)"
        )
    return FunctionScorer(reward)


def explain(scorer: Scorer, candidates: Sequence[Candidate]) -> list[Features]:
    """Return the score of each response, as `score`, with its features where the scorer tells them."""
    if hasattr(scorer, "explain"):
        return scorer.explain(candidates)
    return [{"score": score} for score in scorer.score(candidates)]


def reference_answers(name: str, candidates: Sequence[Candidate]) -> list[str | None]:
    """Return the reference answers of some responses.

    Raises:
        UserError: none of them has one.
    """
    answers = [one.reference_answer for one in candidates]
    if answers and not any(answer is not None for answer in answers):
        raise UserError(f"{name}: it compares with reference answers, and no row has one, in a column reference_answer")
    return answers


class Fitted(ABC):
    """A scorer that takes statistics of a sample: once they are kept, scores of different calls compare.

    One that is not fitted takes those of what each call of `score` is given.
    """

    @abstractmethod
    def fit(self, candidates: Sequence[Candidate]) -> Self:
        """Take the statistics of a sample from now on."""

    @abstractmethod
    def state(self) -> Any:
        """Return the statistics as plain data; None if it is not fitted."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Take statistics that `state` returned; those of another scorer are a `UserError`, `KeyError` or so."""

    def save(self, path: str | Path) -> None:
        """Write the statistics to a file of JSON.

        Raises:
            UserError: there are none, or it cannot be written.
        """
        if (state := self.state()) is None:
            raise UserError(f"{path}: there are no statistics of {type(self).__name__} to write; fit it to a sample")
        with explained(f"{path}: the statistics cannot be written", OSError):
            Path(path).write_text(json.dumps(state) + "\n")

    def load(self, path: str | Path) -> Self:
        """Take the statistics of a file from now on.

        Raises:
            UserError: it cannot be read, or is of another scorer.
        """
        said = f"{path}: these are no statistics of {type(self).__name__} as it is here"
        with explained(said, OSError, ValueError, KeyError, TypeError):
            self.restore(json.loads(Path(path).read_text()))
        return self
