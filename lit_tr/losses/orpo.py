"""Odds ratio preference optimization, which needs no reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.pairs import PairLoss

LARGEST_MEAN = -1e-6
"""A mean log-prob at which odds are still finite in float32."""


@dataclass(frozen=True)
class ORPO(PairLoss):
    """Odds Ratio Preference Optimization, Hong et al. 2024 (arXiv 2403.07691), Eqs. 6 and 7.

    With the mean log-prob `m` of the tokens of a response, and the log-odds `o = m - log(1 - exp(m))`, the loss of a
    pair is `-m(chosen) - beta * log(sigmoid(o(chosen) - o(rejected)))`. With a label confidence below 1 it is the
    expectation over both labels. The data's margin is not used. `m` stops at -1e-6, with no gradient of the odds above.

    The NLL is a mean over the response tokens of each pair; TRL's is one over all tokens of a batch, prompts too.

    Args:
        beta: weight of the odds ratio, above 0: the paper's lambda, 0.1 for its models of 7B.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> chosen = Scores(torch.tensor([0.75]).log(), torch.tensor([1.0]))
        >>> rejected = Scores(torch.tensor([0.5]).log(), torch.tensor([1.0]))
        >>> ORPO().rewards(chosen), ORPO().rewards(rejected)  # log(3), log(1)
        (tensor([1.0986]), tensor([0.]))
        >>> ORPO(beta=0.1)(chosen, rejected)  # -log(0.75) - 0.1 * log(3 / (3 + 1))
        tensor([0.3165])
    """

    needs_reference: ClassVar[bool] = False

    beta: float = 0.1

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        odds_ratio = F.logsigmoid(self.rewards(preferred) - self.rewards(other))
        return -preferred.policy / preferred.tokens - self.beta * odds_ratio

    def rewards(self, scores: Scores) -> Tensor:
        """Return the log-odds of each response, `(responses,)`."""
        means = (scores.policy / scores.tokens).clamp(max=LARGEST_MEAN)
        return means - (-torch.expm1(means)).log()
