"""Direct preference optimization."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import CERTAIN, Labels, Loss, Scores, _require


@dataclass(frozen=True)
class DPO(Loss):
    """Direct Preference Optimization, Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7.

    With `x = beta * (log_ratio(chosen) - log_ratio(rejected)) - margin_scale * margin` the loss of a pair is
    `-(1 - q) * log(sigmoid(x)) - q * log(sigmoid(-x))`, where `q` is the probability that its label is wrong. That is
    conservative DPO (https://ericmitchell.ai/cdpo.pdf, Eq. 3) with a `q` for each pair: a label of certainty `c` that
    is flipped with the probability `s` of label smoothing is wrong with `q = c * s + (1 - c) * (1 - s)`.

    The margin is the offset of ODPO (Amini et al. 2024, arXiv 2402.10571) with f the identity, and of the reward model
    of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, Eq. 2).

    Args:
        beta: strength of the tie to the reference, above 0. The TR-DPO paper (arXiv 2404.09656) uses 0.05.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        margin_scale: nats of implicit reward for each unit of the data's margin, not negative (ODPO's alpha).
    """

    beta: float = 0.05
    label_smoothing: float = 0.0
    margin_scale: float = 0.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"DPO: beta must be above 0, not {self.beta}")
        _require(
            0 <= self.label_smoothing < 0.5, f"DPO: label_smoothing must be in [0, 0.5), not {self.label_smoothing}"
        )
        _require(self.margin_scale >= 0, f"DPO: margin_scale must not be negative, not {self.margin_scale}")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        logits = self.beta * (chosen.log_ratios - rejected.log_ratios) - self.margin_scale * labels.margin
        smoothing, certainty = self.label_smoothing, labels.certainty
        right = certainty * (1 - smoothing) + (1 - certainty) * smoothing
        wrong = certainty * smoothing + (1 - certainty) * (1 - smoothing)
        return -right * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)
