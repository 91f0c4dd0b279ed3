"""Divergences between policy and reference, for the losses of a difference of rewards.

With an f-divergence in the place of the reverse KL the implicit reward of a response is `beta * f'(u)`, where `u` is
policy over reference, up to a constant that cancels in the difference of a pair: Wang et al. 2023 (arXiv 2309.16240).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 80.0
"""e^80 and sums of a few of them are within float32."""


class Divergence(ABC):
    """An f-divergence, by the derivative of its f."""

    @abstractmethod
    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Return `f'(e^h)` of each log-ratio `h`, up to a constant, `(responses,)`.

        It must be finite, and have a finite gradient, for any finite log-ratio.
        """


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """The KL divergence of the policy from the reference, that of DPO: `f'(e^h) = h`.

    Examples:
        >>> ReverseKL().derivative(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  2.])
    """

    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Return the log-ratios."""
        return log_ratios


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """The KL divergence of the reference from the policy: `f'(e^h) = 1 - e^-h`.

    It is bounded by 1 for what the policy has raised, and grows without bound for what it has lowered. Exponents stop
    at 80: a response with `h` below -80 has no gradient.

    Examples:
        >>> ForwardKL().derivative(torch.tensor([-1.0, 2.0]))  # 1 - e, 1 - e^-2
        tensor([-1.7183,  0.8647])
    """

    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Return `1 - e^-h`."""
        return -torch.expm1((-log_ratios).clamp(max=LARGEST_EXPONENT))


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """The Jensen-Shannon divergence: `f'(e^h) = log(2 * sigmoid(h))`, bounded by `log(2)`.

    Examples:
        >>> JensenShannon().derivative(torch.tensor([0.0, 2.0]))  # log(2 / 2), log(2 / (1 + e^-2))
        tensor([0.0000, 0.5662])
    """

    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Return `log(2 * sigmoid(h))`."""
        return F.logsigmoid(log_ratios) + math.log(2)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """An alpha-divergence: `f'(e^h) = (e^((alpha - 1) * h) - 1) / (alpha - 1)`, as in TRL.

    Alpha 1 is the reverse KL, and 0 the forward one. The paper counts the other way round: its alpha is 1 minus this
    one. Exponents stop at 80: a response with `(alpha - 1) * h` above 80 has no gradient.

    Args:
        alpha: which divergence, TRL's `f_alpha_divergence_coef`.

    Examples:
        >>> AlphaDivergence(0.5).derivative(torch.tensor([-2.0, 2.0]))  # 2 * (1 - e), 2 * (1 - e^-1)
        tensor([-3.4366,  1.2642])
    """

    alpha: float = 0.5

    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Return `(e^((alpha - 1) * h) - 1) / (alpha - 1)`; `h` if alpha is 1."""
        power = self.alpha - 1
        if not power:
            return log_ratios
        return torch.expm1((power * log_ratios).clamp(max=LARGEST_EXPONENT)) / power
