"""Supervised fine-tuning on the chosen responses."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lit_tr.losses.base import CERTAIN, Labels, Loss, Scores


@dataclass(frozen=True)
class SFT(Loss):
    """Negative log-likelihood of the chosen responses, a mean over the tokens of each.

    The rejected ones and the reference only reach the metrics; rewards are plain log-ratios. Labels are not read.
    """

    paired: ClassVar[bool] = False

    beta: float = field(default=1.0, init=False)

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each chosen response, `(chosen,)`, in nats a token."""
        return -chosen.policy / chosen.tokens
