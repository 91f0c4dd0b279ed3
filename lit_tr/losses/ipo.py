"""Identity preference optimization."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.pairs import Average, averaged, check_beta


@dataclass(frozen=True)
class IPO(Loss):
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

    def __post_init__(self) -> None:
        check_beta(self)

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        margins = self._scale(chosen) - self._scale(rejected)
        target, confidence = 1 / (2 * self.beta), chosen.confidence
        return confidence * (margins - target) ** 2 + (1 - confidence) * (-margins - target) ** 2

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta` times the log-ratio, summed or a mean as in the loss, of each response, `(responses,)`."""
        return self.beta * self._scale(scores)

    def _scale(self, scores: Scores) -> Tensor:
        return averaged(scores.log_ratios, scores, self.average)
