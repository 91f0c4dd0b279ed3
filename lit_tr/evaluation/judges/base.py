"""What a judge is: something that compares two responses to a prompt, or scores one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lit_tr.data.example import Text
from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate, Scorer


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt.

    Args:
        prompt: text, or the messages of a chat.
        response_a: the first policy's response.
        response_b: the second policy's.
        id: names the prompt; samples of a prompt share it.
        sample: number of the sample.
        reference_answer: a right answer, if the row has one.
        kind: whether the prompt is open-ended or closed-ended, if the row says so.
    """

    prompt: Text
    response_a: str
    response_b: str
    id: str = ""
    sample: int = 0
    reference_answer: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a pair, in one or both orders.

    Args:
        first_ab: probability in [0, 1] that the response shown *first* is better, when A is; 0.5 is a tie. None where
            this order was not asked, or its answer cannot be read.
        first_ba: the same when B is shown first.
        unparsable: answers that cannot be read, with A first and with B first: 0 or 1 each.

    Examples:
        >>> Verdict(first_ab=1.0, first_ba=0.5).preference
        0.75
        >>> Verdict(first_ab=1.0, first_ba=None, unparsable=(0, 1)).preference is None
        True
    """

    first_ab: float | None
    first_ba: float | None = None
    unparsable: tuple[int, int] = (0, 0)

    @property
    def preference(self) -> float | None:
        """Preference for A over B in [0, 1], the mean of the orders asked for; None where one cannot be read."""
        said = [self.first_ab, None if self.first_ba is None else 1 - self.first_ba]
        known = [value for value in said if value is not None]
        return sum(known) / len(known) if known and not any(self.unparsable) else None


@runtime_checkable
class Judge(Protocol):
    """Compares pairs of responses. `name` says which judge it is, in files and tables."""

    @property
    def name(self) -> str:
        """In files and tables."""
        ...

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return a verdict for each pair, in their order."""
        ...


@dataclass(frozen=True)
class ByScore:
    """A judge that prefers the response with the higher score; equal scores are a tie.

    Args:
        scorer: what scores.
        temperature: preference is `sigmoid((score_a - score_b) / temperature)` (Bradley and Terry 1952); 0 prefers the
            better one with certainty.

    Examples:
        >>> from lit_tr.rewards import FunctionScorer
        >>> judge = ByScore(FunctionScorer(lambda prompt, response: len(response)))
        >>> [verdict.preference for verdict in judge.compare([Pair("Hi", "Hello.", "Yes.")])]
        [1.0]
    """

    scorer: Scorer
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"ByScore: temperature must be at least 0, not {self.temperature}")

    @property
    def name(self) -> str:
        """The scorer's name."""
        return self.scorer.name

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return a verdict for each pair."""
        sides = [_side(pair, pair.response_a) for pair in pairs], [_side(pair, pair.response_b) for pair in pairs]
        scores = self.scorer.score([*sides[0], *sides[1]])
        return [self._verdict(a, b) for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]

    def _verdict(self, a: float, b: float) -> Verdict:
        if math.isnan(a - b):
            return Verdict(None, unparsable=(1, 0))
        if not self.temperature:
            return Verdict((a > b) + 0.5 * (a == b))
        return Verdict(0.5 + 0.5 * math.tanh((a - b) / self.temperature / 2))


def _side(pair: Pair, response: str) -> Candidate:
    return Candidate(pair.prompt, response, pair.reference_answer, pair.kind)
