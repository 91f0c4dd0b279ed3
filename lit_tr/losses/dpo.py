"""Direct preference optimization."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.pairs import DifferenceLoss


def cross_entropy(logits: Tensor, confidence: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of Bradley-Terry preferences, `(pairs,)`, with the confidence of each label.

    Args:
        logits: log-odds that the chosen response is the better one, `(pairs,)`.
        confidence: probability that the label is right, `(pairs,)`.
        label_smoothing: probability that a label was flipped after that.
    """
    right, wrong = label_probabilities(confidence, label_smoothing)
    return -right * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


def label_probabilities(confidence: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities that the label of each pair is right and that it is wrong, `(pairs,)` each."""
    right = confidence * (1 - label_smoothing) + (1 - confidence) * label_smoothing
    wrong = confidence * label_smoothing + (1 - confidence) * (1 - label_smoothing)
    return right, wrong


@dataclass(frozen=True)
class DPO(DifferenceLoss):
    """Direct Preference Optimization, Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7.

    With `x = beta * (log_ratio(chosen) - log_ratio(rejected)) - margin_scale * f(margin)` the loss of a pair is
    `-(1 - q) * log(sigmoid(x)) - q * log(sigmoid(-x))`, where `q` is the probability that its label is wrong. That is
    conservative DPO (https://ericmitchell.ai/cdpo.pdf, Eq. 3) with a `q` per pair: a label of confidence `c` that
    is flipped with the probability `s` of label smoothing is wrong with `q = c * s + (1 - c) * (1 - s)`.

    The margin is the offset of ODPO (Amini et al. 2024, arXiv 2402.10571), whose `f` is the logarithm; with `f` the
    identity, of the reward model of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, Eq. 2).

    Args:
        beta: strength of the tie to the reference, above 0. The TR-DPO paper (arXiv 2404.09656) uses 0.05.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        margin_scale: nats of implicit reward per unit of `f(margin)`, not negative (ODPO's alpha).
        offset: `f`: `linear`, or `log`, which asks less than plain DPO of margins below 1; pairs without a margin
            above 0 have none.
        divergence: f-DPO (Wang et al. 2023, arXiv 2309.16240): its `f'` takes the place of each log-ratio.
        average: `mean` divides the `f'` of each response by its number of tokens (length-normalized DPO, Lambert et al.
            2024, arXiv 2411.15124; TRL's `sigmoid_norm`), with a larger beta: they take 5.

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
        >>> from lit_tr.losses import ForwardKL
        >>> DPO(beta=0.5, divergence=ForwardKL()).rewards(chosen)  # 0.5 * (1 - exp(-1))
        tensor([0.3161])
    """

    label_smoothing: float = 0.0
    margin_scale: float = 0.0
    offset: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        _require(
            0 <= self.label_smoothing < 0.5, f"{name}: label_smoothing must be in [0, 0.5), not {self.label_smoothing}"
        )
        _require(self.margin_scale >= 0, f"{name}: margin_scale must not be negative, not {self.margin_scale}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        return cross_entropy(self.logits(chosen, rejected), chosen.confidence, self.label_smoothing)

    def logits(self, chosen: Scores, rejected: Scores) -> Tensor:
        """Return the log-odds that the chosen response is the better one, `(pairs,)`: `x` of the loss."""
        offsets = chosen.margin
        if self.offset == "log":
            offsets = torch.where(offsets > 0, offsets, 1).log()
        return self.margins(chosen, rejected) - self.margin_scale * offsets
