"""DPO with a reference that counts only where it prefers the chosen response."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.dpo import cross_entropy
from lit_tr.losses.pairs import check_beta


@dataclass(frozen=True)
class HyPO(Loss):
    """Hybrid-DPO, Yuan et al. 2026 (arXiv 2602.11902).

    With the differences `d` of the log-probs of chosen and rejected response, of the policy and of the reference, the
    loss of a pair is `-log(sigmoid(beta * (d(policy) - max(0, d(reference)))))`: that of DPO where the reference does
    not prefer the rejected response, and one with a neutral reference where it does. With a label confidence below 1 it
    is the expectation over both labels of that difference. The data's margin is not used.

    The rewards are those of DPO; their margin is not the difference in the loss where the reference is clipped.

    Args:
        beta: strength of the tie to the reference, above 0.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-12.0]))
        >>> rejected = Scores(torch.tensor([-10.0]), tokens, reference=torch.tensor([-11.0]))
        >>> HyPO(beta=0.5)(chosen, rejected)  # -log(sigmoid(0.5 * (1 - max(0, -1))))
        tensor([0.4741])
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        check_beta(self)

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        relative, absolute = chosen.log_ratios - rejected.log_ratios, chosen.policy - rejected.policy
        return cross_entropy(self.beta * torch.minimum(relative, absolute), chosen.confidence)
