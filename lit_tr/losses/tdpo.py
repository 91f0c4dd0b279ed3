"""Token-level direct preference optimization."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lit_tr.errors import UserError
from lit_tr.losses.base import Scores, _require
from lit_tr.losses.pairs import PairLoss


@dataclass(frozen=True)
class TDPO1(PairLoss):
    """Token-level Direct Preference Optimization, Zeng et al. 2024 (arXiv 2404.11999), TDPO1.

    With the log-ratio `h` of a response and its sequential KL divergence `k`, the sum over its tokens of
    `KL(reference || policy)` of the next token, the loss of a pair is
    `-log(sigmoid(beta * (h(chosen) - h(rejected) - (k(rejected) - k(chosen)))))`. Its gradient goes through all of it.
    With a label confidence below 1 it is the expectation over both orders of the pair.

    The logged rewards are DPO's, `beta * h`; the authors log `beta * (h + k)`. Each `k` is logged as `kl/chosen` and
    `kl/rejected`.

    Args:
        beta: strength of the tie to the reference, above 0. The authors use 0.1.

    Raises:
        UserError: an argument is not in its range, or the scores have no `kl`.

    Examples:
        >>> import torch
        >>> tokens, reference = torch.tensor([5.0]), torch.tensor([-10.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference, kl=torch.tensor([0.5]))
        >>> rejected = Scores(torch.tensor([-11.0]), tokens, reference, kl=torch.tensor([1.5]))
        >>> TDPO1(beta=0.5)(chosen, rejected)  # -log(sigmoid(0.5 * (1 - (-1) - (1.5 - 0.5))))
        tensor([0.4741])
    """

    needs_kl: ClassVar[bool] = True

    beta: float = 0.1

    def value(self, preferred: Scores, other: Scores) -> Tensor:
        """Return the loss of pairs whose labels are right, `(pairs,)`."""
        differences = preferred.log_ratios - other.log_ratios
        return -F.logsigmoid(self.beta * (differences - self._excess(preferred, other)))

    def _excess(self, preferred: Scores, other: Scores) -> Tensor:
        """Return by how much the other response's divergence is above the preferred one's, `(pairs,)`."""
        return _kl(other) - _kl(preferred)


@dataclass(frozen=True)
class TDPO2(TDPO1):
    """Token-level Direct Preference Optimization, Zeng et al. 2024 (arXiv 2404.11999), TDPO2.

    TDPO1 with `alpha * (k(rejected) - stop_gradient(k(chosen)))` in the place of `k(rejected) - k(chosen)`: the
    divergence of the preferred response is not pushed up. With alpha 0 it is DPO.

    Args:
        beta: as for `TDPO1`.
        alpha: weight of the divergences, not negative. The authors use 0.5.

    Raises:
        UserError: an argument is not in its range, or the scores have no `kl`.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.alpha >= 0, f"TDPO2: alpha must not be negative, not {self.alpha}")

    def _excess(self, preferred: Scores, other: Scores) -> Tensor:
        return self.alpha * super()._excess(replace(preferred, kl=_kl(preferred).detach()), other)


def _kl(scores: Scores) -> Tensor:
    if scores.kl is None:
        raise UserError("TDPO reads the kl of its scores, and there is none: leave its needs_kl True")
    return scores.kl
