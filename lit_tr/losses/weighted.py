"""Several losses as one."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require

FLAGS = [name for name, value in vars(Loss).items() if isinstance(value, bool)]
"""What a loss says that it needs."""

NONE = torch.zeros(0)
NOTHING = Scores(NONE, NONE, NONE, policy_tokens=NONE, reference_tokens=NONE)
"""Scores of no responses."""


@dataclass(frozen=True)
class Weighted(Loss):
    """A weighted sum of losses, as TRL's list of `loss_type`.

    With `DPO` and `SFT` it is the loss of iterative RPO, Pang et al. 2024 (arXiv 2404.19733), Eq. 1. TRL's `sft` is a
    mean over all chosen tokens of a batch; here, as in the paper, it is one over the tokens of each response.

    It needs what one of its losses needs; those of weight 0 are left out. Where a loss compares pairs, each pair is an
    example, and of a loss with two values for a pair (`KTO`, `BCO`) the mean of both is taken: the mean over the pairs
    is the weighted sum of the losses' own means. Otherwise each response is an example, as for `KTO`, and what a loss
    says of chosen responses alone (`SFT`) is 0 for the others.

    Rewards, and the beta of the rewards of tokens, are those of the first loss.

    Args:
        losses: the losses.
        weights: one for each loss, not negative, and one at least above 0; None is 1 each.

    Raises:
        UserError: the weights are not so.

    Examples:
        >>> from lit_tr.losses import DPO, SFT
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> Weighted([DPO(beta=0.5), SFT()], [1.0, 0.5])(chosen, rejected)  # 0.3133 + 0.5 * 9 / 5
        tensor([1.2133])
    """

    losses: list[Loss]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        weights = self._weights
        _require(
            len(weights) == len(self.losses) and min(weights, default=0) >= 0 and any(weights),
            f"Weighted: weights {weights} must not be negative, one for each of {len(self.losses)} losses, not all 0",
        )
        needs = {flag: any(getattr(loss, flag) for _, loss in self._kept) for flag in FLAGS}
        for name, value in {"beta": self._kept[0][1].beta, **needs}.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each example: `(pairs,)` where a loss compares pairs, else `(chosen + rejected,)`."""
        values = [
            weight * self._of_examples(loss(chosen, rejected, own), len(chosen.policy))
            for (weight, loss), own in zip(self._kept, self._split(statistics, 1), strict=True)
        ]
        most = max(map(len, values))
        return torch.stack([F.pad(one, (0, most - len(one))) for one in values]).sum(dim=0)

    def rewards(self, scores: Scores) -> Tensor:
        """Return the rewards of the first loss, `(responses,)`."""
        return self._kept[0][1].rewards(scores)

    def sums(self, chosen: Scores, rejected: Scores, kl_rows: Scores) -> Tensor | None:
        """Return the sums of all losses that have some, one after the other, `(n,)`."""
        return _joined(loss.sums(chosen, rejected, kl_rows) for _, loss in self._kept)

    def statistics(self, sums: Tensor, previous: Tensor | None) -> Tensor:
        """Return the statistics of all losses that have some, one after the other, `(m,)`."""
        parts = zip(self._kept, self._split(sums, 0), self._split(previous, 1), strict=True)
        found = _joined(None if own is None else loss.statistics(own, before) for (_, loss), own, before in parts)
        assert found is not None  # or there were no sums
        return found

    def _of_examples(self, values: Tensor, pairs: int) -> Tensor:
        return values.reshape(2, pairs).mean(dim=0) if self.paired and len(values) != pairs else values

    def _split(self, joined: Tensor | None, kind: int) -> list[Tensor | None]:
        """Return what belongs to each loss, of sums (kind 0) or of statistics (kind 1); None where it has none."""
        templates = [None if one is None or joined is None else one[kind] for one in self._templates]
        sizes = [one.numel() for one in templates if one is not None]
        parts = iter([] if joined is None else joined.split(sizes))
        return [None if one is None else next(parts).view_as(one) for one in templates]

    @cached_property
    def _templates(self) -> list[tuple[Tensor, Tensor] | None]:
        """Sums and statistics of no responses, which have the shapes of any, of each loss; None where it has none."""
        sums = [(loss, loss.sums(NOTHING, NOTHING, NOTHING)) for _, loss in self._kept]
        return [None if one is None else (one, loss.statistics(one, None)) for loss, one in sums]

    @property
    def _weights(self) -> list[float]:
        return [1.0] * len(self.losses) if self.weights is None else self.weights

    @cached_property
    def _kept(self) -> list[tuple[float, Loss]]:
        return [(weight, loss) for weight, loss in zip(self._weights, self.losses, strict=True) if weight]


def _joined(values: Iterable[Tensor | None]) -> Tensor | None:
    found = [one.flatten() for one in values if one is not None]
    return torch.cat(found) if found else None
