"""Regression on the logit of empirical preferences."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Loss, Scores, _require
from lit_tr.losses.pairs import check_beta


@dataclass(frozen=True)
class IREPO(Loss):
    """Regression of the reward margin on the logit of an empirical preference, after iREPO.

    Le et al. 2024 (arXiv 2405.15230). With the share `p` of annotators who prefer the chosen response, the confidence
    of the label, the loss of a pair is `(beta * (log_ratio(chosen) - log_ratio(rejected)) - log(p / (1 - p))) ** 2`.
    It is `IPO` with a target of its own for each pair. The data's margin is not used.

    The form is that of the paper's abstract. Whether the authors scale the difference in this way, and how they
    smooth shares of 0 and 1, is not checked; their rounds of responses that the policy itself writes are none of it.

    Args:
        beta: strength of the tie to the reference, above 0.
        floor: shares are clamped to [floor, 1 - floor], in (0, 0.5), or a certain label would have no finite target:
            0.05 puts it at 2.94 nats.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> labels = {"confidence": torch.tensor([0.75])}
        >>> chosen = Scores(torch.tensor([-9.0]), torch.tensor([5.0]), torch.tensor([-10.0]), labels)
        >>> rejected = Scores(torch.tensor([-12.0]), torch.tensor([5.0]), torch.tensor([-11.0]))
        >>> IREPO(beta=0.5)(chosen, rejected)  # (0.5 * (1 - (-1)) - log(3)) ** 2
        tensor([0.0097])
    """

    beta: float = 0.05
    floor: float = 0.05

    def __post_init__(self) -> None:
        check_beta(self)
        _require(0 < self.floor < 0.5, f"IREPO: floor must be in (0, 0.5), not {self.floor}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        targets = chosen.confidence.logit(eps=self.floor)
        return (self.beta * (chosen.log_ratios - rejected.log_ratios) - targets) ** 2
