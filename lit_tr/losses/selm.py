"""DPO that explores beyond the responses of its reference."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.dpo import DPO


@dataclass(frozen=True)
class SELM(DPO):
    """Self-Exploring Language Models, Zhang et al. 2024 (arXiv 2405.19332): DPO with a term of optimism.

    To the loss of a pair in `DPO` it adds `alpha * beta * h`, with `h` the mean log-ratio of its responses that the
    reference itself wrote: they become less likely, so that the next round explores elsewhere. It is meant for rounds
    whose responses are sampled from the reference, the policy of the round before. By default both responses of a pair
    are; of mixed pairs the label `sampled` says which, 1 or 0 for each response.

    The authors' code takes a greedy response of the reference, in a column of its own, which may be neither response of
    the pair. Here it counts only as one of the two.

    Args:
        beta: as for `DPO`; the authors take 0.01.
        label_smoothing: as for `DPO`.
        margin_scale: as for `DPO`.
        offset: as for `DPO`.
        divergence: as for `DPO`.
        average: as for `DPO`.
        alpha: weight of the optimism, not negative; 0 is DPO. The authors take 0.001, and 0.0001 for Llama 3.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-11.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-12.0]))
        >>> SELM(beta=0.5, alpha=0.1)(chosen, rejected)  # -log(sigmoid(0.5 * (2 - 0))) + 0.1 * 0.5 * (2 + 0) / 2
        tensor([0.3633])
    """

    alpha: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.alpha >= 0, f"SELM: alpha must not be negative, not {self.alpha}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        sampled = [scores.label("sampled", 1.0) for scores in (chosen, rejected)]
        total = sampled[0] * chosen.log_ratios + sampled[1] * rejected.log_ratios
        optimism = total / (sampled[0] + sampled[1]).clamp(min=1)
        return super().__call__(chosen, rejected, statistics) + self.alpha * self.beta * optimism
