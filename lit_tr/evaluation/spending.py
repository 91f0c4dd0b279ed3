"""What questions cost, and limits on it."""

from dataclasses import dataclass, field
from threading import Lock

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Question

TOKENS_A_BYTE = 1 / 3
"""Tokens that a byte of a prompt is taken for, until a server has counted some."""


class LimitReached(UserError):
    """The limit on tokens or cost would be passed by the next question."""


@dataclass(frozen=True)
class Limits:
    """Most that one run may spend, and prices.

    Args:
        tokens: most tokens, of questions and answers together; None for no limit.
        cost: most cost, in the currency of the prices; None for no limit.
        prompt_price: price of a million tokens of questions.
        price: price of a million tokens of answers.

    Raises:
        UserError: a number is negative, or there is a limit on cost and no price.
    """

    tokens: int | None = None
    cost: float | None = None
    prompt_price: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        if min(self.tokens or 0, self.cost or 0, self.prompt_price, self.price) < 0:
            raise UserError("limits and prices of a judge must not be negative")
        if self.cost is not None and not self.prompt_price + self.price:
            raise UserError("a limit on cost needs the prices of a million tokens of questions and of answers")

    def cost_of(self, prompt_tokens: float, tokens: float) -> float:
        """Return the cost of tokens of questions and of answers."""
        return (prompt_tokens * self.prompt_price + tokens * self.price) / 1e6

    def allow(self, prompt_tokens: float, tokens: float) -> bool:
        """Return whether so many tokens may be spent in all."""
        within = self.tokens is None or prompt_tokens + tokens <= self.tokens
        return within and (self.cost is None or self.cost_of(prompt_tokens, tokens) <= self.cost)


@dataclass
class Spending:
    """What was spent, with what questions that are in the air may cost at most.

    A question is taken to have as many tokens a byte as the densest one so far, and the longest answer.

    Args:
        limits: most that may be spent.
        prompt_tokens: spent on questions.
        tokens: spent on answers.
    """

    limits: Limits = field(default_factory=Limits)
    prompt_tokens: float = 0
    tokens: float = 0
    _density: float = 0.0
    _in_air: dict[Question, tuple[float, int]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def reserve(self, question: Question) -> bool:
        """Count a question as in the air; return False, and count nothing, where it could pass a limit."""
        with self._lock:
            most = (question.size * (self._density or TOKENS_A_BYTE), question.max_tokens)
            sums = [sum(values) for values in zip(most, *self._in_air.values(), strict=True)]
            if not self.limits.allow(self.prompt_tokens + sums[0], self.tokens + sums[1]):
                return False
            self._in_air[question] = most
            return True

    def settle(self, question: Question, answer: Answer | None) -> None:
        """Count what a question has cost in the place of what it could; None where there was no answer."""
        with self._lock:
            self._in_air.pop(question, None)
            if answer is not None:
                self.prompt_tokens += answer.prompt_tokens
                self.tokens += answer.tokens
                self._density = max(self._density, answer.prompt_tokens / max(question.size, 1))
