"""Contrastive preference optimization, which needs no reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.pairs import PairLoss


@dataclass(frozen=True)
class CPO(PairLoss):
    """Contrastive Preference Optimization, Xu et al. 2024 (arXiv 2401.08417), Eq. 3 and its NLL term.

    With the log-prob `p` of a response, summed over its tokens, and its mean `m`, the loss of a pair is
    `-log(sigmoid(beta * (p(chosen) - p(rejected)))) - nll_weight * m(chosen)`. With a label confidence below 1 it is
    the expectation over both labels. The data's margin is not used.

    The NLL is a mean over the tokens of each response; TRL's is one over all response tokens of a batch.

    Args:
        beta: scale of the rewards `beta * p`, above 0; the paper takes 0.1.
        nll_weight: weight of the NLL, not negative (TRL's `cpo_alpha`).

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> chosen, rejected = (Scores(torch.tensor([p]), torch.tensor([5.0])) for p in (-10.0, -20.0))
        >>> CPO(beta=0.1)(chosen, rejected)  # -log(sigmoid(0.1 * (-10 - (-20)))) + 10 / 5
        tensor([2.3133])
    """

    needs_reference: ClassVar[bool] = False

    beta: float = 0.1
    nll_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.nll_weight >= 0, f"CPO: nll_weight must not be negative, not {self.nll_weight}")

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        nll = -preferred.policy / preferred.tokens
        return self.nll_weight * nll - F.logsigmoid(self.rewards(preferred) - self.rewards(other))

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta` times the log-prob of each response, `(responses,)`."""
        return self.beta * scores.policy
