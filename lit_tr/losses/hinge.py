"""The hinge loss on rewards."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.pairs import DifferenceLoss, PairLoss


@dataclass(frozen=True)
class Hinge(DifferenceLoss, PairLoss):
    """The rank calibration of SLiC-HF, Zhao et al. 2023 (arXiv 2305.10425), Section 2, on the rewards of DPO.

    With the difference `x` of the rewards the loss of a pair is `max(0, delta - x)`, as in TRL: a pair that is ahead by
    delta has no gradient. With a label confidence below 1 it is the expectation over both labels. The data's margin
    is not used. SLiC-HF itself takes log-probs without a reference, and adds an NLL.

    Args:
        beta: strength of the tie to the reference, above 0.
        delta: the reward margin that is enough, above 0.
        divergence: as for `DPO`.
        average: as for `DPO`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> Hinge(beta=0.1)(chosen, rejected)  # 1 - 0.1 * (1 - (-1))
        tensor([0.8000])
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.delta > 0, f"Hinge: delta must be above 0, not {self.delta}")

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        return (self.delta - self.margins(preferred, other)).relu()
