"""Binary classifier optimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.dpo import cross_entropy
from lit_tr.losses.pairs import check_beta


@dataclass(frozen=True)
class BCO(Loss):
    """Binary Classifier Optimization, Jung et al. 2024 (arXiv 2404.04656): desirable or not, by the implicit reward.

    Each response is an example, as for `KTO`. With the reward `r = beta * log_ratio` and the reward shift `d` its loss
    is `-log(sigmoid(r - d))` where it is desirable and `-w * log(sigmoid(d - r))` where it is not. `w` is the data's
    label `weight`, which `lit_tr.data.DistributionMatching` gives; 1 without one. With a label confidence below 1 the
    loss of a response is its expectation over both labels.

    The shift is the mean reward of all responses that were trained on so far, on all ranks, with those of the batch
    itself, as in TRL's `BCOTrainer` (`trl.experimental.bco` of TRL 1.0; 1.16 has none). A checkpoint saves it. An
    evaluated batch counts in its own shift and in no later one; TRL's evaluation leaves it out. `bco_pair` of TRL's
    `DPOTrainer` has a shift of 0. Where the reference moves, rewards fall at each update, and the mean follows slowly.

    Args:
        beta: strength of the tie to the reference, above 0.

    Raises:
        UserError: beta is not above 0.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> good = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> bad = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> BCO(beta=0.5)(good, bad)  # -log(sigmoid(0.5)) each, with a shift of 0
        tensor([0.4741, 0.4741])
        >>> BCO(beta=0.5)(good, bad, torch.tensor([12.0, 24.0]))  # rewards of 24 responses that sum to 12: 0.5
        tensor([0.6931, 0.3133])
    """

    paired: ClassVar[bool] = False

    beta: float = 0.05

    def __post_init__(self) -> None:
        check_beta(self)

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each example, `(chosen + rejected,)`, the desirable ones first."""
        shift = chosen.policy.new_zeros(()) if statistics is None else statistics[0] / statistics[1].clamp(min=1)
        logits = self.rewards(chosen) - shift, shift - self.rewards(rejected)
        return torch.cat(
            [
                scores.label("weight", 1.0) * cross_entropy(one, scores.confidence)
                for scores, one in zip((chosen, rejected), logits, strict=True)
            ]
        )

    def sums(self, chosen: Scores, rejected: Scores, kl_rows: Scores) -> Tensor:
        """Return the sum of the rewards, and their number, `(2,)`."""
        rewards = torch.cat([self.rewards(chosen), self.rewards(rejected)]).detach()
        return torch.stack([rewards.sum(), rewards.new_full((), len(rewards))])

    def statistics(self, sums: Tensor, previous: Tensor | None) -> Tensor:
        """Return the sum of all rewards so far, and their number, `(2,)`, float64."""
        return sums.double() if previous is None else previous + sums
