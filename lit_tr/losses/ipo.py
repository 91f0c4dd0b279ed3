"""Identity preference optimization."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.pairs import Average, PairLoss, averaged


@dataclass(frozen=True)
class IPO(PairLoss):
    """Identity Preference Optimization, Azar et al. 2023 (arXiv 2310.12036), Eq. 17.

    With `h = log_ratio(chosen) - log_ratio(rejected)` the loss of a pair is its expectation over a label of confidence
    `c`: `c * (h - 1 / (2 * beta)) ** 2 + (1 - c) * (-h - 1 / (2 * beta)) ** 2`.

    Args:
        beta: the paper's tau, above 0; the target of the log-ratio margin is `1 / (2 * beta)`.
        average: `sum` takes log-ratios summed over tokens, as in Eq. 17. `mean` divides each by its number of tokens,
            as TRL does, and, as TRL reports, the authors did in their experiments.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> IPO(beta=0.1)(chosen, rejected)  # (1 - (-1) - 1 / (2 * 0.1)) ** 2
        tensor([9.])
    """

    beta: float = 0.05
    average: Average = "sum"

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        return (self._scale(preferred) - self._scale(other) - 1 / (2 * self.beta)) ** 2

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta` times the log-ratio, summed or a mean as in the loss, of each response, `(responses,)`."""
        return self.beta * self._scale(scores)

    def _scale(self, scores: Scores) -> Tensor:
        return averaged(scores.log_ratios, scores, self.average)
