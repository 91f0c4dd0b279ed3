"""What losses of pairs have in common."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require
from lit_tr.losses.divergences import Divergence, ReverseKL

Average = Literal["sum", "mean"]


def check_beta(loss: Loss) -> None:
    """Raise a `UserError` unless beta is above 0."""
    _require(loss.beta > 0, f"{type(loss).__name__}: beta must be above 0, not {loss.beta}")


def averaged(values: Tensor, scores: Scores, average: Average) -> Tensor:
    """Return values of responses, `(responses,)`, as they are (`sum`) or by their numbers of tokens (`mean`)."""
    return values if average == "sum" else values / scores.tokens


@dataclass(frozen=True)
class PairLoss(Loss):
    """A loss in expectation over the label of each pair.

    With a label of confidence `c` it is `c * value(chosen, rejected) + (1 - c) * value(rejected, chosen)`.
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        check_beta(self)

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        confidence = chosen.confidence
        return confidence * self.value(chosen, rejected) + (1 - confidence) * self.value(rejected, chosen)

    @abstractmethod
    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""


@dataclass(frozen=True)
class DifferenceLoss(Loss):
    """A loss of the difference of the implicit rewards of a pair.

    The implicit reward of a response is `beta * f'(policy / reference)`, where `f` belongs to the divergence that ties
    the policy to the reference (Wang et al. 2023, arXiv 2309.16240).

    Args:
        beta: strength of the tie to the reference, above 0.
        divergence: the divergence; by default the reverse KL, whose `f'` is the log-ratio.
        average: `mean` divides the reward of each response by its number of tokens.
    """

    beta: float = 0.05
    divergence: Divergence = field(default=ReverseKL(), kw_only=True)
    average: Average = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check_beta(self)

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta * f'(policy / reference)` of each response, `(responses,)`, up to a constant."""
        return self.beta * self._unscaled(scores)

    def margins(self, chosen: Scores, rejected: Scores) -> Tensor:
        """Return by how much the reward of the chosen response is above that of the rejected one, `(pairs,)`."""
        return self.beta * (self._unscaled(chosen) - self._unscaled(rejected))

    def _unscaled(self, scores: Scores) -> Tensor:
        return averaged(self.divergence.derivative(scores.log_ratios), scores, self.average)
