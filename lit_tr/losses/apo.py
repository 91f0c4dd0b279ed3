"""Anchored preference optimization."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.pairs import PairLoss


@dataclass(frozen=True)
class APOZero(PairLoss):
    """Anchored Preference Optimization, zero, D'Oosterlinck et al. 2024 (arXiv 2408.06266), Eq. 7.

    With the rewards `r = beta * log_ratio` the loss of a pair is `1 - sigmoid(r(chosen)) + sigmoid(r(rejected))`: for
    chosen responses that are better than what the policy says, whose likelihood should rise. With a label confidence
    below 1 it is the expectation over both labels. The data's margin is not used.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.1.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> chosen = Scores(torch.tensor([-9.0]), torch.tensor([5.0]), torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), torch.tensor([5.0]), torch.tensor([-11.0]))
        >>> APOZero(beta=0.5)(chosen, rejected)  # 1 - sigmoid(0.5) + sigmoid(-0.5)
        tensor([0.7551])
    """

    beta: float = 0.1

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        return torch.sigmoid(-self.rewards(preferred)) + torch.sigmoid(self.rewards(other))


@dataclass(frozen=True)
class APODown(PairLoss):
    """Anchored Preference Optimization, down, D'Oosterlinck et al. 2024 (arXiv 2408.06266), Eq. 8.

    With the rewards `r = beta * log_ratio` the loss of a pair is
    `sigmoid(r(chosen)) + 1 - sigmoid(r(chosen) - r(rejected))`: for chosen responses that are worse than what the
    policy says, whose likelihood should fall, but less than that of the rejected ones. With a label confidence below 1
    it is the expectation over both labels. The data's margin is not used.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.1.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> chosen = Scores(torch.tensor([-9.0]), torch.tensor([5.0]), torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), torch.tensor([5.0]), torch.tensor([-11.0]))
        >>> APODown(beta=0.5)(chosen, rejected)  # sigmoid(0.5) + 1 - sigmoid(1)
        tensor([0.8914])
    """

    beta: float = 0.1

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        ahead = self.rewards(preferred)
        return torch.sigmoid(ahead) + torch.sigmoid(self.rewards(other) - ahead)
