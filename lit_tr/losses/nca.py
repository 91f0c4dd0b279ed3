"""Noise contrastive alignment of pairs."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.pairs import PairLoss


@dataclass(frozen=True)
class NCA(PairLoss):
    """Noise Contrastive Alignment of pairs, Chen et al. 2024 (arXiv 2402.05369), Section 4.1.

    With the rewards `r = beta * log_ratio` the loss of a pair is
    `-log(sigmoid(r(chosen))) - log(sigmoid(-r(chosen))) / 2 - log(sigmoid(-r(rejected))) / 2`: it holds the likelihood
    of the chosen response up, where DPO may let both fall. With a label confidence below 1 it is the expectation over
    both labels. The data's margin is not used.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.01 (its alpha).

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> import torch
        >>> chosen = Scores(torch.tensor([-10.0]), torch.tensor([5.0]), torch.tensor([-10.0]))
        >>> NCA()(chosen, chosen)  # 2 * log(2)
        tensor([1.3863])
    """

    beta: float = 0.01

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        ahead, behind = self.rewards(preferred), self.rewards(other)
        return -F.logsigmoid(ahead) - (F.logsigmoid(-ahead) + F.logsigmoid(-behind)) / 2
