"""Kahneman-Tversky optimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require
from lit_tr.losses.pairs import check_beta


@dataclass(frozen=True)
class KTO(Loss):
    """Kahneman-Tversky Optimization, Ethayarajh et al. 2024 (arXiv 2402.01306), Eq. 8.

    Each response is an example: a pair gives a desirable and an undesirable one, and a batch may mix pairs and unpaired
    rows. The baseline, the KL of the policy from the reference, is the mean log-ratio of the KL rows of all ranks,
    prompts with responses borrowed from other rows of the batch; without any it is 0.

    With a label confidence below 1 the loss of a response is its expectation over both labels.

    Args:
        beta: strength of the tie to the reference, above 0.
        desirable_weight: weight of desirable examples (the paper's lambda_D), not negative.
        undesirable_weight: weight of undesirable examples (the paper's lambda_U), not negative.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> good = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> bad = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> KTO(beta=0.5)(good, bad)  # 1 - sigmoid(0.5) each, with a baseline of 0
        tensor([0.3775, 0.3775])
    """

    paired: ClassVar[bool] = False
    mismatched: ClassVar[bool] = True

    beta: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self)
        _require(min(self.desirable_weight, self.undesirable_weight) >= 0, "KTO: weights must not be negative")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each example, `(chosen + rejected,)`, the desirable ones first."""
        kl = chosen.policy.new_zeros(()) if statistics is None else statistics
        values = [
            scores.confidence * self._value(scores, kl, label)
            + (1 - scores.confidence) * self._value(scores, kl, not label)
            for scores, label in ((chosen, True), (rejected, False))
        ]
        return torch.cat(values)

    def sums(self, chosen: Scores, rejected: Scores, kl_rows: Scores) -> Tensor:
        """Return the sum of the log-ratios of the KL rows, and their number, `(2,)`."""
        log_ratios = kl_rows.log_ratios.detach()
        return torch.stack([log_ratios.sum(), log_ratios.new_full((), len(log_ratios))])

    def statistics(self, sums: Tensor, previous: Tensor | None) -> Tensor:
        """Return the KL baseline in nats, a scalar, never negative."""
        return (sums[0] / sums[1].clamp(min=1)).clamp(min=0)

    def _value(self, scores: Scores, kl: Tensor, desirable: bool) -> Tensor:
        """Return the loss of responses that are all desirable, or all undesirable."""
        if desirable:
            return self.desirable_weight * (1 - torch.sigmoid(self.beta * (scores.log_ratios - kl)))
        return self.undesirable_weight * (1 - torch.sigmoid(self.beta * (kl - scores.log_ratios)))
