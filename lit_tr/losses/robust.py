"""DPO that is unbiased under flipped labels."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Scores
from lit_tr.losses.dpo import DPO


@dataclass(frozen=True)
class RobustDPO(DPO):
    """Provably robust DPO, Chowdhury et al. 2024 (arXiv 2403.00409), Section 3.1.

    With `x` and the loss `-log(sigmoid(x))` of `DPO`, and labels that are flipped with the probability `e`, the loss of
    a pair is `(-(1 - e) * log(sigmoid(x)) + e * log(sigmoid(-x))) / (1 - 2 * e)`: in expectation over the flips that of
    DPO on the labels before them. It may be negative, and falls without bound as `x` grows. With a label of confidence
    `c` it is the expectation over both labels, and `e` the flips after that.

    Args:
        beta: as for `DPO`.
        label_smoothing: the probability `e` of a flip, in [0, 0.5); the paper's experiments take 0.1.
        margin_scale: as for `DPO`.
        offset: as for `DPO`.
        divergence: as for `DPO`.
        average: as for `DPO`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> RobustDPO(beta=0.5)(chosen, rejected)  # (0.9 * 0.3133 - 0.1 * 1.3133) / 0.8
        tensor([0.1883])
    """

    label_smoothing: float = 0.1

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        logits = self.logits(chosen, rejected)
        right = (chosen.confidence - self.label_smoothing) / (1 - 2 * self.label_smoothing)
        return -right * F.logsigmoid(logits) - (1 - right) * F.logsigmoid(-logits)
