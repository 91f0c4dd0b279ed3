"""Kahneman-Tversky optimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_tr.losses.base import CERTAIN, Labels, Loss, Scores, _require


@dataclass(frozen=True)
class KTO(Loss):
    """Kahneman-Tversky Optimization, Ethayarajh et al. 2024 (arXiv 2402.01306), Eq. 8.

    Takes pairs (each gives a desirable and an undesirable example) and unpaired labelled rows. Its baseline, the KL of
    the policy from the reference, is estimated from prompts with responses borrowed from other rows of the batch; where
    no rank's batch has a row to borrow from, it is 0.

    Where a label is not certain the loss of a response is its expectation: with the certainty the value of its label,
    else that of the other one.

    Args:
        beta: strength of the tie to the reference, above 0.
        desirable_weight: weight of desirable examples (the paper's lambda_D), not negative.
        undesirable_weight: weight of undesirable examples (the paper's lambda_U), not negative.
    """

    paired: ClassVar[bool] = False
    mismatched: ClassVar[bool] = True

    beta: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"KTO: beta must be above 0, not {self.beta}")
        _require(min(self.desirable_weight, self.undesirable_weight) >= 0, "KTO: weights must not be negative")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each example, `(chosen + rejected,)`: the desirable ones first."""
        sides = labels.of_responses(len(chosen.policy), len(rejected.policy))
        parts = [
            certainty * self._value(scores, kl, label) + (1 - certainty) * self._value(scores, kl, not label)
            for scores, certainty, label in zip((chosen, rejected), sides, (True, False), strict=True)
        ]
        return torch.cat(parts)

    def _value(self, scores: Scores, kl: Tensor, desirable: bool) -> Tensor:
        """Return the loss of responses that are all desirable, or all undesirable."""
        if desirable:
            return self.desirable_weight * (1 - torch.sigmoid(self.beta * (scores.log_ratios - kl)))
        return self.undesirable_weight * (1 - torch.sigmoid(self.beta * (kl - scores.log_ratios)))
