"""Losses weighted by how likely the policy is to say what it is trained on."""

from dataclasses import dataclass

from torch import Tensor

from lit_tr.losses.base import Scores, _require
from lit_tr.losses.dpo import DPO
from lit_tr.losses.ipo import IPO


def importance(chosen: Scores, rejected: Scores, clip: float) -> Tensor:
    """Return the importance ratio of each pair, clipped and without gradient, `(pairs,)`.

    It is `exp(min(log_ratio(chosen) + log_ratio(rejected), 2 * clip))`, as in the authors' code
    (github.com/mail-research/AIS-Sampling4DAAs, `cli/train_is_dpo.py`), with the reference in the place of the unknown
    policy that wrote the responses.
    """
    return (chosen.log_ratios + rejected.log_ratios).detach().clamp(max=2 * clip).exp()


@dataclass(frozen=True)
class ISDPO(DPO):
    """IS-DAA with DPO: importance sampling against overoptimization, Nguyen et al. 2025 (arXiv 2506.08681).

    The loss of a pair is that of `DPO` times the probability of both responses under the policy over that under the
    reference, clipped at `exp(2 * clip)` and without gradient: pairs that the policy has left count less. Rewards are
    those of DPO. Where a reference moves, the ratio is against the reference of the step.

    Args:
        beta: as for `DPO`; the authors take 0.01 to 0.1.
        label_smoothing: as for `DPO`.
        margin_scale: as for `DPO`.
        offset: as for `DPO`.
        clip: largest log-ratio in nats, a mean of the two responses, not negative; the authors take 1.
        divergence: as for `DPO`.
        average: as for `DPO`; the ratio is of whole responses all the same.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-13.0]), tokens, reference=torch.tensor([-11.0]))
        >>> ISDPO(beta=0.5)(chosen, rejected)  # exp(1 - 2) * -log(sigmoid(0.5 * (1 - (-2))))
        tensor([0.0741])
    """

    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.clip >= 0, f"ISDPO: clip must not be negative, not {self.clip}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        return importance(chosen, rejected, self.clip) * super().__call__(chosen, rejected, statistics)


@dataclass(frozen=True)
class ISIPO(IPO):
    """IS-DAA with IPO: as `ISDPO`, with the loss and the rewards of `IPO`.

    Args:
        beta: as for `IPO`.
        average: as for `IPO`; the ratio is of whole responses all the same.
        clip: as for `ISDPO`.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-13.0]), tokens, reference=torch.tensor([-11.0]))
        >>> ISIPO(beta=0.5)(chosen, rejected)  # exp(1 - 2) * (1 - (-2) - 1 / (2 * 0.5)) ** 2
        tensor([1.4715])
    """

    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.clip >= 0, f"ISIPO: clip must not be negative, not {self.clip}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        return importance(chosen, rejected, self.clip) * super().__call__(chosen, rejected, statistics)
