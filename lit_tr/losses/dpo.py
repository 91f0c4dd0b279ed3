"""Direct preference optimization, and its generalization to other divergences than the reverse KL."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require

LARGEST_EXPONENT = 80.0
"""e^80 and sums of a few of them are within float32."""


def cross_entropy(logits: Tensor, confidence: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of Bradley-Terry preferences, `(pairs,)`, with the confidence of each label.

    Args:
        logits: log-odds that the chosen response is the better one, `(pairs,)`.
        confidence: probability that the label is right, `(pairs,)`.
        label_smoothing: probability that a label was flipped after that.
    """
    right = confidence * (1 - label_smoothing) + (1 - confidence) * label_smoothing
    wrong = confidence * label_smoothing + (1 - confidence) * (1 - label_smoothing)
    return -right * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


@dataclass(frozen=True)
class DPO(Loss):
    """Direct Preference Optimization, Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7.

    With `x = beta * (log_ratio(chosen) - log_ratio(rejected)) - margin_scale * margin` the loss of a pair is
    `-(1 - q) * log(sigmoid(x)) - q * log(sigmoid(-x))`, where `q` is the probability that its label is wrong. That is
    conservative DPO (https://ericmitchell.ai/cdpo.pdf, Eq. 3) with a `q` per pair: a label of confidence `c` that
    is flipped with the probability `s` of label smoothing is wrong with `q = c * s + (1 - c) * (1 - s)`.

    The margin is the offset of ODPO (Amini et al. 2024, arXiv 2402.10571) with f the identity, and of the reward model
    of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, Eq. 2).

    Args:
        beta: strength of the tie to the reference, above 0. The TR-DPO paper (arXiv 2404.09656) uses 0.05.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        margin_scale: nats of implicit reward per unit of the data's margin, not negative (ODPO's alpha).

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> DPO(beta=0.5)(chosen, rejected)  # -log(sigmoid(0.5 * (1 - (-1))))
        tensor([0.3133])
        >>> DPO(beta=0.5)(chosen, chosen)  # log(2): neither response is ahead
        tensor([0.6931])
    """

    beta: float = 0.05
    label_smoothing: float = 0.0
    margin_scale: float = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        _require(self.beta > 0, f"{name}: beta must be above 0, not {self.beta}")
        _require(
            0 <= self.label_smoothing < 0.5, f"{name}: label_smoothing must be in [0, 0.5), not {self.label_smoothing}"
        )
        _require(self.margin_scale >= 0, f"{name}: margin_scale must not be negative, not {self.margin_scale}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        differences = self._penalties(chosen) - self._penalties(rejected)
        logits = self.beta * differences - self.margin_scale * chosen.margin
        return cross_entropy(logits, chosen.confidence, self.label_smoothing)

    def rewards(self, scores: Scores) -> Tensor:
        """Return `beta * f'(policy / reference)` of each response, `(responses,)`, up to a constant."""
        return self.beta * self._penalties(scores)

    def _penalties(self, scores: Scores) -> Tensor:
        """Return f' of the divergence between policy and reference; for the reverse KL, the log-ratios."""
        return scores.log_ratios


@dataclass(frozen=True)
class FDPO(DPO):
    """DPO with an alpha-divergence in place of the reverse KL, Wang et al. 2023 (arXiv 2309.16240).

    The log-ratio `h` of a response becomes `f'(e^h) = (e^((alpha - 1) * h) - 1) / (alpha - 1)`, as in TRL. Alpha 1 is
    the reverse KL, and so DPO; alpha 0 the forward KL. Exponents are clamped at 80, with no gradient beyond.

    Args:
        beta: strength of the tie to the reference, above 0.
        label_smoothing: as for `DPO`.
        margin_scale: as for `DPO`.
        alpha: which divergence, TRL's `f_alpha_divergence_coef`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> scores = Scores(torch.tensor([-9.0]), torch.tensor([5]), reference=torch.tensor([-10.0]))
        >>> FDPO(beta=1.0, alpha=0.0).rewards(scores)  # 1 - exp(-1)
        tensor([0.6321])
    """

    alpha: float = 0.5

    def _penalties(self, scores: Scores) -> Tensor:
        power = self.alpha - 1
        if not power:
            return scores.log_ratios
        return torch.expm1((power * scores.log_ratios).clamp(max=LARGEST_EXPONENT)) / power
