"""Efficient exact optimization of pairs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.dpo import label_probabilities
from lit_tr.losses.pairs import DifferenceLoss


@dataclass(frozen=True)
class EXO(DifferenceLoss):
    """EXO for pairs, Ji et al. 2024 (arXiv 2402.00856), Eq. 16.

    With the difference `x` of the rewards of DPO, the loss of a pair is the KL divergence of the policy's preference
    `(sigmoid(x), sigmoid(-x))` from that of the label, `(1 - q, q)`: the reverse of DPO's. `q` is the probability that
    the label is wrong: with a confidence `c` and the label smoothing `s`, `q = c * s + (1 - c) * (1 - s)`. The data's
    margin is not used.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.1.
        label_smoothing: probability that a label is wrong, in (0, 0.5): with 0 the divergence would be infinite.
        divergence: as for `DPO`.
        average: as for `DPO`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> EXO(beta=0.5, label_smoothing=0.1)(chosen, rejected)  # 0.7311 * log(0.7311 / 0.9) + 0.2689 * log(2.689)
        tensor([0.1141])
    """

    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 < self.label_smoothing < 0.5, f"EXO: label_smoothing must be in (0, 0.5), not {self.label_smoothing}"
        )

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        margins = self.margins(chosen, rejected)
        right, wrong = label_probabilities(chosen.confidence, self.label_smoothing)
        ahead = torch.sigmoid(margins) * (F.logsigmoid(margins) - right.log())
        return ahead + torch.sigmoid(-margins) * (F.logsigmoid(-margins) - wrong.log())
