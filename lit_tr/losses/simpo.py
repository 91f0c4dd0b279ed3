"""Simple preference optimization, which needs no reference."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require
from lit_tr.losses.dpo import cross_entropy
from lit_tr.losses.pairs import check_beta


@dataclass(frozen=True)
class SimPO(Loss):
    """Simple Preference Optimization, Meng et al. 2024 (arXiv 2405.14734), Eq. 6.

    The loss of a pair is `-log(sigmoid(beta * (mean(chosen) - mean(rejected)) - gamma))`, where `mean` is the log-prob
    of a response divided by its number of tokens. With a label confidence below 1 it is the expectation over both.

    Args:
        beta: scale of the rewards `beta * mean`, above 0. The paper takes 2 to 10.
        gamma: target reward margin, not negative. The authors' configs give it as `gamma_beta_ratio = gamma / beta`,
            from 0 to 1: the default is their ratio 0.5.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> chosen = Scores(torch.tensor([-5.0]), torch.tensor([5]))
        >>> rejected = Scores(torch.tensor([-10.0]), torch.tensor([5]))
        >>> SimPO(beta=2.0, gamma=1.0)(chosen, rejected)  # -log(sigmoid(2 * (-1 - (-2)) - 1))
        tensor([0.3133])
    """

    needs_reference: ClassVar[bool] = False

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self)
        _require(self.gamma >= 0, f"SimPO: gamma must not be negative, not {self.gamma}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        return cross_entropy(self.rewards(chosen) - self.rewards(rejected) - self.gamma, chosen.confidence)

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta` times the mean log-prob of the tokens of each response, `(responses,)`."""
        return self.beta * scores.policy / scores.tokens
