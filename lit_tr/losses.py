"""Preference losses: DPO, IPO, KTO, SFT.

A loss is a frozen dataclass. It takes the log-probs of the chosen and of the rejected responses under the policy and
under the reference, and returns one value for each example. It knows nothing of models, batches or ranks.

Log-probs are in nats, summed over the tokens of a response (its end-of-sequence token is one of them).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.errors import UserError


@dataclass(frozen=True)
class Scores:
    """What two policies think of the same responses.

    Args:
        policy: log-probs under the policy, `(responses,)`, with a gradient in training.
        reference: log-probs under the reference, `(responses,)`.
        tokens: how many tokens each response has, `(responses,)`.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """`log(policy / reference)` of each response, `(responses,)`."""
        return self.policy - self.reference


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


class Loss(ABC):
    """One value for each example, from the scores of its responses.

    Attributes:
        beta: scale of the implicit reward `beta * log_ratio`.
        paired: the loss compares the two responses of one prompt, so it cannot take unpaired rows.
        mismatched: the loss needs a KL baseline from prompts with borrowed responses.
    """

    beta: float
    paired: ClassVar[bool] = True
    mismatched: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor) -> Tensor:
        """Return the loss of each example, `(pairs,)`, or `(chosen + rejected,)` where examples are not paired.

        Args:
            chosen: scores of the preferred (desirable) responses.
            rejected: scores of the other (undesirable) responses.
            kl: the KL baseline in nats, a scalar, detached, equal on all ranks; only KTO reads it.
        """


@dataclass(frozen=True)
class DPO(Loss):
    """Direct Preference Optimization, Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7.

    With label smoothing it is conservative DPO (https://ericmitchell.ai/cdpo.pdf, Eq. 3).

    Args:
        beta: strength of the tie to the reference, above 0. The TR-DPO paper (arXiv 2404.09656) uses 0.05.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
    """

    beta: float = 0.05
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"DPO: beta must be above 0, not {self.beta}")
        _require(
            0 <= self.label_smoothing < 0.5, f"DPO: label_smoothing must be in [0, 0.5), not {self.label_smoothing}"
        )

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        logits = self.beta * (chosen.log_ratios - rejected.log_ratios)
        return -(1 - self.label_smoothing) * F.logsigmoid(logits) - self.label_smoothing * F.logsigmoid(-logits)


@dataclass(frozen=True)
class IPO(Loss):
    """Identity Preference Optimization, Azar et al. 2023 (arXiv 2310.12036), Eq. 17.

    Args:
        beta: the paper's tau, above 0; the log-ratio margin is drawn to `1 / (2 * beta)`.
        average: `sum` takes the log-ratios summed over tokens, as Eq. 17 writes them. `mean` divides each by the number
            of its tokens; TRL does so, and reports that the authors did in their experiments.
    """

    beta: float = 0.05
    average: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"IPO: beta must be above 0, not {self.beta}")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        margins = self._scale(chosen) - self._scale(rejected)
        return (margins - 1 / (2 * self.beta)) ** 2

    def _scale(self, scores: Scores) -> Tensor:
        return scores.log_ratios if self.average == "sum" else scores.log_ratios / scores.tokens


@dataclass(frozen=True)
class KTO(Loss):
    """Kahneman-Tversky Optimization, Ethayarajh et al. 2024 (arXiv 2402.01306), Eq. 8.

    Takes pairs (each gives a desirable and an undesirable example) and unpaired labelled rows. Its baseline, the KL of
    the policy from the reference, is estimated from prompts with responses borrowed from other rows of the batch; where
    no rank's batch has a row to borrow from, it is 0.

    Args:
        beta: strength of the tie to the reference, above 0.
        desirable_weight: weight of desirable examples (the paper's lambda_D), not negative.
        undesirable_weight: weight of undesirable examples (the paper's lambda_U), not negative.
    """

    paired: ClassVar[bool] = False
    mismatched: ClassVar[bool] = True

    beta: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"KTO: beta must be above 0, not {self.beta}")
        _require(min(self.desirable_weight, self.undesirable_weight) >= 0, "KTO: weights must not be negative")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor) -> Tensor:
        """Return the loss of each example, `(chosen + rejected,)`: the desirable ones first."""
        desirable = 1 - torch.sigmoid(self.beta * (chosen.log_ratios - kl))
        undesirable = 1 - torch.sigmoid(self.beta * (kl - rejected.log_ratios))
        return torch.cat([self.desirable_weight * desirable, self.undesirable_weight * undesirable])


@dataclass(frozen=True)
class SFT(Loss):
    """Negative log-likelihood of the chosen responses, a mean over the tokens of each.

    The rejected ones and the reference only reach the metrics; rewards are plain log-ratios.
    """

    paired: ClassVar[bool] = False

    beta: float = field(default=1.0, init=False)

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor) -> Tensor:
        """Return the loss of each chosen response, `(chosen,)`, in nats a token."""
        return -chosen.policy / chosen.tokens
