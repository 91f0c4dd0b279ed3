"""Supervised fine-tuning on the chosen responses."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lit_tr.losses.base import Loss, Scores


@dataclass(frozen=True)
class SFT(Loss):
    """Negative log-likelihood of the chosen responses, a mean over the tokens of each; it needs no reference.

    The rejected ones count in the metrics only, whose rewards are mean log-probs. Labels are not used.

    Examples:
        >>> import torch
        >>> chosen = Scores(torch.tensor([-10.0, -6.0]), torch.tensor([5, 2]))
        >>> SFT()(chosen, chosen)
        tensor([2., 3.])
    """

    paired: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    beta: float = field(default=1.0, init=False)

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each chosen response, `(chosen,)`, in nats per token."""
        return -self.rewards(chosen)

    def rewards(self, scores: Scores) -> Tensor:
        """Return the mean log-prob of the tokens of each response, `(responses,)`."""
        return scores.policy / scores.tokens
