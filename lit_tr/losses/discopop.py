"""A loss that a language model found."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.divergences import LARGEST_EXPONENT
from lit_tr.losses.pairs import DifferenceLoss, PairLoss


@dataclass(frozen=True)
class DiscoPOP(DifferenceLoss, PairLoss):
    """The log-ratio modulated loss, Lu et al. 2024 (arXiv 2406.08414), Eq. 5.

    With the difference `x` of the rewards of DPO and `m = sigmoid(x / tau)`, the loss of a pair is
    `-(1 - m) * log(sigmoid(x)) + m * exp(-x)`; exponents stop at 80. With a label confidence below 1 it is the
    expectation over both labels. The data's margin is not used.

    It does not fall everywhere: with a tau of 0.05 it rises for `x` from -0.12 to 0.07. The first steps, at `x = 0`,
    make the chosen response the less likely one.

    Args:
        beta: strength of the tie to the reference, above 0; the paper takes 0.05.
        tau: width of the step from one part to the other, above 0; the paper takes 0.05.
        divergence: as for `DPO`.
        average: as for `DPO`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> DiscoPOP()(chosen, chosen)  # (log(2) + 1) / 2
        tensor([0.8466])
    """

    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.tau > 0, f"DiscoPOP: tau must be above 0, not {self.tau}")

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        margins = self.margins(preferred, other)
        weights = torch.sigmoid(margins / self.tau)
        return -(1 - weights) * F.logsigmoid(margins) + weights * (-margins).clamp(max=LARGEST_EXPONENT).exp()
