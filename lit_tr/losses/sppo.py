"""Self-play preference optimization."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.pairs import PairLoss


@dataclass(frozen=True)
class SPPO(PairLoss):
    """Self-Play Preference Optimization, Wu et al. 2024 (arXiv 2405.00675), Eq. 4.7 with wins of 1 and 0.

    The loss of a pair is `(log_ratio(chosen) - 1 / (2 * beta)) ** 2 + (log_ratio(rejected) + 1 / (2 * beta)) ** 2`.
    With a label of confidence `c` it is the expectation over both labels: up to a constant, the paper's loss with the
    probability `c` of a win. The data's margin is not used.

    The paper plays rounds in which the policy writes the responses and becomes the reference of the next one.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.001, 1 over its eta.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> import torch
        >>> chosen = Scores(torch.tensor([-9.0]), torch.tensor([5.0]), torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), torch.tensor([5.0]), torch.tensor([-11.0]))
        >>> SPPO(beta=0.1)(chosen, rejected)  # (1 - 5) ** 2 + (-1 + 5) ** 2
        tensor([32.])
    """

    beta: float = 0.001

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        target = 1 / (2 * self.beta)
        return (preferred.log_ratios - target) ** 2 + (other.log_ratios + target) ** 2
